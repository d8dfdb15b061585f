package wsstream_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// What WebSocket frames a client may send, and what becomes of others.
func TestFraming(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithMaxMessage(8192))
	hello := func(c *raw) { c.hello() }
	ping := `{"t":"ping","n":7}`
	pong := func(t *testing.T, c *raw) { require.EqualValues(t, 7, c.expect("pong")["n"]) }
	closes := func(codes ...int) func(*testing.T, *raw) {
		return func(t *testing.T, c *raw) {
			code, reason := c.closed()
			require.Contains(t, codes, code, reason)
		}
	}
	for what, c := range map[string]struct {
		do   func(c *raw)
		want func(*testing.T, *raw)
	}{
		"a text message": {func(c *raw) { c.frame(fin|opText, ping) }, pong},
		"in fragments of a byte": {func(c *raw) {
			for i := range len(ping) {
				head := byte(opContinuation)
				if i == 0 {
					head = opText
				}
				if i == len(ping)-1 {
					head |= fin
				}
				c.frame(head, ping[i:i+1])
			}
		}, pong},
		"byte by byte": {func(c *raw) {
			for _, b := range maskedFrame(fin|opText, []byte(ping)) {
				c.bytes(b)
				time.Sleep(10 * time.Microsecond)
			}
		}, pong},
		"with empty fragments": {func(c *raw) {
			c.frame(opText, "")
			c.frame(opContinuation, ping)
			c.frame(opContinuation, "")
			c.frame(fin|opContinuation, "")
		}, pong},
		"with a ping inside": {func(c *raw) {
			c.frame(opText, ping[:5])
			c.frame(fin|opPing, "x")
			c.frame(fin|opContinuation, ping[5:])
		}, func(t *testing.T, c *raw) {
			op, p, err := c.read()
			require.NoError(t, err)
			require.EqualValues(t, opPong, op)
			require.Equal(t, "x", string(p))
			pong(t, c)
		}},
		"an empty message": {func(c *raw) { c.frame(fin|opText, ""); c.frame(fin|opText, ping) }, pong},
		"blank lines":      {func(c *raw) { c.frame(fin|opText, "\n\r\n  \n"+ping+"\n\n") }, pong},
		"pongs that nobody asked for": {func(c *raw) {
			for range 10 {
				c.frame(fin|opPong, "?")
			}
			c.frame(fin|opText, ping)
		}, pong},
		"a ping of 125 bytes": {func(c *raw) { c.frame(fin|opPing, strings.Repeat("x", 125)); c.frame(fin|opText, ping) }, func(t *testing.T, c *raw) {
			op, p, err := c.read()
			require.NoError(t, err)
			require.EqualValues(t, opPong, op)
			require.Len(t, p, 125)
			pong(t, c)
		}},
		"as large as may be": {func(c *raw) { c.frame(fin|opText, ping+strings.Repeat(" ", 8192-len(ping))) }, pong},
		"a byte more":        {func(c *raw) { c.frame(fin|opText, ping+strings.Repeat(" ", 8193-len(ping))) }, closes(1009, 0)},
		"more in fragments": {func(c *raw) {
			for range 10 {
				c.frame(opContinuation, strings.Repeat(" ", 1000))
			}
		}, closes(1002, 0)},
		"a binary message":           {func(c *raw) { c.frame(fin|opBinary, ping) }, closes(4301)},
		"not masked":                 {func(c *raw) { c.bytes(fin|opText, 1, 'x') }, closes(0, 1002)},
		"a ping of 126 bytes":        {func(c *raw) { c.frame(fin|opPing, strings.Repeat("x", 126)) }, closes(0, 1002)},
		"a ping in fragments":        {func(c *raw) { c.frame(opPing, "x") }, closes(0, 1002)},
		"RSV1":                       {func(c *raw) { c.frame(fin|0x40|opText, ping) }, closes(0, 1002)},
		"RSV2":                       {func(c *raw) { c.frame(fin|0x20|opText, ping) }, closes(0, 1002)},
		"RSV3":                       {func(c *raw) { c.frame(fin|0x10|opText, ping) }, closes(0, 1002)},
		"opcode 3":                   {func(c *raw) { c.frame(fin|3, "") }, closes(0, 1002)},
		"opcode 11":                  {func(c *raw) { c.frame(fin|11, "") }, closes(0, 1002)},
		"a continuation of nothing":  {func(c *raw) { c.frame(fin|opContinuation, ping) }, closes(0, 1002)},
		"a message within a message": {func(c *raw) { c.frame(opText, ping); c.frame(fin|opText, ping) }, closes(0, 1002)},
		"a close":                    {func(c *raw) { c.frame(fin|opClose, "\x03\xe8bye") }, closes(1000)},
		"a close without a code":     {func(c *raw) { c.frame(fin|opClose, "") }, closes(1000, 1005)},
		"a close of one byte":        {func(c *raw) { c.frame(fin|opClose, "\x03") }, closes(0, 1002)},
		"a close with code 999":      {func(c *raw) { c.frame(fin|opClose, "\x03\xe7") }, closes(0, 1002)},
		"a close with code 1005":     {func(c *raw) { c.frame(fin|opClose, "\x03\xed") }, closes(0, 1002)},
		"a gigabyte announced": {func(c *raw) {
			c.bytes(fin|opText, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4, 'x')
			c.bytes(make([]byte, 20000)...)
		}, closes(0, 1009)},
		"an exabyte announced": {func(c *raw) {
			c.bytes(fin|opText, 0xff, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3, 4)
			c.bytes(make([]byte, 20000)...)
		}, closes(0, 1009)},
		"a length of 2^63": {func(c *raw) { c.bytes(fin|opText, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4) }, closes(0, 1002)},
		"bytes that are not UTF-8": {func(c *raw) {
			c.say(`{"t":"pub","rid":1,"topic":"t","id":"a","type":"text/plain","string":"` + "\xff" + `"}`)
		}, func(t *testing.T, c *raw) { require.EqualValues(t, 101, c.expect("err")["code"]) }},
		"not JSON": {func(c *raw) { c.say(`{"t":"ping"`); c.say(ping) }, func(t *testing.T, c *raw) {
			require.EqualValues(t, 101, c.expect("err")["code"])
			pong(t, c)
		}},
		"one bad frame among good ones": {func(c *raw) { c.say(ping, `{"t":"pub","rid":"x"}`, `nonsense`, `{"t":"ping","n":8}`) }, func(t *testing.T, c *raw) {
			pong(t, c)
			require.EqualValues(t, 101, c.expect("err")["code"])
			require.EqualValues(t, 101, c.expect("err")["code"])
			require.EqualValues(t, 8, c.expect("pong")["n"])
		}},
		"an unknown type":  {func(c *raw) { c.say(`{"t":"novelty","x":1}`, ping) }, pong},
		"an unknown field": {func(c *raw) { c.say(`{"t":"ping","n":7,"novel":{"a":[1]}}`) }, pong},
		"what a server says": {func(c *raw) { c.say(`{"t":"welcome"}`); c.say(ping) }, func(t *testing.T, c *raw) {
			require.EqualValues(t, 101, c.expect("err")["code"])
			pong(t, c)
		}},
		"deep JSON": {func(c *raw) { c.say(`{"t":"ping","n":` + strings.Repeat("[", 4000) + `}`); c.say(ping) }, func(t *testing.T, c *raw) {
			require.EqualValues(t, 101, c.expect("err")["code"])
			pong(t, c)
		}},
		"mistakes without end": {func(c *raw) {
			for range 40 {
				c.say(`x`)
			}
		}, closes(4302)},
		"2,000 frames in a message": {func(c *raw) { c.say(strings.Repeat("{}\n", 2000)) }, closes(4302)},
	} {
		t.Run(what, func(t *testing.T) {
			r := openRaw(t, addr, "echo.v1+json")
			hello(r)
			c.do(r)
			c.want(t, r)
		})
	}
	// And nobody else noticed.
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(ping)
	pong(t, c)
}

func TestBeforeHello(t *testing.T) {
	addr, _, _ := serve(t)
	for what, first := range map[string]string{
		"a subscription": `{"t":"sub","sid":1,"topic":"t"}`,
		"a publish":      `{"t":"pub","rid":1,"topic":"t","id":"a"}`,
		"nonsense":       `nonsense`,
		"nothing":        ``,
		"too much":       `{"t":"hello","client":"` + strings.Repeat("x", 20<<10) + `"}`,
	} {
		t.Run(what, func(t *testing.T) {
			c := openRaw(t, addr, "echo.v1+json")
			c.frame(fin|opText, first)
			code, _ := c.closed()
			require.Contains(t, []int{4301, 1009, 0}, code)
		})
	}
	t.Run("all in one message", func(t *testing.T) {
		c := openRaw(t, addr, "echo.v1+json")
		c.say(`{"t":"hello"}`, `{"t":"sub","sid":1,"topic":"t","credit":1,"bytes":1}`, `{"t":"pub","rid":1,"topic":"u","id":"a"}`)
		c.expect("welcome")
		got := map[any]bool{}
		for len(got) < 2 {
			for _, f := range c.hear() {
				got[f["t"]] = true
			}
		}
		require.Equal(t, map[any]bool{"subok": true, "pubok": true}, got)
	})
	t.Run("in the packet of the request", func(t *testing.T) {
		conn, resp := request(t, addr, upgrade+"Sec-WebSocket-Protocol: echo.v1+json\r\n\r\n"+string(maskedFrame(fin|opText, []byte(`{"t":"hello"}`))))
		require.Equal(t, 101, resp.StatusCode)
		conn.expect("welcome")
	})
}

// What requests make no sense, and are refused alone.
func TestBadRequests(t *testing.T) {
	addr, _, mem := serve(t, wsstream.WithMaxSubscriptions(3))
	send(t, mem, "t", "a")
	c := openRaw(t, addr, "echo.v1+json")
	for _, x := range []struct {
		say  string
		code int
	}{
		{`{"t":"sub","topic":"t"}`, 101},
		{`{"t":"sub","sid":1}`, 101},
		{`{"t":"sub","sid":1,"topic":"a b"}`, 101},
		{`{"t":"sub","sid":1,"topic":"` + strings.Repeat("x", 300) + `"}`, 101},
		{`{"t":"sub","sid":1,"topic":"t","group":"*"}`, 101},
		{`{"t":"sub","sid":1,"topic":"t","from":"yesterday"}`, 101},
		{`{"t":"sub","sid":1,"topic":"t","from":"pos","pos":"1"}`, 101},
		{`{"t":"sub","sid":1,"topic":"t","from":"pos","pos":"99999999999999999999-1"}`, 101},
		{`{"t":"sub","sid":-1,"topic":"t"}`, 101},
		{`{"t":"sub","sid":1.5,"topic":"t"}`, 101},
		{`{"t":"sub","sid":1,"topic":"t","from":"id","id":"unheard-of"}`, 404},
		{`{"t":"sub","sid":1,"topic":"t","group":"g","from":"id","id":"unheard-of"}`, 404},
		{`{"t":"pub","topic":"t","id":"x"}`, 101},
		{`{"t":"pub","rid":1,"topic":"t"}`, 101},
		{`{"t":"pub","rid":1,"topic":"{t}","id":"x"}`, 303},
		{`{"t":"pub","rid":1,"topic":"t","id":"` + strings.Repeat("x", 129) + `"}`, 103},
		{`{"t":"pub","rid":1,"topic":"t","id":"x","time":"noon"}`, 101},
		{`{"t":"pub","rid":1,"topic":"t","id":"x","base64":"?"}`, 101},
		{`{"t":"pub","rid":1,"topic":"t","id":"x","header":{"a":1}}`, 101},
	} {
		c = openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(x.say)
		require.EqualValues(t, x.code, c.expect("err")["code"], x.say)
		c.say(`{"t":"ping","n":1}`)
		c.expect("pong")
	}
	c.say(`{"t":"sub","sid":1,"topic":"t"}`)
	c.expect("subok")
	c.say(`{"t":"sub","sid":1,"topic":"t"}`)
	require.EqualValues(t, 101, c.expect("err")["code"], "the number is taken")
	c.say(`{"t":"sub","sid":2,"topic":"t"}`, `{"t":"sub","sid":3,"topic":"t","group":"g"}`)
	c.expect("subok")
	c.expect("subok")
	c.say(`{"t":"sub","sid":4,"topic":"t"}`)
	require.EqualValues(t, 402, c.expect("err")["code"])
	c.say(`{"t":"unsub","rid":9,"sid":2}`)
	require.EqualValues(t, 9, c.expect("ok")["rid"])
	c.say(`{"t":"sub","sid":4,"topic":"t"}`)
	c.expect("subok")
	c.say(`{"t":"ack","rid":10,"sid":77,"ns":[1,2]}`)
	require.Equal(t, []any{1.0, 2.0}, c.expect("ok")["ns"], "of no subscription nothing is held")
}

// Nothing is sent beyond credit.
func TestCredit(t *testing.T) {
	addr, _, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	quiet := func(why string) {
		t.Helper()
		c.say(`{"t":"ping","n":1}`)
		for {
			for _, f := range c.hear() {
				require.NotContains(t, []any{"msg", "dlv"}, f["t"], why)
				if f["t"] == "pong" {
					return
				}
			}
		}
	}
	count := func(typ string, n int) (last object) {
		t.Helper()
		for k := 0; k < n; {
			for _, f := range c.hear() {
				if f["t"] == typ {
					last = f
					k++
				}
			}
			require.LessOrEqual(t, k, n)
		}
		time.Sleep(20 * time.Millisecond)
		quiet("all credit is used")
		return last
	}
	c.say(`{"t":"sub","sid":1,"topic":"t","credit":3,"bytes":1000}`)
	c.expect("subok")
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprint("m", i))
	}
	send(t, mem, "t", ids...)
	last := count("msg", 3)
	require.Equal(t, "m2", last["id"])
	c.say(`{"t":"ack","sid":1,"pos":"` + last["pos"].(string) + `"}`)
	last = count("msg", 3)
	require.Equal(t, "m5", last["id"])
	c.say(`{"t":"flow","sid":1,"credit":1}`)
	last = count("msg", 1)
	c.say(`{"t":"flow","sid":1,"credit":10,"bytes":0}`, `{"t":"ack","sid":1,"pos":"`+last["pos"].(string)+`"}`)
	last = count("msg", 13)
	require.Equal(t, "m19", last["id"])

	// Bytes: the last message may exceed them.
	c.say(`{"t":"sub","sid":2,"topic":"bytes","credit":100,"bytes":50,"manual":true}`)
	c.expect("subok")
	send(t, mem, "bytes", ids...) // of 10 or 11 bytes, and 10 of type
	require.Equal(t, "m2", count("msg", 3)["id"])
	c.say(`{"t":"ack","sid":2,"pos":"` + last["pos"].(string) + `"}`)
	quiet("an ack gives nothing back")
	c.say(`{"t":"flow","sid":2,"bytes":1000}`)
	count("msg", 17)

	// Groups.
	c.say(`{"t":"sub","sid":3,"topic":"t","group":"g","credit":2,"bytes":1000}`)
	c.expect("subok")
	last = count("dlv", 2)
	require.EqualValues(t, 2, last["n"])
	c.say(`{"t":"ack","rid":1,"sid":3,"ns":[1]}`)
	last = count("dlv", 1)
	require.EqualValues(t, 3, last["n"])
	c.say(`{"t":"nack","rid":2,"sid":3,"ns":[2,3],"release":true}`)
	last = count("dlv", 2)
	require.EqualValues(t, 1, last["attempt"])
	c.say(`{"t":"flow","sid":3,"credit":5,"once":true}`)
	count("dlv", 5)
}

// What a client did not see goes back with what it gives back.
func TestGivingBackWhatWasNotSeen(t *testing.T) {
	addr, _, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprint("m", i))
	}
	send(t, mem, "t", ids...)
	c.say(`{"t":"sub","sid":1,"topic":"t","group":"g","credit":10,"bytes":100000,"manual":true}`)
	got := func(n int) (ids []string) {
		for len(ids) < n {
			for _, f := range c.hear() {
				if f["t"] == "dlv" {
					require.EqualValues(t, 1, f["attempt"])
					ids = append(ids, f["id"].(string))
				}
			}
		}
		return ids
	}
	require.Equal(t, ids[:10], got(10))
	c.say(`{"t":"nack","rid":1,"sid":1,"ns":[3,4],"release":true,"seen":6}`)
	require.Nil(t, c.hear()[0]["ns"])
	c.say(`{"t":"ping","n":1}`)
	require.Equal(t, "pong", c.hear()[0]["t"], "there is no credit left")
	c.say(`{"t":"ack","rid":2,"sid":1,"ns":[1,2,5,6,7]}`)
	require.Equal(t, []any{7.0}, c.hear()[0]["ns"], "what was not seen is not held")
	c.say(`{"t":"flow","sid":1,"credit":16,"bytes":100000}`)
	require.Equal(t, append(append([]string{}, ids[2:4]...), ids[6:]...), got(16))

	c.say(`{"t":"nack","rid":3,"sid":1,"ns":[11],"delay":1,"seen":20}`)
	require.EqualValues(t, 101, c.hear()[0]["code"])
	c.say(`{"t":"sub","sid":2,"topic":"u","group":"g","credit":10,"bytes":100000}`)
	c.expect("subok")
	c.say(`{"t":"nack","rid":4,"sid":2,"ns":[1],"release":true,"seen":2}`)
	require.EqualValues(t, 101, c.hear()[0]["code"])
}

func TestRate(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithRate(100, 20))
	c, other := openRaw(t, addr, "echo.v1+json"), openRaw(t, addr, "echo.v1+json")
	c.hello()
	other.hello()
	begin := time.Now()
	for range 10 {
		c.say(strings.Repeat(`{"t":"ping","n":1}`+"\n", 7))
	}
	for i := range 70 {
		c.expect("pong")
		if i == 15 { // at once
			require.Less(t, time.Since(begin), 200*time.Millisecond)
			other.say(`{"t":"ping","n":1}`)
			other.expect("pong")
			require.Less(t, time.Since(begin), 250*time.Millisecond, "others are not slowed down")
		}
	}
	require.Greater(t, time.Since(begin), 350*time.Millisecond)
	require.Less(t, time.Since(begin), 2*time.Second)
}

// clients dials n raw links, each with a subscription.
func clients(t testing.TB, addr string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(`{"t":"sub","sid":1,"topic":"t","credit":256,"bytes":1048576}`)
		c.expect("subok")
		c.SetDeadline(time.Time{})
		conns[i] = c.Conn
	}
	return conns
}

// inUse is what the program uses of memory, stacks included.
func inUse() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func TestIdleLinkIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs memory of its own")
	}
	addr, h, _ := serve(t)
	const n = 1000
	clients(t, addr, 10)
	before := inUse()
	clients(t, addr, n)
	each := (inUse() - before) / n
	t.Logf("%d bytes for a link with a subscription, the test's side of about 5 KiB included", each)
	require.Less(t, each, uint64(24<<10))
	require.Equal(t, n+10, h.Stats().Links)
}

// What comes and goes leaves nothing behind.
func TestLinksLeaveNothingBehind(t *testing.T) {
	addr, h, _ := serve(t, wsstream.WithHold(10*time.Millisecond))
	round := func() {
		for range 10 {
			conns := clients(t, addr, 20)
			var closing sync.WaitGroup
			for i, c := range conns {
				closing.Go(func() {
					if i%2 == 0 {
						c.Write(maskedFrame(fin|opText, []byte(`{"t":"bye"}`)))
						c.SetReadDeadline(time.Now().Add(time.Second))
						c.Read(make([]byte, 100))
					}
					c.Close()
				})
			}
			closing.Wait()
		}
		require.Eventually(t, func() bool { return h.Stats().Links == 0 && h.Stats().Sessions == 0 }, 10*time.Second, 10*time.Millisecond)
	}
	round()
	goroutines, memory, files := runtime.NumGoroutine(), inUse(), descriptors()
	for range 4 {
		round()
	}
	require.Eventually(t, func() bool { return descriptors() <= files+2 }, 5*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 }, 5*time.Second, 10*time.Millisecond)
	if !raceEnabled {
		require.Less(t, inUse(), memory+2<<20)
	}
}

func TestSilentClientsAreGivenUp(t *testing.T) {
	addr, h, _ := serve(t, wsstream.WithHeartbeat(500*time.Millisecond, 500*time.Millisecond))
	c := openRaw(t, addr, "echo.v1+json")
	require.EqualValues(t, 1000, c.hello()["ping"])
	c.expect("ping")
	code, _ := c.closed()
	require.Equal(t, 4004, code)
	require.Eventually(t, func() bool { return h.Stats().Links == 0 }, 5*time.Second, 10*time.Millisecond)

	// One that answers stays.
	c = openRaw(t, addr, "echo.v1+json")
	c.hello()
	for range 3 {
		c.say(fmt.Sprintf(`{"t":"pong","n":%v}`, c.expect("ping")["n"]))
	}
}

func TestDrain(t *testing.T) {
	addr, h, _ := serve(t)
	var cs []*raw
	for range 20 {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		cs = append(cs, c)
	}
	const window = 600 * time.Millisecond
	begin := time.Now()
	done := make(chan error)
	go func() { done <- h.Drain(t.Context(), window) }()
	var mu sync.Mutex
	var ended []time.Duration
	var reading sync.WaitGroup
	for _, c := range cs {
		reading.Go(func() {
			assert.EqualValues(t, window.Milliseconds(), c.expect("drain")["within"])
			code, _ := c.closed()
			assert.Equal(t, 4001, code)
			c.frame(fin|opClose, "\x0f\xa1")
			mu.Lock()
			ended = append(ended, time.Since(begin))
			mu.Unlock()
		})
	}
	reading.Wait()
	require.NoError(t, <-done)
	for _, d := range ended {
		assert.Greater(t, d, window-50*time.Millisecond)
		assert.Less(t, d, window+300*time.Millisecond)
	}
	_, resp := request(t, addr, upgrade+"Sec-WebSocket-Protocol: echo.v1+json\r\n\r\n")
	assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	assert.NotEmpty(t, resp.Header.Get("Retry-After"))
}

// A client that does not read loses its link, and nobody else waits for it.
func TestStalledReader(t *testing.T) {
	addr, h, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"t","credit":1000000,"bytes":1000000000}`)
	c.expect("subok")
	good, err := wsstream.Dial(t.Context(), "ws://"+addr)
	require.NoError(t, err)
	defer good.Close()
	s, err := good.Subscribe(t.Context(), "t", transport.Options{})
	require.NoError(t, err)
	data := make([]byte, 64<<10)
	got := 0
	begin := time.Now()
	for time.Since(begin) < 10*time.Second && h.Stats().Links > 1 {
		_, err := mem.Send(t.Context(), "t", []transport.Message{{ID: "x", Data: data}})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		dst := make([]transport.Message, 10)
		n, err := s.Receive(ctx, dst)
		cancel()
		require.NoError(t, err)
		for i := range dst[:n] {
			s.(transport.Acker).Ack(t.Context(), []transport.Receipt{dst[i].Receipt()})
		}
		got += n
		time.Sleep(time.Millisecond)
	}
	assert.Equal(t, 1, h.Stats().Links)
	assert.Greater(t, got, 100)
}

// Nor does anybody wait where there are many, of both kinds.
func TestStalledReadersAmongMany(t *testing.T) {
	addr, _, mem := serve(t)
	const healthy, stalled = 100, 30
	var got [healthy]atomic.Int64
	read := 0
	for i := range healthy + stalled {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(`{"t":"sub","sid":1,"topic":"t","credit":1000000,"bytes":1000000000,"manual":true}`)
		c.expect("subok")
		if i%4 == 1 && i/4 < stalled {
			continue // and reads nothing
		}
		n := &got[read]
		read++
		c.SetDeadline(time.Time{})
		go func() {
			buf := make([]byte, 256<<10)
			for {
				k, err := c.r.Read(buf)
				if err != nil {
					return
				}
				n.Add(int64(k))
			}
		}()
	}
	const size = 32 << 10
	var worst time.Duration
	begin := time.Now()
	for i := 1; time.Since(begin) < 2500*time.Millisecond; i++ {
		sent := time.Now()
		sendSized(t, mem, "t", size, "x")
		for k := range got {
			for got[k].Load() < int64(i)*size && time.Since(sent) < 5*time.Second {
				time.Sleep(50 * time.Microsecond)
			}
		}
		worst = max(worst, time.Since(sent))
	}
	t.Logf("the last of %d was reached after %v at worst", healthy, worst)
	require.Less(t, worst, time.Second)
}

// What is sent to many is made once: what a message costs does not grow with
// the number of those who get it.
func TestDeliveriesAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	few, many := math.Inf(1), math.Inf(1)
	for range 2 { // the least, as what else goes on allocates too
		few, many = min(few, allocations(t, 50)), min(many, allocations(t, 550))
	}
	per := (many - few) / 500
	t.Logf("%.1f allocations for a message to 50 links, %.1f to 550: %.3f for a delivery", few, many, per)
	require.Less(t, per, 0.02)
}

// allocations is how many there are for a message to so many links.
func allocations(t *testing.T, links int) float64 {
	const rounds, each = 200, 8
	addr, _, mem := serve(t)
	var got atomic.Int64
	for range links {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(`{"t":"sub","sid":1,"topic":"t","credit":1000000,"bytes":1000000000,"manual":true}`)
		c.expect("subok")
		c.SetDeadline(time.Time{})
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := c.r.Read(buf)
				if err != nil {
					return
				}
				got.Add(int64(bytes.Count(buf[:n], []byte("x\"}\n")))) // at the end of each
			}
		}()
	}
	msgs := make([]transport.Message, each)
	for i := range msgs {
		msgs[i] = transport.Message{ID: "m", Time: time.Now(), Type: "text/plain", Data: bytes.Repeat([]byte("x"), 128)}
	}
	round := func(n int) {
		for ; n > 0; n-- {
			want := got.Load() + int64(links)*each
			_, err := mem.Send(t.Context(), "t", msgs)
			require.NoError(t, err)
			for deadline := time.Now().Add(20 * time.Millisecond); got.Load() < want && time.Now().Before(deadline); {
				time.Sleep(20 * time.Microsecond) // an end that was cut in two is not counted
			}
		}
	}
	round(20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	round(rounds)
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / (rounds * each)
}

// descriptors is how many the process has, where that can be seen.
func descriptors() int {
	files, _ := os.ReadDir("/proc/self/fd")
	return len(files)
}
