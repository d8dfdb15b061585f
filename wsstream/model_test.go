package wsstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// model is one client, as the specification wants one, of two nodes over one
// transport, and what it may rely on. It reads a topic "b", of which little is
// kept, and is a member of a group of topic "g".
type model struct {
	*rapid.T
	mem     *memstream.Transport
	nodes   [2]*httptest.Server
	handler [2]*wsstream.Handler
	revoked atomic.Bool // the right to both topics

	c       *raw
	at      int // node
	frames  chan object
	run     int // the subscription whose messages come
	session string
	rid     int

	sent map[string]int // by topic

	// Of the broadcast subscription.
	b struct {
		asked, open, gap bool // gap: some messages are lost, nobody knows how many
		next             int  // message
		pos              string
		credit           int
	}
	// Of the group.
	g struct {
		asked, open bool
		seen        int            // last delivery
		held        map[int]string // deliveries not settled
		under       map[int]asked  // settlements not answered, by rid
		acked       map[string]bool
		maybe       map[string]bool // acknowledged, whatever the answer
	}
}

// asked is a settlement of deliveries.
type asked struct {
	how string
	ns  []int
}

func newModel(t *rapid.T) *model {
	m := &model{T: t, mem: memstream.New(memstream.WithMaxMessages(40), memstream.WithFull(memstream.DropOldest)), sent: map[string]int{}}
	m.g.acked, m.g.maybe = map[string]bool{}, map[string]bool{}
	for i := range m.nodes {
		m.start(i)
	}
	m.forgetGroup()
	return m
}

func (m *model) start(i int) {
	m.handler[i] = wsstream.NewHandler(m.mem, wsstream.WithHold(30*time.Millisecond), wsstream.WithRing(10, 1<<20),
		wsstream.WithAuthorizer(func(context.Context, *http.Request, string) (*wsstream.Grant, error) {
			may := func() bool { return !m.revoked.Load() }
			return &wsstream.Grant{Subject: "me", Subscribe: func(string, string) bool { return may() }, Publish: func(string) bool { return may() }}, nil
		}))
	m.nodes[i] = httptest.NewServer(m.handler[i])
}

func (m *model) close() {
	m.cut()
	for i := range m.nodes {
		m.handler[i].Close()
		m.nodes[i].Close()
	}
	m.mem.Close()
}

// forgetGroup forgets what a session held.
func (m *model) forgetGroup() {
	m.g.open, m.g.seen, m.g.held, m.g.under = false, 0, map[int]string{}, map[int]asked{}
}

func (m *model) send(topic string, n int) {
	for range n {
		id := strconv.Itoa(m.sent[topic])
		m.sent[topic]++
		if _, err := m.mem.Send(context.Background(), topic, []transport.Message{{ID: id}}); err != nil {
			m.Fatal(err)
		}
	}
}

func (m *model) cut() {
	if m.c != nil {
		m.c.Conn.Close()
		m.c = nil
		for range m.frames { // until its reader is done
		}
	}
	m.b.asked, m.b.open = false, false
	m.g.asked, m.g.open = false, false
}

// connect opens a link to a node, and goes on with what there was.
func (m *model) connect(t testing.TB, node int) {
	m.cut()
	c := openRaw(t, m.nodes[node].Listener.Addr().String(), "echo.v1+json")
	c.say(fmt.Sprintf(`{"t":"hello","session":%q}`, m.session))
	welcome := c.expect("welcome")
	m.Logf("link to %d: %v", node, welcome)
	m.c, m.at, m.session = c, node, welcome["session"].(string)
	frames := make(chan object, 10_000)
	m.frames = frames
	go func() {
		defer close(frames)
		for _, f := range c.said {
			frames <- f
		}
		for {
			op, payload, err := c.read()
			if err != nil || op == opClose {
				c.Conn.Close()
				return
			}
			for line := range bytes.Lines(payload) {
				var f object
				if op == opText && json.Unmarshal(line, &f) == nil {
					frames <- f
				}
			}
		}
	}()
	resumed := welcome["resumed"] == true
	if !resumed {
		m.forgetGroup()
	}
	m.subscribe()
}

// subscribe asks for what is not subscribed.
func (m *model) subscribe() {
	if !m.b.asked {
		m.b.asked, m.b.credit = true, 5
		m.Logf("sub from %s", m.b.pos)
		from := `"from":"oldest"`
		if m.b.pos != "" {
			from = fmt.Sprintf(`"from":"pos","pos":%q`, m.b.pos)
		}
		m.c.say(fmt.Sprintf(`{"t":"sub","sid":1,"topic":"b",%s,"credit":5,"bytes":100000,"manual":true}`, from))
	}
	if !m.g.asked {
		m.g.asked = true
		m.c.say(fmt.Sprintf(`{"t":"sub","sid":2,"topic":"g","group":"g","credit":%d,"bytes":100000,"resumed":true,"seen":%d}`, max(0, 5-len(m.g.held)+m.unanswered()), m.g.seen))
	}
}

// unanswered is how many deliveries are to be settled, without an answer so far.
func (m *model) unanswered() (n int) {
	for _, a := range m.g.under {
		n += len(a.ns)
	}
	return n
}

// pump takes in what comes within some time.
func (m *model) pump(d time.Duration) {
	if m.c == nil {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case f, ok := <-m.frames:
			if !ok {
				m.cut()
				return
			}
			if f["t"] == "run" {
				m.run = number(f["sid"])
				continue
			}
			m.take(m.run, f)
		case <-timer.C:
			return
		}
	}
}

func number(v any) int {
	f, _ := v.(float64)
	return int(f)
}

// take checks a frame against what the specification says.
func (m *model) take(run int, f object) {
	m.Logf("of %d: %v", run, f)
	sid := number(f["sid"])
	switch f["t"] {
	case "subok":
		if sid == 1 {
			m.b.open = true
			if m.b.pos == "" {
				m.b.pos, m.b.gap = f["pos"].(string), true // the oldest may be any
			}
			return
		}
		if f["resumed"] != true {
			m.forgetGroup()
		}
		m.g.open = true
		for rid, a := range m.g.under { // whose answers were lost
			m.c.say(fmt.Sprintf(`{"t":%q,"rid":%d,"sid":2,"ns":%s,"again":true}`, a.how, rid, list(a.ns)))
		}
	case "msg":
		n, _ := strconv.Atoi(f["id"].(string))
		if run != 1 || !m.b.open || n < m.b.next || n > m.b.next && !m.b.gap {
			m.Fatalf("message %d, want %d (a gap: %t)", n, m.b.next, m.b.gap)
		}
		if m.b.credit--; m.b.credit < 0 {
			m.Fatalf("message %d without credit", n)
		}
		m.b.next, m.b.pos, m.b.gap = n+1, f["pos"].(string), false
	case "gap":
		if run != 1 {
			m.Fatalf("a gap in the group, which lost nothing: %v", f)
		}
		m.b.pos = f["pos"].(string)
		if n := number(f["count"]); n > 0 {
			m.b.next += n
		} else {
			m.b.gap = true
		}
	case "dlv":
		n, id := number(f["n"]), f["id"].(string)
		switch {
		case run != 2 || !m.g.open:
			m.Fatalf("delivery %d of no subscription", n)
		case n <= m.g.seen:
			m.Fatalf("delivery %d after %d", n, m.g.seen)
		case m.g.acked[id]:
			m.Fatalf("message %s was acknowledged, and comes again", id)
		case len(m.g.held)-m.unanswered() >= 5:
			m.Fatalf("%d deliveries are held, and more come", len(m.g.held))
		}
		m.g.seen = n
		m.g.held[n] = id
	case "ok":
		rid := number(f["rid"])
		gone, _ := f["ns"].([]any)
		for _, n := range m.g.under[rid].ns {
			if m.g.under[rid].how == "ack" && !slices.Contains(gone, any(float64(n))) {
				m.g.acked[m.g.held[n]] = true
			}
			delete(m.g.held, n)
		}
		delete(m.g.under, rid)
	case "subend", "err":
		switch {
		case sid == 1:
			m.b.asked, m.b.open = false, false
		case sid == 2:
			m.g.asked = false
			m.forgetGroup()
		}
	}
}

func list(ns []int) string { return strings.ReplaceAll(fmt.Sprint(ns), " ", ",") }

// settle acknowledges up to n deliveries, or gives them back.
func (m *model) settle(n int, how string) {
	if m.c == nil || !m.g.open {
		return
	}
	var ns []int
	for d := range m.g.held {
		busy := false
		for _, under := range m.g.under {
			busy = busy || slices.Contains(under.ns, d)
		}
		if len(ns) < n && !busy {
			ns = append(ns, d)
		}
	}
	if len(ns) == 0 {
		return
	}
	slices.Sort(ns)
	m.rid++
	m.g.under[m.rid] = asked{how, ns}
	for _, n := range ns {
		if how == "ack" {
			m.g.maybe[m.g.held[n]] = true
		}
	}
	m.c.say(fmt.Sprintf(`{"t":%q,"rid":%d,"sid":2,"ns":%s}`, how, m.rid, list(ns)))
}

func (m *model) flow(n int) {
	if m.c != nil && m.b.asked {
		m.b.credit += n
		m.c.say(fmt.Sprintf(`{"t":"flow","sid":1,"credit":%d,"bytes":1000}`, n))
	}
}

// Whatever happens, in whatever order, a client sees every message of a topic in
// order, or that it does not; and of a group all messages, none of them after it
// was acknowledged.
func TestInterleavings(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt)
		defer m.close()
		m.connect(t, 0)
		small := rapid.IntRange(1, 4)
		node := rapid.IntRange(0, 1)
		rt.Repeat(map[string]func(*rapid.T){
			"publish":         func(t *rapid.T) { m.send("b", small.Draw(t, "n")) },
			"publish much":    func(t *rapid.T) { m.send("b", 30) },
			"publish to both": func(t *rapid.T) { m.send("b", 1); m.send("g", min(2, 38-m.sent["g"])) },
			"read":            func(*rapid.T) { m.pump(time.Millisecond) },
			"read more":       func(*rapid.T) { m.pump(5 * time.Millisecond) },
			"ack":             func(t *rapid.T) { m.settle(small.Draw(t, "n"), "ack") },
			"nack":            func(t *rapid.T) { m.settle(1, "nack") },
			"credit":          func(t *rapid.T) { m.flow(small.Draw(t, "n")) },
			"cut":             func(*rapid.T) { m.cut() },
			"connect":         func(rt *rapid.T) { m.connect(t, node.Draw(rt, "node")) },
			"connect again":   func(*rapid.T) { m.connect(t, m.at) },
			"drain": func(rt *rapid.T) {
				i := node.Draw(rt, "node")
				m.handler[i].Drain(context.Background(), time.Millisecond)
				m.handler[i].Close()
				m.nodes[i].Close()
				m.start(i)
			},
			"revoke": func(*rapid.T) {
				m.revoked.Store(true)
				if m.c != nil {
					m.rid++
					m.c.say(fmt.Sprintf(`{"t":"auth","rid":%d,"token":"x"}`, m.rid))
				}
			},
			"grant": func(*rapid.T) {
				m.revoked.Store(false)
				if m.c != nil {
					m.pump(2 * time.Millisecond)
				}
				if m.c != nil {
					m.subscribe()
				}
			},
		})
		m.revoked.Store(false)
		if m.c == nil {
			m.connect(t, 0)
		}
		for deadline := time.Now().Add(5 * time.Second); m.b.next < m.sent["b"] || len(m.g.maybe) < m.sent["g"]; {
			m.pump(2 * time.Millisecond)
			if m.c == nil {
				m.connect(t, 0)
			}
			m.subscribe()
			m.settle(10, "ack")
			m.flow(10)
			if time.Now().After(deadline) {
				rt.Fatalf("at the end: message %d of %d, %d acknowledged of %d; %+v %+v\n%s", m.b.next, m.sent["b"], len(m.g.acked), m.sent["g"], m.b, m.g, m.handler[m.at].Dump())
			}
		}
	})
}
