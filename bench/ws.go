package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/lxzan/gws"
	"github.com/olahol/melody"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// wsSuite compares servers of WebSocket links, over TCP on the loopback interface.
var wsSuite = suite{
	name:    "ws",
	page:    "performance-websocket.md",
	title:   "Performance over WebSocket",
	heading: "Over WebSocket",
	chart:   "Time per message, to 1,000 sockets",
	peers: []peer{
		{"gws", "github.com/lxzan/gws"},
		{"coder/websocket", "github.com/coder/websocket"},
		{"melody", "github.com/olahol/melody"},
		{"gorilla/websocket", "github.com/gorilla/websocket"},
	},
	quick:   plan{rounds: 7, round: 400 * time.Millisecond, pace: 2 * time.Second, budget: 60 * time.Second},
	full:    plan{rounds: 15, round: time.Second, pace: 10 * time.Second, budget: 5 * time.Minute},
	measure: measureWS,
	method:  func(p plan) string { return fmt.Sprintf(wsMethodText, p.rounds, p.round.Milliseconds()) },
}

const (
	wsSockets = 1000
	wsPayload = 128
	wsWindow  = 16 // messages that not everybody has yet
)

// measureWS runs the suite and fills in the report.
func measureWS(w io.Writer, r *report) error {
	fanOut := func(name string, open func([]handler) (session, error)) contender {
		return contender{name: name, window: wsWindow, few: 200, open: open}
	}
	ours := fanOut("echo", openHub)
	cases := []comparison{
		{"ws/fanout1000/gws", "1,000 sockets that read one topic, 16 messages under way", task{subscribers: wsSockets}, ours, fanOut("gws", openGWS)},
		{"ws/fanout1000/naive", "the same", task{subscribers: wsSockets}, ours, fanOut("a loop of writes", openNaive)},
		{"ws/fanout1000/chat", "the same", task{subscribers: wsSockets}, ours, fanOut("a queue per socket", openChat)},
		{"ws/fanout1000/melody", "the same", task{subscribers: wsSockets}, ours, fanOut("melody", openMelody)},
		{
			"ws/publish64/rtt", "64 publishes under way on one link, each with its receipt",
			task{publishers: 64},
			contender{name: "echo", open: openReceipts}, contender{name: "an echo server", open: openEchoServer},
		},
	}
	p := r.plan
	step := &steps{w: w, n: len(cases) + 2, begin: time.Now(), budget: p.budget}
	for _, c := range cases {
		res, err := c.measure(p.rounds, p.round, step.next(c.name))
		if err != nil {
			return err
		}
		r.results = append(r.results, res)
	}
	step.next("latency")
	ls, err := lastOnes(p.pace, []contender{cases[0].ours, cases[0].peer, cases[1].peer, cases[2].peer, cases[3].peer})
	if err != nil {
		return err
	}
	r.sections = append(r.sections, section{
		heading: "Latency", caption: "Latency, until the last of 1,000 idle sockets has a message", text: wsLatencyText, table: lastTable(ls),
	})
	step.next("slow readers")
	if ls, err = lameLatency(p.pace); err != nil {
		return err
	}
	r.sections = append(r.sections, section{
		heading: "Slow readers", caption: "Latency, until the last healthy socket has a message", text: wsLameText, table: lastTable(ls),
	})
	r.lines = append(r.lines, fmt.Sprintf("SLOW p99 %.2f", float64(ls[1].p99)/float64(ls[0].p99)))
	return nil
}

// last is how long it takes until every socket has a message.
type last struct {
	name     string
	p50, p99 time.Duration
	messages int
}

// lastOnes measures it for each contender, by turns, in all for so long each.
func lastOnes(d time.Duration, cs []contender) ([]last, error) {
	times := make([][]time.Duration, len(cs))
	for range turns {
		for i, c := range cs {
			s, err := c.open(slices.Repeat([]handler{check}, wsSockets))
			if err != nil {
				return nil, err
			}
			runtime.GC()
			for k, begin := 0, time.Now(); time.Since(begin) < d/turns || k < 10; k++ {
				time.Sleep(10 * time.Millisecond) // all is idle again
				want := s.total() + wsSockets
				sent := time.Now()
				if err := s.publish(sample); err != nil {
					return nil, err
				}
				if err := await(s, want); err != nil {
					return nil, fmt.Errorf("latency of %s: %w", c.name, err)
				}
				if k > 0 {
					times[i] = append(times[i], time.Since(sent))
				}
			}
			if err := s.close(); err != nil {
				return nil, err
			}
		}
	}
	ls := make([]last, len(cs))
	for i, ts := range times {
		slices.Sort(ts)
		ls[i] = last{cs[i].name, percentile(ts, 50), percentile(ts, 99), len(ts)}
	}
	return ls, nil
}

func lastTable(ls []last) table {
	t := table{head: []string{"who", "p50 µs", "p99 µs", "messages"}}
	for _, l := range ls {
		t.rows = append(t.rows, []string{
			l.name, grouped(float64(l.p50.Microseconds())), grouped(float64(l.p99.Microseconds())), grouped(float64(l.messages)),
		})
	}
	return t
}

// lameLatency is that of healthy sockets, alone and among others that are slow
// or do not read at all.
func lameLatency(d time.Duration) ([]last, error) {
	const stalled, slow = 10, 100
	payload := bytes.Repeat([]byte("x"), 8<<10) // so that buffers do fill
	who := []string{"1,000 healthy sockets", "890 of them, 100 slow, 10 stalled"}
	times := make([][]time.Duration, len(who))
	for range turns {
		for i := range who {
			lame := 0
			if i == 1 {
				lame = stalled + slow
			}
			s, err := openHub(make([]handler, wsSockets-lame))
			if err != nil {
				return nil, err
			}
			f := s.(*fan)
			others, err := dialSockets(f.addr, lame, "echo.v1+bin", greeting(), true, func(i int) time.Duration {
				if i < stalled {
					return time.Hour
				}
				return 20 * time.Millisecond // before each read of 4 KiB
			})
			if err != nil {
				return nil, err
			}
			for begin := time.Now(); time.Since(begin) < d/turns+2*time.Second; {
				want := f.total() + int64(wsSockets-lame)
				sent := time.Now()
				if err := f.send(payload); err != nil {
					return nil, err
				}
				if err := await(f, want); err != nil {
					return nil, err
				}
				if time.Since(begin) > 2*time.Second { // the lame are known by now
					times[i] = append(times[i], time.Since(sent))
				}
				time.Sleep(5 * time.Millisecond)
			}
			others.close()
			if err := f.close(); err != nil {
				return nil, err
			}
		}
	}
	ls := make([]last, len(who))
	for i, ts := range times {
		slices.Sort(ts)
		ls[i] = last{who[i], percentile(ts, 50), percentile(ts, 99), len(ts)}
	}
	return ls, nil
}

// sockets are clients that read as little as can be read, so that the server
// is what is measured: they count messages, and look at nothing else.
type sockets struct {
	conns   []net.Conn
	count   atomic.Int64
	reading sync.WaitGroup
	ended   chan struct{}
}

// dialSockets opens n sockets. greet, if not nil, says what is to be said
// first; frames tells that a message is a batch of echo's frames; lame, if
// there, how long each socket waits before it reads a little.
func dialSockets(addr string, n int, protocol string, greet []byte, frames bool, lame ...func(i int) time.Duration) (*sockets, error) {
	s := &sockets{ended: make(chan struct{})}
	for i := range n {
		c, err := dialSocket(addr, protocol)
		if err != nil {
			s.close()
			return nil, err
		}
		if greet != nil {
			if _, err := c.Write(greet); err != nil {
				return nil, err
			}
		}
		s.conns = append(s.conns, c)
		var pause time.Duration
		if len(lame) > 0 {
			pause = lame[0](i)
		}
		s.reading.Go(func() { s.read(c, frames, pause) })
	}
	return s, nil
}

func dialSocket(addr, protocol string) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	key := base64.StdEncoding.EncodeToString(make([]byte, 16))
	if protocol != "" {
		protocol = "Sec-WebSocket-Protocol: " + protocol + "\r\n"
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s\r\n", addr, key, protocol)
	one := make([]byte, 1) // the server speaks when it is spoken to: nothing follows the response
	end := 0
	for end < 4 {
		if _, err := c.Read(one); err != nil {
			return nil, err
		}
		if one[0] == "\r\n\r\n"[end] {
			end++
		} else if one[0] == '\r' {
			end = 1
		} else {
			end = 0
		}
	}
	return c, nil
}

func (s *sockets) close() {
	close(s.ended)
	for _, c := range s.conns {
		c.Close()
	}
	s.reading.Wait()
}

var readBuffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

// read counts messages until the socket is closed.
func (s *sockets) read(c net.Conn, frames bool, pause time.Duration) {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	p := parser{frames: frames}
	for {
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-s.ended:
				return
			}
			if n, err := c.Read((*buf)[:4096]); err != nil || n == 0 {
				return
			}
			continue
		}
		n, err := c.Read(*buf)
		if err != nil {
			return
		}
		if k := p.count((*buf)[:n]); k > 0 {
			s.count.Add(int64(k))
		}
	}
}

// parser counts the messages in a stream of WebSocket frames that are not
// masked: data frames, or the frames of echo's binary form in them that carry a
// message.
type parser struct {
	frames bool
	head   [10]byte // of a WebSocket frame, as far as it came
	have   int
	left   int  // bytes of the payload to come
	data   bool // it is a data frame's
	// Of echo's frames.
	length uint64
	shift  uint
	inside uint64 // bytes of the frame to come
	typed  bool   // its type came
}

func (p *parser) count(b []byte) (n int) {
	for len(b) > 0 {
		if p.left == 0 {
			p.head[p.have] = b[0]
			p.have++
			b = b[1:]
			if p.have < 2 {
				continue
			}
			length, size := int(p.head[1]&0x7f), 2
			switch {
			case length == 126:
				size = 4
				length = int(binary.BigEndian.Uint16(p.head[2:]))
			case length == 127:
				size = 10
				length = int(binary.BigEndian.Uint64(p.head[2:]))
			}
			if p.have < size {
				continue
			}
			p.have, p.left = 0, length
			if p.data = p.head[0]&0xf <= 2; p.data && !p.frames {
				n++
			}
			continue
		}
		k := min(p.left, len(b))
		if p.frames && p.data {
			n += p.inner(b[:k])
		}
		p.left -= k
		b = b[k:]
	}
	return n
}

// inner counts frames of echo's that are messages.
func (p *parser) inner(b []byte) (n int) {
	const msg = 11
	for len(b) > 0 {
		if p.inside > 0 {
			if !p.typed {
				p.typed = true
				if b[0] == msg {
					n++
				}
			}
			k := min(p.inside, uint64(len(b)))
			p.inside -= k
			b = b[k:]
			continue
		}
		p.length |= uint64(b[0]&0x7f) << p.shift
		p.shift += 7
		if b[0] < 0x80 {
			p.inside, p.typed = p.length, false
			p.length, p.shift = 0, 0
		}
		b = b[1:]
	}
	return n
}

// fan is a server of sockets, to which publish sends a payload.
type fan struct {
	*sockets
	addr string
	send func([]byte) error
	end  func()
}

var wsData = func() []byte {
	b := make([]byte, wsPayload)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return b
}()

func (f *fan) publish(order) error { return f.send(wsData) }
func (f *fan) total() int64        { return f.count.Load() }
func (f *fan) close() error {
	f.sockets.close()
	f.end()
	return nil
}

// serve starts a server on a free port.
func serve(h http.Handler) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	return l.Addr().String(), func() { s.Close() }, nil
}

// openHub is a handler over a transport in memory.
func openHub(hs []handler) (session, error) {
	mem := memstream.New()
	h := wsstream.NewHandler(mem)
	addr, stop, err := serve(h)
	if err != nil {
		return nil, err
	}
	s, err := dialSockets(addr, len(hs), "echo.v1+bin", greeting(), true)
	if err != nil {
		return nil, err
	}
	for h.Stats().Opened < uint64(len(hs)) {
		time.Sleep(time.Millisecond)
	}
	msg := []transport.Message{{ID: "m", Time: time.Now(), Type: "text/plain"}}
	ctx := context.Background()
	f := &fan{sockets: s, addr: addr, send: func(data []byte) error {
		msg[0].Data = data
		_, err := mem.Send(ctx, "t", msg)
		return err
	}, end: func() {
		h.Close()
		stop()
		mem.Close()
	}}
	for s.count.Load() < int64(len(hs)) { // until all are subscribed
		before := s.count.Load()
		if err := f.send(wsData); err != nil {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
		if s.count.Load()-before == int64(len(hs)) {
			break
		}
	}
	return f, nil
}

// greeting opens a link and subscribes to topic t, with credit without end.
func greeting() []byte {
	hello := []byte{1, 1}
	sub := []byte{6, 1, 1, 't', 0, 2, 0, 0, 0, 0, 0}
	sub = binary.AppendUvarint(sub, 1<<40)
	sub = binary.AppendUvarint(sub, 1<<40)
	sub = append(sub, 1)
	return append(masked(hello), masked(append([]byte{byte(len(sub))}, sub...))...)
}

// masked is a binary WebSocket message of a client.
func masked(b []byte) []byte {
	return append([]byte{0x82, 0x80 | byte(len(b)), 0, 0, 0, 0}, b...)
}

// openGWS is a Broadcaster of gws, as its documentation shows it.
func openGWS(hs []handler) (session, error) {
	var mu sync.Mutex
	var conns []*gws.Conn
	up := gws.NewUpgrader(&gws.BuiltinEventHandler{}, &gws.ServerOption{})
	addr, stop, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r)
		if err != nil {
			return
		}
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		go c.ReadLoop()
	}))
	if err != nil {
		return nil, err
	}
	s, err := dialSockets(addr, len(hs), "", nil, false)
	if err != nil {
		return nil, err
	}
	until(&mu, func() bool { return len(conns) == len(hs) })
	return &fan{sockets: s, send: func(data []byte) error {
		b := gws.NewBroadcaster(gws.OpcodeText, data)
		defer b.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			if err := b.Broadcast(c); err != nil {
				return err
			}
		}
		return nil
	}, end: func() {
		stop()
		for _, c := range conns {
			c.NetConn().Close()
		}
	}}, nil
}

// openNaive writes a message to one socket after the other, as one does at first.
func openNaive(hs []handler) (session, error) { return openCoder(hs, 0) }

// openChat has a goroutine and a queue for each socket, as the chat among the
// examples of coder/websocket does.
func openChat(hs []handler) (session, error) { return openCoder(hs, wsWindow) }

func openCoder(hs []handler, queue int) (session, error) {
	var mu sync.Mutex
	var writes []func([]byte) error
	ends := make(chan struct{})
	addr, stop, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.CloseRead(context.Background())
		q := make(chan []byte, queue)
		write := func(b []byte) error { return c.Write(context.Background(), websocket.MessageText, b) }
		put := func(b []byte) error {
			q <- b
			return nil
		}
		if queue == 0 {
			put = write
		}
		mu.Lock()
		writes = append(writes, put)
		mu.Unlock()
		for {
			select {
			case b := <-q:
				if write(b) != nil {
					return
				}
			case <-ends:
				return
			}
		}
	}))
	if err != nil {
		return nil, err
	}
	s, err := dialSockets(addr, len(hs), "", nil, false)
	if err != nil {
		return nil, err
	}
	until(&mu, func() bool { return len(writes) == len(hs) })
	return &fan{sockets: s, send: func(data []byte) error {
		for _, write := range writes {
			if err := write(data); err != nil {
				return err
			}
		}
		return nil
	}, end: func() {
		close(ends)
		stop()
	}}, nil
}

// until waits for what mu guards.
func until(mu *sync.Mutex, ready func() bool) {
	for {
		mu.Lock()
		ok := ready()
		mu.Unlock()
		if ok {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// openMelody is melody's Broadcast.
func openMelody(hs []handler) (session, error) {
	m := melody.New()
	addr, stop, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.HandleRequest(w, r) }))
	if err != nil {
		return nil, err
	}
	s, err := dialSockets(addr, len(hs), "", nil, false)
	if err != nil {
		return nil, err
	}
	for m.Len() < len(hs) {
		time.Sleep(time.Millisecond)
	}
	return &fan{sockets: s, send: m.Broadcast, end: func() {
		m.Close()
		stop()
	}}, nil
}

// openReceipts publishes through a client to a handler over memory.
func openReceipts([]handler) (session, error) {
	mem := memstream.New()
	h := wsstream.NewHandler(mem, wsstream.WithAnonymous(wsstream.Everything("")))
	addr, stop, err := serve(h)
	if err != nil {
		return nil, err
	}
	tr, err := wsstream.Dial(context.Background(), "ws://"+addr)
	if err != nil {
		return nil, err
	}
	bus := echo.New(echo.WithTransport(tr))
	return &receipts{producer: echo.NewProducer(bus, echo.NewTopic[order]("orders")), end: func() error {
		_, err := bus.Close(context.Background())
		h.Close()
		stop()
		mem.Close()
		return err
	}}, nil
}

type receipts struct {
	producer *echo.Producer[order]
	end      func() error
}

func (r *receipts) publish(o order) error { return r.producer.Publish(context.Background(), o) }
func (r *receipts) total() int64          { return 0 }
func (r *receipts) close() error          { return r.end() }

// openEchoServer is a server that sends back what it gets, and a client that
// awaits the answer to each message.
func openEchoServer([]handler) (session, error) {
	addr, stop, err := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			typ, b, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), typ, b) != nil {
				return
			}
		}
	}))
	if err != nil {
		return nil, err
	}
	c, _, err := websocket.Dial(context.Background(), "ws://"+addr, nil)
	if err != nil {
		return nil, err
	}
	e := &echoes{c: c, stop: stop, answers: make(chan struct{}, 64), done: make(chan struct{})}
	go func() {
		defer close(e.done)
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				return
			}
			e.answers <- struct{}{}
		}
	}()
	return e, nil
}

type echoes struct {
	c       *websocket.Conn
	stop    func()
	answers chan struct{}
	done    chan struct{}
}

func (e *echoes) publish(order) error {
	if err := e.c.Write(context.Background(), websocket.MessageText, wsData); err != nil {
		return err
	}
	select {
	case <-e.answers:
		return nil
	case <-e.done:
		return errors.New("the echo server is gone")
	}
}

func (e *echoes) total() int64 { return 0 }
func (e *echoes) close() error {
	e.c.CloseNow()
	<-e.done
	e.stop()
	return nil
}

const wsMethodText = `- Server and clients are one process on one machine, over TCP on the loopback
  interface. The 1,000 clients are plain TCP connections whose goroutines read
  into a buffer and count messages; they decode nothing. What they cost is part
  of both sides' time.
- A message is the same 128 bytes for everybody, sent when at most 16 others are
  not with every socket yet, and counts when every socket has it. The time is per
  message, to all sockets.
- echo publishes to a transport in memory that a handler serves, in the binary
  form, to clients with credit without end. Its messages carry ID, time, type and
  position besides. What waits for a socket goes in one WebSocket message.
- gws is its Broadcaster. "A loop of writes" is a Write of coder/websocket to one
  socket after the other; "a queue per socket" has a goroutine and a queue of 16
  for each, as the chat among that library's examples does. melody is its
  Broadcast, on gorilla/websocket.
- With 64 publishers, echo's are goroutines that each await the receipt of their
  own publish, encoded as JSON, through one client. The echo server sends back
  what it gets on one link, raw, with as many messages under way.
- There are up to %d rounds of about %d ms of each side, by turns, each with new
  links, a warm-up and a garbage collection before. The ratio is the median of the
  rounds' ratios.
`

const wsLatencyText = `One message every 10 ms and more to 1,000 sockets that are idle: how long it takes
until the last one has it.

`

const wsLameText = `The same with 8 KiB each, to echo's handler alone: how long it takes until the last
healthy socket has a message, when all are healthy, and when 100 of 1,000 read 4 KiB
every 20 ms and 10 do not read at all. Those are given up after some seconds.

`
