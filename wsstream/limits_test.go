package wsstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/wsstream"
)

func TestAddress(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for what, c := range map[string]struct {
		from    string
		said    []string
		proxies []netip.Prefix
		want    string
	}{
		"IPv4":                           {"192.0.2.1:5000", nil, nil, "192.0.2.1/32"},
		"IPv4 in IPv6":                   {"[::ffff:192.0.2.1]:5000", nil, nil, "192.0.2.1/32"},
		"IPv6":                           {"[2001:db8:1:2:3:4:5:6]:5000", nil, nil, "2001:db8:1:2::/64"},
		"with a zone":                    {"[fe80::1%eth0]:5000", nil, nil, "fe80::/64"},
		"nobody is trusted":              {"192.0.2.1:5000", []string{"198.51.100.1"}, nil, "192.0.2.1/32"},
		"one that is not trusted":        {"192.0.2.1:5000", []string{"198.51.100.1"}, proxies, "192.0.2.1/32"},
		"through a proxy":                {"10.1.1.1:5000", []string{"198.51.100.1"}, proxies, "198.51.100.1/32"},
		"through two":                    {"10.1.1.1:5000", []string{"198.51.100.1, 10.2.2.2"}, proxies, "198.51.100.1/32"},
		"through two, in two lines":      {"10.1.1.1:5000", []string{"198.51.100.1", "10.2.2.2"}, proxies, "198.51.100.1/32"},
		"what a client made up":          {"10.1.1.1:5000", []string{"203.0.113.9, 198.51.100.1"}, proxies, "198.51.100.1/32"},
		"a client that says it is one":   {"10.1.1.1:5000", []string{"203.0.113.9, 10.9.9.9, 198.51.100.1"}, proxies, "198.51.100.1/32"},
		"rubbish":                        {"10.1.1.1:5000", []string{"x, unknown"}, proxies, "10.1.1.1/32"},
		"nothing":                        {"10.1.1.1:5000", nil, proxies, "10.1.1.1/32"},
		"with a port":                    {"10.1.1.1:5000", []string{"198.51.100.1:1234"}, proxies, "198.51.100.1/32"},
		"IPv6 with a port":               {"10.1.1.1:5000", []string{"[2001:db8:1:2::3]:1234"}, proxies, "2001:db8:1:2::/64"},
		"IPv6 in brackets":               {"[fd00::1]:5000", []string{"[2001:db8:1:2::3]"}, proxies, "2001:db8:1:2::/64"},
		"a Unix socket":                  {"@", []string{"198.51.100.1"}, proxies, "198.51.100.1/32"},
		"a Unix socket and nobody to be": {"@", []string{"198.51.100.1"}, nil, "invalid Prefix"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.from
		r.Header["X-Forwarded-For"] = c.said
		require.Equal(t, c.want, wsstream.Address(r, c.proxies).String(), what)
	}
}

func TestLinksPerAddress(t *testing.T) {
	addr, h, _ := serve(t, wsstream.WithMaxLinksPerAddress(3, netip.MustParsePrefix("127.0.0.0/8")))
	open := func(from string) (*raw, int) {
		c, resp := request(t, addr, upgrade+"Sec-WebSocket-Protocol: echo.v1+json\r\nX-Forwarded-For: "+from+"\r\n\r\n")
		return c, resp.StatusCode
	}
	var cs []*raw
	for i := range 3 {
		c, status := open("192.0.2.1")
		require.Equal(t, 101, status)
		if i > 0 { // one says nothing yet, and counts
			c.hello()
		}
		cs = append(cs, c)
	}
	_, status := open("192.0.2.1")
	require.Equal(t, 503, status)
	_, status = open("192.0.2.2")
	require.Equal(t, 101, status)
	for _, c := range cs {
		c.Close()
	}
	require.Eventually(t, func() bool { return h.Stats().Links == 0 }, 5*time.Second, 5*time.Millisecond)
	for range 3 {
		require.Eventually(t, func() bool { _, status := open("192.0.2.1"); return status == 101 }, 5*time.Second, 5*time.Millisecond)
	}
}

func TestLinksPerSubject(t *testing.T) {
	p := &people{}
	addr, h, _ := serve(t, wsstream.WithAuthorizer(p.authorize), wsstream.WithMaxLinksPerSubject(2))
	open := func(hello string) (*raw, map[string]any) {
		c := openRaw(t, addr, "echo.v1+json")
		c.say(hello)
		return c, c.hear()[0]
	}
	alice := `{"t":"hello","token":"s3cret-alice"}`
	a, welcome := open(alice)
	a.say(`{"t":"sub","sid":1,"topic":"alice","group":"g"}`)
	a.expect("subok")
	b, _ := open(alice)
	_, f := open(alice)
	require.EqualValues(t, 104, f["code"])
	_, f = open(`{"t":"hello","token":"s3cret-bob"}`)
	require.Equal(t, "welcome", f["t"])
	// One that takes over is the same one.
	c, f := open(fmt.Sprintf(`{"t":"hello","token":"s3cret-alice","session":%q}`, welcome["session"]))
	require.Equal(t, true, f["resumed"])
	_, f = open(alice)
	require.EqualValues(t, 104, f["code"])
	b.Close()
	require.Eventually(t, func() bool { return h.Stats().Links <= 3 }, 5*time.Second, 5*time.Millisecond)
	require.Eventually(t, func() bool { _, f := open(alice); return f["t"] == "welcome" }, 5*time.Second, 5*time.Millisecond)
	c.Close()
}

func TestTopicsAreBounded(t *testing.T) {
	addr, h, _ := serve(t, wsstream.WithMaxTopics(10))
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	for i := range 20 {
		c.say(fmt.Sprintf(`{"t":"sub","sid":%d,"topic":"t%d"}`, i+1, i))
		if i < 10 {
			c.expect("subok")
		} else {
			require.EqualValues(t, 503, c.expect("err")["code"])
		}
	}
	require.Equal(t, 10, h.Stats().Topics)
	c.Close()
	// What nobody found anything in is not kept for those who may come back.
	require.Eventually(t, func() bool { return h.Stats().Topics == 0 }, 10*time.Second, 10*time.Millisecond)
}

func TestPublishesAreBounded(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	addr, _ := serveOver(t, &slow{Transport: mem, takes: 200 * time.Millisecond}, wsstream.WithMaxPublish(5))
	c := openRaw(t, addr, "echo.v1+json")
	require.EqualValues(t, 5, c.hello()["max_publish"])
	for i := range 7 {
		c.say(fmt.Sprintf(`{"t":"pub","rid":%d,"topic":"t","id":"%d"}`, i+1, i))
	}
	codes := map[any]int{}
	for n := 0; n < 7; {
		for _, f := range c.hear() {
			switch f["t"] {
			case "pubok":
				n += int(f["count"].(float64))
				codes["ok"] += int(f["count"].(float64))
			case "err":
				n++
				codes[f["code"]]++
			}
		}
	}
	require.Equal(t, map[any]int{"ok": 5, 306.: 2}, codes)
}

// Who keeps to the bound is never beyond it: there is room as soon as there is an answer.
func TestAnAnswerMakesRoomForAnotherPublish(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	addr, _ := serveOver(t, mem, wsstream.WithMaxPublish(1))
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	for i := range 3000 {
		c.say(fmt.Sprintf(`{"t":"pub","rid":%d,"topic":"t","id":"%d"}`, i+1, i))
		require.Equal(t, "pubok", c.hear()[0]["t"], "publish %d", i)
	}
}

// Who is kicked at one node is at all, at once.
func TestKickAtEveryNode(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	p := &people{}
	var handlers []*wsstream.Handler
	var links, others []*raw
	for range 3 {
		addr, h := serveOver(t, mem, wsstream.WithAuthorizer(p.authorize), wsstream.WithKickTopic("alice.kicks"))
		handlers = append(handlers, h)
		for name, to := range map[string]*[]*raw{"alice": &links, "bob": &others} {
			c := openRaw(t, addr, "echo.v1+json")
			c.say(`{"t":"hello","token":"s3cret-` + name + `"}`)
			c.expect("welcome")
			*to = append(*to, c)
		}
	}
	// It is no topic of clients.
	links[0].say(`{"t":"sub","sid":1,"topic":"alice.kicks"}`)
	require.EqualValues(t, 204, links[0].expect("err")["code"])
	links[0].say(`{"t":"pub","rid":1,"topic":"alice.kicks","id":"x","type":"text/plain","string":"bob"}`)
	require.EqualValues(t, 204, links[0].expect("err")["code"])
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	require.NoError(t, handlers[1].KickSubject(t.Context(), "alice"))
	for _, c := range links {
		code, _ := c.closed()
		require.Equal(t, 4202, code)
	}
	require.Less(t, time.Since(begin), time.Second)
	for _, c := range others {
		c.say(`{"t":"ping","n":1}`)
		c.expect("pong")
	}
}

// A kick reaches links that are just being opened, too.
func TestKickDuringHello(t *testing.T) {
	in, out := make(chan bool), make(chan bool)
	addr, h, _ := serve(t, wsstream.WithAuthorizer(func(context.Context, *http.Request, string) (*wsstream.Grant, error) {
		in <- true
		<-out
		return wsstream.Everything("alice"), nil
	}))
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"x"}`)
	<-in
	h.Kick(func(s string) bool { return s == "alice" })
	out <- true
	code, _ := c.closed()
	require.Equal(t, 4003, code)
}

// What panics in an application's functions ends one request, not the process.
func TestPanics(t *testing.T) {
	addr, h, _ := serve(t, wsstream.WithAuthorizer(func(_ context.Context, _ *http.Request, token string) (*wsstream.Grant, error) {
		if token == "" {
			panic("no token")
		}
		return &wsstream.Grant{Subscribe: func(string, string) bool { panic("sub") }, Publish: func(string) bool { panic("pub") }}, nil
	}))
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello"}`)
	require.EqualValues(t, 501, c.expect("err")["code"])
	c = openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"x"}`)
	c.expect("welcome")
	c.say(`{"t":"sub","sid":1,"topic":"t"}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
	c.say(`{"t":"pub","rid":1,"topic":"t","id":"x"}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
	require.Equal(t, 1, h.Stats().Links)
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, o := range []wsstream.HandlerOption{
		wsstream.WithAuthorizer(nil), wsstream.WithMaxLinks(0), wsstream.WithMaxLinksPerSubject(-1), wsstream.WithMaxTopics(0), wsstream.WithMaxPublish(0),
		wsstream.WithMaxLinksPerAddress(0), wsstream.WithKickTopic("no such name"), wsstream.WithOrigins("example.org"), wsstream.WithHold(0),
		wsstream.WithRate(0, 1), wsstream.WithRing(0, 1), wsstream.WithMaxMessage(1), wsstream.WithHeartbeat(0, 0),
	} {
		h := wsstream.NewHandler(memstream.New(), o)
		require.Error(t, h.Err())
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		require.Equal(t, 500, w.Code)
	}
	h := wsstream.NewHandler(memstream.New(), wsstream.WithLogger(nil), wsstream.WithRate(1, math.MaxInt))
	require.NoError(t, h.Err())
}

// A client that tries names learns nothing, and is soon stopped.
func TestScanOfTopics(t *testing.T) {
	p := &people{}
	addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize))
	send(t, mem, "bob.secret", "x")
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"s3cret-alice"}`)
	c.expect("welcome")
	for i := 1; ; i++ {
		topic := "bob.secret"
		if i%2 == 0 {
			topic = fmt.Sprint("bob.", i)
		}
		c.say(fmt.Sprintf(`{"t":"sub","sid":%d,"topic":"%s"}`, i, topic))
		frames := c.hear()
		c.said = nil
		if frames[0]["code"] != 104. { // which may come by itself after the last refusal
			require.Equal(t, object{"t": "err", "sid": float64(i), "code": 204.}, frames[0])
			frames = frames[1:]
		}
		if len(frames) > 0 {
			require.EqualValues(t, 104, frames[0]["code"])
			require.Greater(t, i, 100)
			break
		}
		require.Less(t, i, 1000)
	}
}

// A place in a topic is where somebody was; it gives no right to anything.
func TestPositionsOfClients(t *testing.T) {
	addr, h, mem := serve(t)
	send(t, mem, "a", ids(5)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	for i, pos := range []string{"18446744073709551615-18446744073709551615", "0-0", "7-7", "0-18446744073709551615"} {
		c.say(fmt.Sprintf(`{"t":"sub","sid":%d,"topic":"a","from":"pos","pos":"%s","credit":100,"bytes":1000}`, i+1, pos))
		c.expect("subok")
	}
	for _, pos := range []string{"-1-0", "x", "1", "18446744073709551616-0", "1-1-1", "0x1-0"} {
		c.say(fmt.Sprintf(`{"t":"sub","sid":9,"topic":"a","from":"pos","pos":"%s"}`, pos))
		require.EqualValues(t, 101, c.expect("err")["code"], pos)
	}
	// Acknowledging what was not delivered gives no credit.
	d := openRaw(t, addr, "echo.v1+json")
	d.hello()
	d.say(`{"t":"sub","sid":1,"topic":"a","from":"oldest","credit":1,"bytes":1000}`)
	d.expect("msg")
	d.say(`{"t":"ack","rid":1,"sid":1,"pos":"18446744073709551615-0"}`)
	d.expect("msg")
	d.say(`{"t":"ping","n":1}`)
	for f := d.hear(); ; f = d.hear() {
		d.said = nil
		for _, f := range f {
			require.NotEqual(t, "msg", f["t"])
		}
		if f[len(f)-1]["t"] == "pong" {
			break
		}
	}
	require.Equal(t, 2, h.Stats().Links)
}

// Floods by some are no matter for others.
func TestFloods(t *testing.T) {
	for what, x := range map[string]struct {
		frame string
		ended bool // the link is closed for it
	}{
		"bad frames":    {`{"t":"sub"}`, true},
		"forbidden":     {`{"t":"sub","sid":1,"topic":"bob"}`, true},
		"tokens":        {`{"t":"auth","rid":1,"token":"s3cret-alice"}`, true},
		"wrong tokens":  {`{"t":"auth","rid":1,"token":"x"}`, true},
		"pings":         {`{"t":"ping","n":1}`, false},
		"sub and unsub": {"{\"t\":\"sub\",\"sid\":1,\"topic\":\"alice\"}\n{\"t\":\"unsub\",\"sid\":1}", false},
		"flow":          {`{"t":"flow","sid":1,"credit":1,"bytes":1}`, false},
		"acks":          {`{"t":"ack","sid":1,"pos":"0-0","ns":[1,2,3]}`, false},
	} {
		t.Run(what, func(t *testing.T) {
			p := &people{}
			addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize))
			good := openRaw(t, addr, "echo.v1+json")
			good.say(`{"t":"hello","token":"s3cret-alice"}`)
			good.expect("welcome")
			good.say(`{"t":"sub","sid":1,"topic":"public","credit":1000,"bytes":1000000}`)
			good.expect("subok")
			bad := openRaw(t, addr, "echo.v1+json")
			bad.say(`{"t":"hello","token":"s3cret-alice"}`)
			bad.expect("welcome")
			stop := make(chan bool)
			var flood sync.WaitGroup
			flood.Go(func() {
				b := maskedFrame(fin|opText, []byte(strings.TrimSuffix(strings.Repeat(x.frame+"\n", 100), "\n")))
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := bad.Write(b); err != nil {
						return
					}
				}
			})
			flood.Go(func() { io.Copy(io.Discard, bad.r) })
			var worst time.Duration
			for i := range 50 {
				begin := time.Now()
				send(t, mem, "public", fmt.Sprint(i))
				good.expect("msg")
				worst = max(worst, time.Since(begin))
				time.Sleep(2 * time.Millisecond)
			}
			assert.Less(t, worst, time.Second)
			if x.ended {
				ended := make(chan bool)
				go func() { flood.Wait(); close(ended) }()
				select {
				case <-ended:
				case <-time.After(8 * time.Second):
					t.Error("the link was not closed")
				}
			}
			close(stop)
			bad.Close()
			flood.Wait()
		})
	}
}

// Links that open and say nothing keep nobody out, as long as there is room.
func TestLinksThatSayNothing(t *testing.T) {
	addr, h, _ := serve(t)
	for range 500 {
		openRaw(t, addr, "echo.v1+json")
	}
	for range 20 {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
	}
	require.Equal(t, 20, h.Stats().Links)
}

// Links whose client does not read hold up neither Drain nor Close.
func TestDrainOfLinksThatDoNotRead(t *testing.T) {
	addr, h, mem := serve(t)
	const links = 50 // each is sent 8 MiB, which the race detector makes dear; one after another they would take minutes
	for range links {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(`{"t":"sub","sid":1,"topic":"t","credit":1000000,"bytes":1000000000}`)
		c.expect("subok")
	}
	sendSized(t, mem, "t", 1<<20, ids(8)...)
	begin := time.Now()
	require.NoError(t, h.Drain(t.Context(), 500*time.Millisecond))
	require.NoError(t, h.Close())
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Zero(t, h.Stats().Links)
	require.Eventually(t, func() bool {
		buf := make([]byte, 4<<20)
		return !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "wsstream.(*conn)")
	}, 5*time.Second, 10*time.Millisecond)
}

// The log says nothing that is secret, and Stats do not grow with what clients name.
func TestWhatIsKeptOfClients(t *testing.T) {
	addr, h, _ := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	size := len(fmt.Sprintf("%+v", h.Stats()))
	for i := range 200 {
		c.say(fmt.Sprintf(`{"t":"pub","rid":%d,"topic":"t%d","id":"x"}`, i+1, i))
	}
	for n := 0; n < 200; {
		n += int(c.expect("pubok")["count"].(float64))
	}
	require.Less(t, len(fmt.Sprintf("%+v", h.Stats())), size+10)
	require.Zero(t, h.Stats().Topics, "publishing reads nothing")
}

// A message that is much too large does not cost its sender the reason why.
func TestCloseCodeArrives(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithMaxMessage(64<<10))
	for range 50 {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		go c.Write(maskedFrame(fin|opText, make([]byte, 3<<20)))
		code, _ := c.closed()
		require.Equal(t, 1009, code)
	}
}

// Whatever a client sends shows that it is alive.
func TestControlFramesAreSignsOfLife(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithHeartbeat(200*time.Millisecond, 200*time.Millisecond))
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	for range 20 {
		c.bytes(maskedFrame(fin|opPing, []byte("x"))...)
		time.Sleep(50 * time.Millisecond)
	}
	c.say(`{"t":"ping","n":7}`)
	require.EqualValues(t, 7, pong(c))
}

// pong reads until a frame pong, past control frames.
func pong(c *raw) any {
	for {
		op, payload, err := c.read()
		require.NoError(c.t, err)
		for line := range strings.Lines(string(payload)) {
			var f object
			if op == opText && json.Unmarshal([]byte(line), &f) == nil && f["t"] == "pong" {
				return f["n"]
			}
		}
	}
}
