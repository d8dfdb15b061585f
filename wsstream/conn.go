package wsstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
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
	done   chan struct{}                      // closed when nothing is read any more
	cut    func()                             // ends it without a word
	part   func(websocket.StatusCode, string) // ends it with a code; it may take closeGrace
	ws     *websocket.Conn                    // nil for a stream
	link   *link                              // nil for a stream
	stream bool                               // the client says nothing and takes what it is sent

	token   string        // offered beside the hello
	request *http.Request // that opened the link

	heard atomic.Int64 // when the last message came, in Unix nanoseconds
	began atomic.Int64 // when the one that is coming began; 0 when none is
	frees time.Time    // when the frames so far are paid for, under a rate; of serve

	closing sync.Once
	work    sync.WaitGroup // goroutines of this link

	mu      sync.Mutex // guards the rest
	grant   *Grant
	session *session
	tails   map[uint64]*tail
	opening map[uint64]bool // subscriptions under way; false if given up meanwhile
	pubs    publishing
	errors  int // as they weigh
	forgave time.Time
	pinged  bool
	bye     bool
	over    bool
}

func newConn(h *Handler, ws *websocket.Conn, l *link, c codec) *conn {
	opcode := byte(websocket.MessageText)
	if _, ok := c.(binaryCodec); ok {
		opcode = byte(websocket.MessageBinary)
	}
	s := &conn{h: h, ws: ws, link: l, cut: func() { l.Conn.Close() }}
	s.part = func(code websocket.StatusCode, reason string) { ws.Close(code, reason) }
	s.init(c, func(b []byte) error { return l.writeMessage(b, opcode) })
	return s
}

func (c *conn) init(form codec, write func([]byte) error) {
	c.codec = form
	c.done = make(chan struct{})
	c.heard.Store(time.Now().UnixNano())
	c.out = newOutlet(form, write, c.fail)
	c.pubs.c = c
}

// fail gives the link up without a word.
func (c *conn) fail(error) { c.cut() }

// close says good-bye with a code, after what waits to be written, and ends
// the link. It does not wait.
func (c *conn) close(code websocket.StatusCode, reason string) {
	c.closing.Do(func() {
		if why := streamEnds[code]; c.stream && why != 0 {
			c.out.send(frame{Type: frameErr, Code: why})
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.over {
			return
		}
		c.work.Go(func() {
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
	ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.hello)
	g, code := c.h.authorize(ctx, c.request, token)
	cancel()
	if g == nil {
		c.reject(code, "", closeBadToken)
		return false
	}
	session := c.h.resume(f.Session, g.Subject)
	resumed := session != nil && session.attach(c)
	if !resumed {
		session = c.h.newSession(g.Subject)
		session.attach(c)
	}
	c.mu.Lock()
	c.grant, c.session = g, session
	c.mu.Unlock()
	if resumed {
		c.h.count.resumed.Add(1)
	}
	if !c.h.opened(c) {
		c.close(closeDrain, "going away")
		return false
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
	c.mu.Lock()
	g := c.grant
	c.mu.Unlock()
	if g.expired(time.Now()) {
		c.reject(CodeExpired, "", closeExpired)
		return false
	}
	var pubs []publish
	var f frame
	n := 0
	defer func() { c.slow(n) }()
	for ; len(batch) > 0; n++ {
		if n >= c.h.cfg.maxFrames {
			c.reject(CodeTooMany, "too many frames in a message", closeFlood)
			return false
		}
		rest, err := c.codec.next(batch, &f)
		if errors.Is(err, errFraming) {
			c.reject(CodeBadFrame, err.Error(), closeBadProtocol)
			return false
		}
		batch = rest
		switch {
		case err != nil:
			if !c.refuse(&f, CodeBadFrame, err.Error()) {
				return false
			}
		case f.Type == framePub:
			pubs = append(pubs, c.publish(&f, g))
		case !c.handle(&f):
			return false
		}
	}
	return len(pubs) == 0 || c.pubs.add(pubs)
}

// slow waits until n more frames may have come.
func (c *conn) slow(n int) {
	cfg := &c.h.cfg
	if cfg.rate == 0 {
		return
	}
	each := time.Second / time.Duration(cfg.rate)
	now := time.Now()
	if c.frees.Before(now) {
		c.frees = now
	}
	c.frees = c.frees.Add(time.Duration(n) * each)
	if wait := c.frees.Sub(now) - time.Duration(cfg.burst)*each; wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.h.ctx.Done():
		}
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
	c.mu.Lock()
	c.errors += weight
	flood := c.errors > mistakeMost
	c.mu.Unlock()
	if flood {
		c.reject(CodeTooMany, "too many errors", status)
	}
	if c.stream { // which has nothing else to ask for
		c.close(websocket.StatusNormalClosure, "")
	}
	return !flood
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
		if t := c.tail(f.Sid); t != nil {
			t.flow(f)
		} else if g := c.group(f.Sid); g != nil {
			g.flow(f)
		}
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
	case frameBye:
		c.mu.Lock()
		c.bye = true
		session := c.session
		c.mu.Unlock()
		c.h.forget(session)
		c.close(websocket.StatusNormalClosure, "")
		return false
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
	ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.hello)
	defer cancel()
	g, code := c.h.authorize(ctx, c.request, f.Token)
	if g == nil {
		return c.refuse(f, code, "")
	}
	c.mu.Lock()
	if g.Subject != c.grant.Subject {
		c.mu.Unlock()
		c.reject(CodeBadToken, "the token is somebody else's", closeRevoked)
		return false
	}
	c.grant = g
	session := c.session
	tails := make([]*tail, 0, len(c.tails))
	for _, t := range c.tails {
		tails = append(tails, t)
	}
	c.mu.Unlock()
	for _, t := range tails {
		if !g.maySubscribe(t.hub.topic, "") {
			c.dropTail(t.sid)
			c.out.send(frame{Type: frameSubEnd, Sid: t.sid, Code: CodeForbidden})
		}
	}
	for _, s := range session.all() {
		if !g.maySubscribe(s.topic, s.name) {
			session.drop(s.sid)
			c.out.send(frame{Type: frameSubEnd, Sid: s.sid, Code: CodeForbidden})
		}
	}
	c.out.send(frame{Type: frameOK, Rid: f.Rid, TTL: g.ttl(time.Now())})
	return true
}

func (c *conn) subject() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.grant.Subject
}

func (c *conn) tail(sid uint64) *tail {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tails[sid]
}

func (c *conn) group(sid uint64) *groupSub {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	return s.group(sid)
}

// subscribe opens a subscription, in a goroutine of its own as that may take
// its time.
func (c *conn) subscribe(f *frame) bool {
	if f.Sid == 0 {
		return c.refuse(f, CodeBadFrame, "sid is missing")
	}
	if err := transport.CheckName("topic", f.Topic); err != nil {
		return c.refuse(f, CodeBadFrame, err.Error())
	}
	if f.Group != "" {
		if err := transport.CheckName("group", f.Group); err != nil {
			return c.refuse(f, CodeBadFrame, err.Error())
		}
	}
	c.mu.Lock()
	g, session := c.grant, c.session
	_, tail := c.tails[f.Sid]
	_, opening := c.opening[f.Sid]
	n := len(c.tails) + len(c.opening)
	c.mu.Unlock()
	held := session.group(f.Sid)
	n += len(session.all())
	switch {
	case tail || opening || held != nil && !f.Resumed:
		return c.refuse(f, CodeBadFrame, fmt.Sprintf("there is a subscription %d", f.Sid))
	case n >= c.h.cfg.maxSubs && held == nil:
		return c.refuse(f, CodeSubLimit, "")
	case !g.maySubscribe(f.Topic, f.Group):
		if held != nil {
			session.drop(f.Sid)
		}
		return c.refuse(f, CodeForbidden, "")
	}
	if held != nil && held.resume(c, f) {
		return true
	}
	c.mu.Lock()
	if c.opening == nil {
		c.opening = make(map[uint64]bool)
	}
	c.opening[f.Sid] = true
	c.mu.Unlock()
	req := *f
	return c.spawn(func() {
		ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.sendFor)
		defer cancel()
		var err error
		if req.Group == "" {
			err = c.openTail(ctx, &req)
		} else {
			err = c.openGroup(ctx, &req)
		}
		if err != nil {
			c.mu.Lock()
			delete(c.opening, req.Sid)
			c.mu.Unlock()
			c.refuse(&req, subCode(err), subText(err))
		}
	})
}

// started takes a subscription out of those being opened, and reports whether
// it is still wanted. add is called with the lock held.
func (c *conn) started(sid uint64, add func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := c.opening[sid] && !c.over
	delete(c.opening, sid)
	if wanted {
		add()
	}
	return wanted
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
	if _, ok := c.opening[f.Sid]; ok {
		c.opening[f.Sid] = false
	}
	session := c.session
	c.mu.Unlock()
	if c.dropTail(f.Sid) {
		c.ok(f)
		return
	}
	rid := frame{Rid: f.Rid}
	if g := session.take(f.Sid); g == nil || !c.spawn(func() {
		g.close()
		c.ok(&rid)
	}) {
		c.ok(f)
	}
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
	ping := silent > cfg.ping && !c.pinged
	c.pinged = silent > cfg.ping
	if c.stream && ping { // nothing will answer
		c.heard.Store(now.UnixNano())
		c.pinged = false
	}
	c.mu.Unlock()
	switch {
	case expired:
		c.reject(CodeExpired, "", closeExpired)
	case silent > cfg.ping+cfg.pong:
		c.close(closeSilent, "nothing was heard")
	case ping:
		c.out.send(frame{Type: framePing, N: uint64(now.UnixMilli())})
	}
}

// end undoes what the link was.
func (c *conn) end() {
	c.mu.Lock()
	c.over = true
	tails, session, bye := c.tails, c.session, c.bye
	c.tails = nil
	c.mu.Unlock()
	close(c.done)
	for _, t := range tails {
		t.close()
	}
	if session == nil {
		c.h.leave(nil)
	} else {
		c.h.leave(c)
	}
	c.work.Wait()
	c.out.close()
	if c.ws != nil {
		c.ws.CloseNow()
	}
	if session != nil && session.detach(c, bye) {
		c.h.forget(session)
		session.end()
	}
}
