package wsstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/echobus/echo/transport"
)

// conn is a client at the server: a link, or a stream of events.
type conn struct {
	h      *Handler
	codec  codec
	out    *outlet
	left   chan struct{}                      // closed when it is to end: nothing is done for it any more
	done   chan struct{}                      // closed when nothing is read any more
	cut    func()                             // ends it without a word
	part   func(websocket.StatusCode, string) // ends it with a code; it may take closeGrace
	ws     *websocket.Conn                    // nil for a stream
	link   *link                              // nil for a stream
	stream bool                               // the client says nothing and takes what it is sent

	token   string        // offered beside the hello
	request *http.Request // that opened the link
	place   netip.Prefix  // where from, if that is counted

	// Set before others know of it.
	session *session
	subject string
	counted bool // among the links of its subject; the handler's lock guards it

	heard atomic.Int64 // when something last came, in Unix nanoseconds
	began atomic.Int64 // when the message began that is coming; 0 when none is
	away  atomic.Bool  // nothing is read for now, as enough came
	frees time.Time    // when the frames so far are paid for, under a rate; of serve
	bye   bool         // the client said so; of serve

	closing sync.Once
	leave   sync.Once
	work    sync.WaitGroup // goroutines of this link

	mu       sync.Mutex // guards the rest
	grant    *Grant     // serve alone writes it
	tails    map[uint64]*tail
	opening  map[uint64]*pending // subscriptions under way, by number
	pubs     publishing
	inspects atomic.Int32 // questions under way
	errors   int          // as they weigh
	forgave  time.Time
	pinged   time.Time
	over     bool
}

// pending is a subscription under way, and what credit it has meanwhile. The
// link's lock guards it.
type pending struct {
	credit, bytes int
	once          bool
}

func newConn(h *Handler, ws *websocket.Conn, l *link, c codec) *conn {
	opcode := byte(websocket.MessageText)
	if _, ok := c.(binaryCodec); ok {
		opcode = byte(websocket.MessageBinary)
	}
	s := &conn{h: h, ws: ws, link: l, cut: func() { l.Conn.Close() }}
	s.part = func(code websocket.StatusCode, reason string) { ws.Close(code, reason) }
	s.init(c, func(b []byte) error { return l.writeMessage(b, opcode) })
	l.heard = &s.heard
	return s
}

func (c *conn) init(form codec, write func([]byte) error) {
	c.codec = form
	c.left, c.done = make(chan struct{}), make(chan struct{})
	c.heard.Store(time.Now().UnixNano())
	c.out = newOutlet(form, write, c.fail)
	c.pubs.c = c
}

// leaving reports whether it is to end.
func (c *conn) leaving() bool {
	select {
	case <-c.left:
		return true
	default:
		return false
	}
}

// fail gives the link up without a word.
func (c *conn) fail(error) {
	c.leave.Do(func() { close(c.left) })
	c.cut()
}

// close stops to do anything for the client, says good-bye with a code after
// the frames that wait to be written, and ends the link. It does not wait.
func (c *conn) close(code websocket.StatusCode, reason string) {
	c.closing.Do(func() {
		if why := streamEnds[code]; c.stream && why != 0 {
			c.out.send(frame{Type: frameErr, Code: why})
		}
		c.leave.Do(func() { close(c.left) })
		c.spawn(func() {
			t := time.AfterFunc(c.h.cfg.stall+closeGrace, c.cut)
			defer t.Stop()
			c.out.drain()
			c.out.close()
			t.Reset(closeGrace)
			c.part(code, reason)
		})
	})
}

// streamEnds says in a frame what streams, which have no close codes, could not
// know otherwise.
var streamEnds = map[websocket.StatusCode]Code{closeDrain: CodeShuttingDown, closeRevoked: CodeBadToken}

// spawn runs f in a goroutine that the link's end waits for.
func (c *conn) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	c.work.Go(f)
	return true
}

var scratch = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// serve reads until the link ends.
func (c *conn) serve() {
	defer c.end()
	hello := false
	for {
		typ, r, err := c.ws.Reader(context.Background())
		if err != nil {
			return
		}
		c.began.Store(time.Now().UnixNano())
		buf := scratch.Get().(*bytes.Buffer)
		buf.Reset()
		_, err = buf.ReadFrom(r)
		c.began.Store(0)
		c.heard.Store(time.Now().UnixNano())
		if err != nil {
			return
		}
		_, binary := c.codec.(binaryCodec)
		switch {
		case binary != (typ == websocket.MessageBinary):
			c.close(closeBadProtocol, "text and binary messages are mixed up")
			return
		case c.leaving() || c.bye:
		case !hello:
			hello = true
			if !c.hello(buf.Bytes()) {
				return
			}
		case !c.batch(buf.Bytes()):
			return
		}
		if buf.Cap() <= 4*batchBytes {
			scratch.Put(buf)
		}
	}
}

// hello opens the link, and reports whether it did.
func (c *conn) hello(batch []byte) bool {
	var f frame
	rest, err := c.codec.next(batch, &f)
	if err != nil || f.Type != frameHello {
		c.reject(CodeBadFrame, "the first frame must be a hello", closeBadProtocol)
		return false
	}
	token := c.token
	if f.Token != "" {
		if token != "" {
			c.reject(CodeBadToken, "", closeBadToken)
			return false
		}
		token = f.Token
	}
	c.token = ""
	kicks := c.h.kicked()
	ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.hello)
	g, code := c.h.authorize(ctx, c.request, token)
	cancel()
	if g == nil {
		c.reject(code, "", closeBadToken)
		return false
	}
	session := c.h.resume(f.Session, g.Subject)
	var old *conn
	resumed := false
	if session != nil {
		old, resumed = session.attach(c)
	}
	if !resumed {
		session = c.h.newSession(g.Subject, c)
	}
	c.mu.Lock()
	c.grant, c.session, c.subject = g, session, g.Subject
	c.mu.Unlock()
	if code, status := c.h.opened(c, kicks, old); status != 0 {
		c.reject(code, "", status)
		return false
	}
	if resumed {
		c.h.count.resumed.Add(1)
	}
	c.link.SetReadDeadline(time.Time{})
	cfg := &c.h.cfg
	c.ws.SetReadLimit(int64(cfg.maxMessage))
	c.out.send(frame{
		Type: frameWelcome, Session: session.id + "." + session.key, Resumed: resumed, TTL: g.ttl(time.Now()),
		Ping: milliseconds(cfg.ping + cfg.pong), MaxMessage: uint64(cfg.maxMessage), MaxFrames: uint64(cfg.maxFrames),
		MaxSubs: uint64(cfg.maxSubs), MaxPublish: uint64(cfg.maxPublish),
	})
	return len(rest) == 0 || c.batch(rest)
}

// reject tells why the link is not opened, or is closed.
func (c *conn) reject(code Code, text string, status websocket.StatusCode) {
	c.h.count.refused.Add(1)
	c.out.send(frame{Type: frameErr, Code: code, Text: text})
	c.close(status, code.String())
}

// batch sees to a message of frames, and reports whether the link goes on.
func (c *conn) batch(batch []byte) bool {
	if c.grant.expired(time.Now()) {
		c.reject(CodeExpired, "", closeExpired)
		return false
	}
	var pubs []publish
	var f frame
	n := 0
	defer func() { c.slow(n) }()
	for ; len(batch) > 0 && !c.bye; n++ {
		rest, err := c.codec.next(batch, &f)
		batch = rest
		if err == nil && f.Type == framePub && n < c.h.cfg.maxFrames {
			pubs = append(pubs, c.publish(&f))
			continue
		}
		if !c.pubs.add(pubs) {
			return false
		}
		pubs = nil
		switch {
		case n >= c.h.cfg.maxFrames:
			c.reject(CodeTooMany, "too many frames in a message", closeFlood)
			return false
		case errors.Is(err, errFraming):
			c.reject(CodeBadFrame, err.Error(), closeBadProtocol)
			return false
		case err != nil:
			if !c.refuse(&f, CodeBadFrame, err.Error()) {
				return false
			}
		case !c.handle(&f):
			return false
		}
	}
	return c.pubs.add(pubs)
}

// slow waits until n more frames may have come.
func (c *conn) slow(n int) {
	cfg := &c.h.cfg
	if cfg.rate == 0 {
		return
	}
	each := time.Second / time.Duration(cfg.rate)
	burst := time.Duration(min(float64(cfg.burst)*float64(each), float64(time.Hour)))
	now := time.Now()
	if c.frees.Before(now) {
		c.frees = now
	}
	c.frees = c.frees.Add(time.Duration(n) * each)
	if wait := c.frees.Sub(now) - burst; wait > 0 {
		defer c.stay()()
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.left:
		case <-c.h.ctx.Done():
		}
	}
}

// stay notes that nothing is read until what it returns is called: that the
// client is not heard says nothing of it meanwhile.
func (c *conn) stay() func() {
	c.away.Store(true)
	return func() {
		c.heard.Store(time.Now().UnixNano())
		c.away.Store(false)
	}
}

// refuse tells that a frame is not done. A client that makes too many mistakes
// loses its link.
func (c *conn) refuse(f *frame, code Code, text string) bool {
	c.out.send(frame{Type: frameErr, Rid: f.Rid, Sid: f.Sid, Code: code, Text: text})
	c.h.count.errors.Add(1)
	weight, status := refusal, websocket.StatusCode(closeOverloaded)
	if code == CodeBadFrame {
		weight, status = mistake, closeFlood
	}
	flood := c.blame(weight)
	if flood {
		c.reject(CodeTooMany, "too many errors", status)
	}
	if c.stream { // which has nothing else to ask for
		c.close(websocket.StatusNormalClosure, "")
	}
	return !flood
}

// blame weighs what a client does wrong, or could do too often, and reports
// whether it is too much.
func (c *conn) blame(weight int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errors += weight
	return c.errors > mistakeMost
}

// handle sees to a frame and reports whether the link goes on.
func (c *conn) handle(f *frame) bool {
	switch f.Type {
	case 0: // of a later version
	case framePing:
		c.out.send(frame{Type: framePong, N: f.N})
	case framePong:
	case frameAuth:
		return c.auth(f)
	case frameSub:
		return c.subscribe(f)
	case frameUnsub:
		c.unsubscribe(f)
	case frameFlow:
		c.flow(f)
	case frameAck:
		if t := c.tail(f.Sid); t != nil {
			t.ack(f.Pos)
			c.ok(f)
			return true
		}
		return c.settle(f, ack)
	case frameNack:
		if f.Release {
			return c.settle(f, release)
		}
		return c.settle(f, nack)
	case frameExtend:
		return c.settle(f, extend)
	case frameInspect:
		return c.inspect(f)
	case frameMove:
		return c.move(f)
	case frameBye:
		c.bye = true
		c.session.retire(c)
		c.spawn(func() {
			c.pubs.wait()
			c.close(websocket.StatusNormalClosure, "")
		})
	default:
		return c.refuse(f, CodeBadFrame, "a client sends no "+f.Type.String())
	}
	return true
}

// ok answers a request that wants an answer.
func (c *conn) ok(f *frame) {
	if f.Rid != 0 {
		c.out.send(frame{Type: frameOK, Rid: f.Rid})
	}
}

// auth takes a fresh token.
func (c *conn) auth(f *frame) bool {
	if c.blame(refusal) {
		c.reject(CodeTooMany, "too many tokens", closeOverloaded)
		return false
	}
	ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.hello)
	defer cancel()
	g, code := c.h.authorize(ctx, c.request, f.Token)
	if g == nil {
		return c.refuse(f, code, "")
	}
	if g.Subject != c.subject {
		c.reject(CodeBadToken, "the token is somebody else's", closeRevoked)
		return false
	}
	c.mu.Lock()
	c.grant = g
	tails := make([]*tail, 0, len(c.tails))
	for _, t := range c.tails {
		tails = append(tails, t)
	}
	c.mu.Unlock()
	for _, t := range tails {
		if !c.h.maySubscribe(g, t.hub.topic, "") {
			c.dropTail(t.sid)
			c.out.send(frame{Type: frameSubEnd, Sid: t.sid, Code: CodeForbidden})
		}
	}
	for _, s := range c.session.all() {
		if !c.h.maySubscribe(g, s.topic, s.name) {
			c.session.drop(c, s.sid)
			c.out.send(frame{Type: frameSubEnd, Sid: s.sid, Code: CodeForbidden})
		}
	}
	c.out.send(frame{Type: frameOK, Rid: f.Rid, TTL: g.ttl(time.Now())})
	return true
}

func (c *conn) tail(sid uint64) *tail {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tails[sid]
}

// flow gives credit to a subscription, which may be under way.
func (c *conn) flow(f *frame) {
	c.mu.Lock()
	if p := c.opening[f.Sid]; p != nil {
		if p.once = f.Once; f.Once {
			p.credit, p.bytes = int(min(f.Credit, creditMost)), bytesMost
		} else {
			p.credit = min(p.credit+int(min(f.Credit, creditMost)), creditMost)
			p.bytes = min(p.bytes+int(min(f.Bytes, bytesMost)), bytesMost)
		}
		c.mu.Unlock()
		return
	}
	t := c.tails[f.Sid]
	c.mu.Unlock()
	if t != nil {
		t.flow(f)
	} else if g := c.session.groupOf(c, f.Sid); g != nil {
		g.flow(f)
	}
}

// subscribe opens a subscription, in a goroutine of its own as that may take
// its time.
func (c *conn) subscribe(f *frame) bool {
	if code, text := checkSub(f); code != 0 {
		return c.refuse(f, code, text)
	}
	c.mu.Lock()
	_, tail := c.tails[f.Sid]
	n := len(c.tails) + len(c.opening)
	opening := c.opening[f.Sid] != nil
	c.mu.Unlock()
	held := c.session.groupOf(c, f.Sid)
	n += len(c.session.all())
	switch {
	case tail || opening || held != nil && !f.Resumed:
		return c.refuse(f, CodeBadFrame, fmt.Sprintf("there is a subscription %d", f.Sid))
	case n >= c.h.cfg.maxSubs && held == nil:
		return c.refuse(f, CodeSubLimit, "")
	case !c.h.maySubscribe(c.grant, f.Topic, f.Group):
		if held != nil {
			c.session.drop(c, f.Sid)
		}
		return c.refuse(f, CodeForbidden, "")
	}
	if held != nil && c.session.resume(c, f) {
		return true
	}
	p := &pending{credit: int(min(f.Credit, creditMost)), bytes: int(min(f.Bytes, bytesMost))}
	c.mu.Lock()
	if c.opening == nil {
		c.opening = make(map[uint64]*pending)
	}
	c.opening[f.Sid] = p
	c.mu.Unlock()
	req := *f
	return c.spawn(func() {
		ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.sendFor)
		defer cancel()
		open := c.openTail
		if req.Group != "" {
			open = c.openGroup
		}
		if err := open(ctx, p, &req); err != nil && !errors.Is(err, errUnwanted) {
			c.mu.Lock()
			if c.opening[req.Sid] == p {
				delete(c.opening, req.Sid)
			}
			c.mu.Unlock()
			c.refuse(&req, subCode(err), subText(err))
		}
	})
}

// checkSub says what is wrong with a request to subscribe, if anything is.
func checkSub(f *frame) (Code, string) {
	if f.Sid == 0 {
		return CodeBadFrame, "sid is missing"
	}
	if err := transport.CheckName("topic", f.Topic); err != nil {
		return CodeBadFrame, err.Error()
	}
	if f.Group != "" {
		if err := transport.CheckName("group", f.Group); err != nil {
			return CodeBadFrame, err.Error()
		}
	}
	switch start := transport.From(f.From); {
	case start > transport.AfterPosition:
		return CodeBadStart, fmt.Sprintf("there is no start %d", start)
	case start == transport.AfterID && f.ID == "":
		return CodeBadStart, "id is missing"
	case start == transport.AtTime && f.Time.IsZero():
		return CodeBadStart, "time is missing"
	}
	return 0, ""
}

var errUnwanted = errors.New("not wanted any more")

// started takes a subscription that is open now out of those under way: add
// puts it where it is known, with the link's lock held. An error says that the
// client may not have it, or does not want it any more.
func (c *conn) started(p *pending, f *frame, add func() bool) error {
	for {
		c.mu.Lock()
		g := c.grant
		c.mu.Unlock()
		if !c.h.maySubscribe(g, f.Topic, f.Group) { // it was taken meanwhile
			return &Error{Code: CodeForbidden}
		}
		if again, err := c.startedUnder(g, p, f.Sid, add); !again {
			return err
		}
	}
}

func (c *conn) startedUnder(g *Grant, p *pending, sid uint64, add func() bool) (again bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.grant != g {
		return true, nil
	}
	if c.over || c.opening[sid] != p {
		return false, errUnwanted
	}
	delete(c.opening, sid)
	if !add() {
		return false, errUnwanted
	}
	return false, nil
}

// subCode says why a subscription was not opened.
func subCode(err error) Code {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, transport.ErrNotFound):
		return CodeNotFound
	case errors.Is(err, errors.ErrUnsupported):
		return CodeUnsupported
	}
	return CodeUnavailable
}

// subText is what of an error a client is told: nothing of what is behind.
func subText(err error) string {
	if errors.Is(err, transport.ErrNotFound) || errors.Is(err, errors.ErrUnsupported) {
		return err.Error()
	}
	return ""
}

// unsubscribe ends a subscription.
func (c *conn) unsubscribe(f *frame) {
	c.mu.Lock()
	delete(c.opening, f.Sid)
	c.mu.Unlock()
	if c.dropTail(f.Sid) {
		c.ok(f)
		return
	}
	rid := frame{Rid: f.Rid}
	g := c.session.take(c, f.Sid)
	if g == nil {
		c.ok(f)
		return
	}
	c.h.behind(func() {
		g.close()
		c.ok(&rid)
	})
}

func (c *conn) dropTail(sid uint64) bool {
	c.mu.Lock()
	t := c.tails[sid]
	delete(c.tails, sid)
	c.mu.Unlock()
	if t == nil {
		return false
	}
	t.close()
	return true
}

// sweep sees to what is due, once a second.
func (c *conn) sweep(now time.Time) {
	cfg := &c.h.cfg
	if began := c.began.Load(); began != 0 && now.UnixNano()-began > int64(cfg.message) {
		c.fail(errSlow)
		return
	}
	silent := time.Duration(now.UnixNano() - c.heard.Load())
	c.mu.Lock()
	if now.Sub(c.forgave) > 4*time.Second {
		c.forgave = now
		c.errors = max(0, c.errors-mistake)
	}
	expired := c.grant.expired(now)
	ping := silent > cfg.ping && now.Sub(c.pinged) > cfg.ping
	if ping {
		c.pinged = now
	}
	c.mu.Unlock()
	if c.stream && ping { // nothing will answer
		c.heard.Store(now.UnixNano())
	}
	switch {
	case expired:
		c.reject(CodeExpired, "", closeExpired)
	case silent > cfg.ping+cfg.pong && !c.stream && !c.away.Load():
		c.close(closeSilent, "nothing was heard")
	case ping:
		c.out.send(frame{Type: framePing, N: uint64(now.UnixMilli())})
	}
}

// end undoes what the link was.
func (c *conn) end() {
	c.mu.Lock()
	c.over = true
	tails := c.tails
	c.tails = nil
	c.mu.Unlock()
	c.leave.Do(func() { close(c.left) })
	close(c.done)
	for _, t := range tails {
		t.close()
	}
	if s := c.session; s != nil && s.detach(c) {
		c.h.forget(s)
		c.h.behind(s.end)
	}
	c.work.Wait()
	c.out.close()
	if c.ws != nil {
		c.ws.CloseNow()
	}
	if c.session == nil {
		c.h.leave(c.place)
	} else {
		c.h.gone(c)
	}
}
