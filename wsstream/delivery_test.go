package wsstream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// sendSized sends messages of some size.
func sendSized(t testing.TB, tr transport.Transport, topic string, size int, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := tr.Send(t.Context(), topic, []transport.Message{{ID: id, Time: time.Now(), Type: "text/plain", Data: bytes.Repeat([]byte("x"), size)}})
		require.NoError(t, err)
	}
}

func ids(n int) (s []string) {
	for i := range n {
		s = append(s, fmt.Sprint(i))
	}
	return s
}

// Settling gives back bytes, and with them comes what waited for them.
func TestGroupCreditInBytes(t *testing.T) {
	addr, _, mem := serve(t)
	sendSized(t, mem, "a", 2000, ids(3)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":10,"bytes":1000}`)
	for n := 1; n <= 3; n++ {
		require.EqualValues(t, n, c.expect("dlv")["n"])
		c.say(fmt.Sprintf(`{"t":"ack","rid":%d,"sid":1,"ns":[%d]}`, n, n))
		c.expect("ok")
	}
}

// A member takes no more from its group than its client has room for.
func TestGroupTakesWhatFits(t *testing.T) {
	addr, _, mem := serve(t)
	sendSized(t, mem, "a", 100, ids(5000)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":1000000,"bytes":1}`)
	c.expect("dlv")
	other := openRaw(t, addr, "echo.v1+json")
	other.hello()
	other.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":10000,"bytes":100000000}`)
	for range 4980 {
		other.expect("dlv")
	}
}

// Who is told where the topic begins is told what was lost before, whether
// somebody else reads it already or not.
func TestGapAtTheStart(t *testing.T) {
	mem := memstream.New(memstream.WithMaxMessages(5), memstream.WithFull(memstream.DropOldest))
	t.Cleanup(func() { mem.Close() })
	addr, _ := serveOver(t, mem)
	first := []transport.Message{{ID: "first"}}
	_, err := mem.Send(t.Context(), "a", first)
	require.NoError(t, err)
	send(t, mem, "a", ids(20)...)
	for range 3 {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(fmt.Sprintf(`{"t":"sub","sid":1,"topic":"a","from":"pos","pos":"%v","credit":10,"bytes":1000}`, first[0].Position))
		c.expect("subok")
		require.EqualValues(t, 15, c.expect("gap")["count"])
		for i := 15; i < 20; i++ {
			require.Equal(t, fmt.Sprint(i), c.expect("msg")["id"])
		}
	}
}

// A subscription that reads on its own until it meets what is kept for all may
// be held up right there, for as long as its client likes.
func TestSlowSubscriberMissesNothing(t *testing.T) {
	addr, _, mem := serve(t, wsstream.WithRing(10, 1<<20))
	other := openRaw(t, addr, "echo.v1+json")
	other.hello()
	other.say(`{"t":"sub","sid":1,"topic":"a","bytes":1000}`)
	other.expect("subok")
	send(t, mem, "a", ids(30)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","from":"oldest","credit":5,"bytes":100000,"manual":true}`)
	c.expect("subok")
	time.Sleep(300 * time.Millisecond)
	for i := 30; i < 100; i++ {
		send(t, mem, "a", fmt.Sprint(i))
	}
	time.Sleep(100 * time.Millisecond)
	c.say(`{"t":"flow","sid":1,"credit":1000,"bytes":100000}`)
	for i := range 100 {
		require.Equal(t, fmt.Sprint(i), c.expect("msg")["id"])
	}
}

// One number has one subscription: another under it ends the former.
func TestSubscriptionThatReplacesAnother(t *testing.T) {
	addr, h, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	before := runtime.NumGoroutine()
	for i := range 50 {
		c.say(fmt.Sprintf(`{"t":"sub","sid":1,"topic":"t%d","group":"g","credit":10,"bytes":1000,"resumed":true}`, i))
		c.expect("subok")
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() < before+10 }, 5*time.Second, 5*time.Millisecond, h.Dump())
	send(t, mem, "t0", "old")
	send(t, mem, "t49", "new")
	require.Equal(t, "new", c.expect("dlv")["id"])
}

func TestSubscriptionsTakeTurns(t *testing.T) {
	addr, _, mem := serve(t)
	sendSized(t, mem, "a", 1<<20, ids(40)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","from":"oldest","credit":1000000,"bytes":1000000000}`, `{"t":"sub","sid":2,"topic":"b","from":"oldest","credit":1000,"bytes":1000000}`)
	of := func() any { // reads a batch, and returns whose it is
		for {
			frames := c.hear()
			c.said = nil
			for _, f := range frames {
				if f["t"] == "run" {
					return f["sid"]
				}
			}
		}
	}
	require.EqualValues(t, 1, of())
	send(t, mem, "b", "x")
	time.Sleep(100 * time.Millisecond) // what was written meanwhile is in the buffers of the connection
	n := 0
	for of() != 2. {
		n++
	}
	require.Less(t, n, 30)
}

// What was acknowledged before is done before a subscription ends.
func TestAckBeforeUnsub(t *testing.T) {
	addr, _, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	for i := range 100 {
		topic := fmt.Sprint("t", i)
		send(t, mem, topic, "m")
		c.say(fmt.Sprintf(`{"t":"sub","sid":%d,"topic":"%s","group":"g","credit":10,"bytes":1000}`, i+1, topic))
		c.expect("dlv")
		c.say(fmt.Sprintf(`{"t":"ack","sid":%d,"ns":[1]}`, i+1), fmt.Sprintf(`{"t":"unsub","rid":%d,"sid":%d}`, i+1, i+1))
		c.expect("ok")
		sub, err := mem.Subscribe(t.Context(), topic, transport.Options{Group: "g"})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		n, _ := sub.Receive(ctx, make([]transport.Message, 1))
		cancel()
		require.Zero(t, n, "topic %d", i)
	}
}

// Credit that comes while the subscription is being opened is its.
func TestFlowRightAfterSub(t *testing.T) {
	addr, _, mem := serve(t)
	send(t, mem, "a", "1")
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","from":"oldest","manual":true}`, `{"t":"flow","sid":1,"credit":10,"bytes":1000}`,
		`{"t":"sub","sid":2,"topic":"a","group":"g","manual":true}`, `{"t":"flow","sid":2,"credit":10,"bytes":1000}`)
	c.expect("msg")
	c = openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":2,"topic":"a","group":"h","manual":true}`, `{"t":"flow","sid":2,"credit":10,"bytes":1000}`)
	c.expect("dlv")
	// And a number that was given up is free at once.
	c.say(`{"t":"sub","sid":3,"topic":"a"}`, `{"t":"unsub","rid":1,"sid":3}`, `{"t":"sub","sid":3,"topic":"a"}`)
	c.expect("ok")
	c.expect("subok")
}

// slow is a transport that takes its time to store.
type slow struct {
	transport.Transport
	takes time.Duration
	mu    sync.Mutex
	log   []string
}

func (s *slow) Unwrap() transport.Transport { return s.Transport }

func (s *slow) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	time.Sleep(s.takes)
	n, err := s.Transport.Send(ctx, topic, msgs)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range msgs[:n] {
		s.log = append(s.log, msgs[i].ID)
	}
	return n, err
}

// What waited to be published when its link broke is stored once, and in order,
// when the next link brings it again.
func TestRetriesOfWhatWaited(t *testing.T) {
	const n = 900
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	behind := &slow{Transport: mem, takes: 50 * time.Millisecond}
	addr, _ := serveOver(t, behind)
	at := time.Now().UTC().Format(time.RFC3339Nano)
	frames := func(from, to int, more string) (fs []string) {
		for i := from; i < to; i++ {
			fs = append(fs, fmt.Sprintf(`{"t":"pub","rid":%d,"topic":"t","id":"m%03d","time":"%s"%s}`, i+1, i, at, more))
		}
		return fs
	}
	for round := range 5 {
		behind.log = nil
		topic := fmt.Sprint("t", round)
		say := func(c *raw, from, to int, more string) {
			all := strings.ReplaceAll(strings.Join(frames(from, to, more), "\n"), `"topic":"t"`, `"topic":"`+topic+`"`)
			c.say(all)
		}
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		say(c, 0, 10, "")
		time.Sleep(5 * time.Millisecond)
		say(c, 10, n, "")
		time.Sleep(5 * time.Millisecond)
		c.Close()
		// Twice more, as the next link may break too.
		c = openRaw(t, addr, "echo.v1+json")
		c.hello()
		say(c, 0, n, `,"again":true`)
		time.Sleep(time.Duration(round) * 30 * time.Millisecond)
		c.Close()
		c = openRaw(t, addr, "echo.v1+json")
		c.hello()
		say(c, 0, n, `,"again":true`)
		for got := 0; got < n; {
			got += int(c.expect("pubok")["count"].(float64))
		}
		behind.mu.Lock()
		var want []string
		for i := range n {
			want = append(want, fmt.Sprintf("m%03d", i))
		}
		require.Equal(t, want, behind.log)
		behind.mu.Unlock()
	}
}

// A publish that is sent again while the first is still under way has the same outcome,
// or none that is known.
func TestRetryOfWhatIsUnderWay(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	behind := &slow{Transport: mem, takes: 300 * time.Millisecond}
	addr, _ := serveOver(t, behind)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"pub","rid":1,"topic":"t","id":"a","time":"2026-01-01T00:00:00Z"}`)
	time.Sleep(50 * time.Millisecond)
	c.Close()
	c = openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"pub","rid":2,"topic":"t","id":"a","time":"2026-01-01T00:00:00Z","again":true,"within":50}`)
	require.EqualValues(t, 305, c.expect("err")["code"])
	c.say(`{"t":"pub","rid":3,"topic":"t","id":"a","time":"2026-01-01T00:00:00Z","again":true}`)
	require.Equal(t, true, c.expect("pubok")["again"])
	require.Equal(t, []string{"a"}, behind.log)
}

// What was on its way on a link that broke, and comes after it was sent again on
// the next one, is stored already.
func TestOriginalAfterItsRetry(t *testing.T) {
	addr, _, mem := serve(t)
	late, c := openRaw(t, addr, "echo.v1+json"), openRaw(t, addr, "echo.v1+json")
	late.hello()
	c.hello()
	c.say(`{"t":"pub","rid":1,"topic":"t","id":"a","time":"2026-01-01T00:00:00Z","again":true}`)
	c.expect("pubok")
	late.say(`{"t":"pub","rid":1,"topic":"t","id":"a","time":"2026-01-01T00:00:00Z"}`)
	require.Equal(t, true, late.expect("pubok")["again"])
	require.Equal(t, 1, mem.Stats("t").Messages)
}

// A message's header cannot hide what it takes.
func TestHeaders(t *testing.T) {
	addr, _, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+bin")
	field := func(b []byte) []byte { return append(binary.AppendUvarint(nil, uint64(len(b))), b...) }
	c.frame(fin|opBinary, string(field([]byte{1})))
	_, _, err := c.read()
	require.NoError(t, err)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const names = 900_000
	for i := range 10 {
		body := []byte{18}
		body = binary.AppendUvarint(body, uint64(i+1))
		body = append(body, field([]byte("t"))...)
		body = append(body, field(fmt.Append(nil, "id", i))...)
		body = append(body, 0, 0, 0) // time, key, type
		body = binary.AppendUvarint(body, names)
		body = append(body, make([]byte, 2*names)...)
		c.frame(fin|opBinary, string(field(append(body, 0))))
		_, p, err := c.read()
		require.NoError(t, err)
		require.Contains(t, []byte{5, 19}, p[1], "%q", p[:min(len(p), 60)]) // err or pubok
	}
	require.Less(t, heap()-before, int64(20<<20))
	require.LessOrEqual(t, mem.Stats("t").Messages, 10)

	// Nor may it have any number of names.
	j := openRaw(t, addr, "echo.v1+json")
	j.hello()
	header := make([]string, 200)
	for i := range header {
		header[i] = fmt.Sprintf(`"h%d":"x"`, i)
	}
	j.say(`{"t":"pub","rid":1,"topic":"t","id":"x","header":{` + strings.Join(header, ",") + `}}`)
	require.EqualValues(t, 103, j.expect("err")["code"])
}

// A link whose session another has taken over has nothing to say any more.
func TestReplacedLinkIsNotHeard(t *testing.T) {
	addr, h, mem := serve(t, wsstream.WithHold(300*time.Millisecond))
	a := openRaw(t, addr, "echo.v1+json")
	session := a.hello()["session"]
	a.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":10,"bytes":1000}`)
	a.expect("subok")
	a.say(`{"t":"sub","sid":2,"topic":"big","credit":1000,"bytes":100000000}`)
	a.expect("subok")
	sendSized(t, mem, "big", 1<<20, ids(30)...) // which a does not read, so it cannot be told at once
	time.Sleep(100 * time.Millisecond)
	b := openRaw(t, addr, "echo.v1+json")
	b.say(fmt.Sprintf(`{"t":"hello","session":%q}`, session))
	require.Equal(t, true, b.expect("welcome")["resumed"])
	b.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":10,"bytes":1000,"resumed":true}`)
	require.Equal(t, true, b.expect("subok")["resumed"])
	a.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":10,"bytes":1000,"resumed":true}`)
	a.say(`{"t":"pub","rid":1,"topic":"a","id":"not this"}`)
	a.say(`{"t":"bye"}`)
	time.Sleep(100 * time.Millisecond)
	send(t, mem, "a", "x")
	require.Equal(t, "x", b.expect("dlv")["id"])
	require.Equal(t, 1, h.Stats().Sessions)
	b.Close()
	a.Close()
	require.Eventually(t, func() bool { return h.Stats().Sessions == 0 }, 5*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool {
		buf := make([]byte, 1<<20)
		return !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "groupSub).receive")
	}, 5*time.Second, 10*time.Millisecond)
}

// A stream of events that opens while the server goes away is not forgotten.
func TestEventsDuringADrain(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	in := make(chan struct{})
	h := wsstream.NewHandler(mem, wsstream.WithAuthorizer(func(context.Context, *http.Request, string) (*wsstream.Grant, error) {
		close(in)
		time.Sleep(200 * time.Millisecond)
		return wsstream.Everything("x"), nil
	}))
	s := httptest.NewServer(h.Events())
	defer s.Close()
	status := make(chan int)
	go func() {
		resp, err := http.Get(s.URL + "/?topic=a&from=oldest")
		if assert.NoError(t, err) {
			resp.Body.Close()
			status <- resp.StatusCode
		}
	}()
	<-in
	require.NoError(t, h.Drain(t.Context(), 50*time.Millisecond))
	require.Equal(t, http.StatusServiceUnavailable, <-status)
	require.NoError(t, h.Close())
}

// dead is a transport whose subscriptions from a position get nothing, as when
// its server is gone.
type dead struct{ transport.Transport }

func (d dead) Unwrap() transport.Transport { return d.Transport }

func (d dead) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	s, err := d.Transport.Subscribe(ctx, topic, o)
	if err == nil && o.Start.From == transport.AfterPosition {
		s = deadSub{s}
	}
	return s, err
}

type deadSub struct{ transport.Subscription }

func (d deadSub) Unwrap() transport.Subscription { return d.Subscription }

func (d deadSub) Receive(ctx context.Context, _ []transport.Message) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// Close waits for nothing that will not come.
func TestCloseWhileATopicIsReadBack(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	h := wsstream.NewHandler(dead{mem}, wsstream.WithAnonymous(wsstream.Everything("")))
	s := httptest.NewServer(h)
	defer s.Close()
	m := []transport.Message{{ID: "1"}, {ID: "2"}}
	_, err := mem.Send(t.Context(), "a", m)
	require.NoError(t, err)
	c := openRaw(t, s.Listener.Addr().String(), "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","bytes":1000}`)
	c.expect("subok")
	c.say(fmt.Sprintf(`{"t":"sub","sid":2,"topic":"a","from":"pos","pos":"%v","credit":10,"bytes":1000}`, m[0].Position))
	time.Sleep(200 * time.Millisecond)
	c.Close()
	begin := time.Now()
	require.NoError(t, h.Close())
	require.Less(t, time.Since(begin), time.Second)
}

// Settlements that fail are not done, and those that are late are told together.
func TestSettlementsThatFail(t *testing.T) {
	addr, _, mem := serve(t)
	const n = 2000
	send(t, mem, "a", ids(n)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":100000,"bytes":10000000,"lease":50,"manual":true}`)
	for range n {
		c.expect("dlv")
	}
	time.Sleep(100 * time.Millisecond)
	ns := make([]string, 0, 2*n)
	for i := range n {
		ns = append(ns, fmt.Sprint(i+1), fmt.Sprint(i+1))
	}
	c.said = nil
	c.say(fmt.Sprintf(`{"t":"ack","rid":1,"sid":1,"ns":[%s]}`, strings.Join(ns, ",")))
	gone := c.expect("ok")["ns"].([]any)
	require.GreaterOrEqual(t, len(gone), n)
	// More than anybody can hold is too much.
	c.say(fmt.Sprintf(`{"t":"extend","rid":2,"sid":1,"ns":[%s1]}`, strings.Repeat("1,", 300_000)))
	code, _ := c.closed()
	require.Equal(t, 4302, code)
}

// An acknowledgement that the transport did not take may be sent again, and the
// credit comes back once.
func TestAckThatFails(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	f := &failing{Transport: mem}
	addr, _ := serveOver(t, f)
	send(t, mem, "a", ids(5)...)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"a","group":"g","credit":1,"bytes":100000}`)
	c.expect("dlv")
	f.fails = 3
	for rid := 1; rid <= 3; rid++ {
		c.say(fmt.Sprintf(`{"t":"ack","rid":%d,"sid":1,"ns":[1]}`, rid))
		require.EqualValues(t, 502, c.expect("err")["code"])
	}
	c.say(`{"t":"ack","rid":4,"sid":1,"ns":[1]}`)
	require.NotContains(t, c.expect("ok"), "ns")
	require.EqualValues(t, 2, c.expect("dlv")["n"])
	c.say(`{"t":"ack","rid":5,"sid":1,"ns":[1],"again":true}`)
	require.NotContains(t, c.expect("ok"), "ns")
	c.say(`{"t":"ping","n":1}`)
	for f := range bytes.Lines(fmt.Append(nil, c.expect("pong"), c.said)) {
		require.NotContains(t, string(f), "dlv", "credit came back once")
	}
}

// failing is a transport that does not take so many acknowledgements.
type failing struct {
	transport.Transport
	fails int
}

func (f *failing) Unwrap() transport.Transport { return f.Transport }

func (f *failing) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	s, err := f.Transport.Subscribe(ctx, topic, o)
	return failingSub{s, f}, err
}

type failingSub struct {
	transport.Subscription
	f *failing
}

func (s failingSub) Unwrap() transport.Subscription { return s.Subscription }

func (s failingSub) Ack(ctx context.Context, rs []transport.Receipt) error {
	if s.f.fails > 0 {
		s.f.fails--
		return errors.New("not now")
	}
	a, _ := transport.As[transport.Acker](s.Subscription)
	return a.Ack(ctx, rs)
}
