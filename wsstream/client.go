package wsstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/echobus/echo/transport"
)

// TokenFunc returns a token that is good now. An error makes the transport try
// again later.
type TokenFunc func(ctx context.Context) (string, error)

// State is how a link is.
type State struct {
	Up      bool
	Resumed bool  // what groups delivered before is still held
	Err     error // why it is down
}

// Transport is the client half: a transport whose topics are those behind a
// [Handler]. It connects again, for ever, until Close, and goes on where it was:
// what it publishes waits for the link within the caller's context, broadcast
// subscriptions resume after the last message, and deliveries to groups stay
// held for a while. Safe for concurrent use.
type Transport struct {
	url    string
	cfg    clientConfig
	ctx    context.Context // until Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex // guards the rest
	link     *clientLink
	up       chan struct{} // closed when link is set
	change   chan struct{} // closed when a call is answered
	session  string
	welcome  frame
	rid, sid uint64
	subs     map[uint64]clientSub
	left     []uint64         // subscriptions that ended while there was no link
	calls    map[uint64]*call // by their first rid
	order    []*call          // in the order of their rids
	under    int              // messages that are being published
	closed   bool
}

type clientConfig struct {
	logger      *slog.Logger
	token       TokenFunc
	http        *http.Client
	header      http.Header
	protocol    string
	first, last time.Duration
	state       func(State)
	errs        []error
}

// clientSub is a subscription of a Transport.
type clientSub interface {
	transport.Subscription
	// request is the frame that subscribes, or subscribes again. resumed tells
	// whether the session goes on.
	request(resumed bool) frame
	// answered is called with the answer, and with what ends it. It reports
	// whether to ask again, as the server is what could not.
	answered(f *frame) (again bool)
	// message takes a message or a loss.
	message(f *frame) error
	// shut ends it, if the transport is closed or the server ended it.
	shut(err error)
}

// call is a request that waits for its answer.
type call struct {
	rid    uint64
	count  int // rids, for publishes
	frames []frame
	// keep tells whether to send it again on the next link, if it is not nil.
	// Otherwise, and if not, the call ends with the link.
	keep    func(resumed bool) bool
	publish bool
	done    chan struct{}

	// Known when done is closed.
	got  int // answers so far
	at   []transport.Position
	gone []uint64
	ttl  uint64
	err  error // of the first that failed
	bad  int   // how many answers came before it
}

// clientLink is a connection.
type clientLink struct {
	ws   *websocket.Conn
	out  *outlet
	done chan struct{} // closed when the link is down
}

// Dial connects to a [Handler] at a ws:// or wss:// URL (or http, https), and
// returns when that is done. ctx bounds it; a server that refuses the client for
// good, as with a bad token, is an error at once.
func Dial(ctx context.Context, url string, opts ...DialOption) (*Transport, error) {
	cfg := clientConfig{logger: slog.New(slog.DiscardHandler), protocol: protocolBinary, first: 250 * time.Millisecond, last: 20 * time.Second, state: func(State) {}}
	for _, o := range opts {
		o.dial(&cfg)
	}
	if err := errors.Join(cfg.errs...); err != nil {
		return nil, fmt.Errorf("wsstream: %w", err)
	}
	t := &Transport{url: url, cfg: cfg, up: make(chan struct{}), change: make(chan struct{}), subs: make(map[uint64]clientSub), calls: make(map[uint64]*call)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	failed := make(chan error, 1)
	t.work.Go(func() { t.run(failed) })
	var last error
	for {
		t.mu.Lock()
		up := t.up
		t.mu.Unlock()
		select {
		case <-up:
			return t, nil
		case err := <-failed:
			last = err
			if permanent(err) {
				t.Close()
				return nil, fmt.Errorf("wsstream: connecting to %s: %w", redacted(url), err)
			}
		case <-ctx.Done():
			t.Close()
			err := context.Cause(ctx)
			if last != nil {
				err = fmt.Errorf("%w; last: %w", err, last)
			}
			return nil, fmt.Errorf("wsstream: connecting to %s: %w", redacted(url), err)
		}
	}
}

// permanent reports whether connecting again is of no use.
func permanent(err error) bool {
	var e *Error
	if errors.As(err, &e) && (e.Code == CodeBadToken || e.Code == CodeNoToken || e.Code == CodeBadFrame) {
		return true
	}
	if s := websocket.CloseStatus(err); s >= 4300 && s < 4400 {
		return true
	}
	return errors.Is(err, errRefused)
}

var errRefused = errors.New("the server is none of echo's, or refuses this client")

// run keeps a link up until Close.
func (t *Transport) run(failed chan<- error) {
	wait := t.cfg.first
	for {
		began := time.Now()
		err := t.once()
		if t.ctx.Err() != nil {
			return
		}
		t.down(err)
		t.cfg.state(State{Err: err})
		t.cfg.logger.Warn("wsstream: the link is down, connecting again", "error", err)
		select {
		case failed <- err:
		default:
		}
		if time.Since(began) > 30*time.Second {
			wait = t.cfg.first
		}
		pause := rand.N(wait) + time.Millisecond
		if d, ok := errors.AsType[*drained](err); ok {
			pause, wait = rand.N(d.within+time.Millisecond), t.cfg.first
		} else {
			wait = min(2*wait, t.cfg.last)
		}
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			return
		}
	}
}

// drained says that the server asked to go elsewhere.
type drained struct{ within time.Duration }

func (d *drained) Error() string { return "the server is going away" }

// once opens a link and reads from it until it ends.
func (t *Transport) once() error {
	ctx, cancel := context.WithTimeout(t.ctx, 10*time.Second)
	defer cancel()
	token := ""
	if t.cfg.token != nil {
		var err error
		if token, err = t.cfg.token(ctx); err != nil {
			return fmt.Errorf("getting a token: %w", err)
		}
	}
	ws, resp, err := websocket.Dial(ctx, t.url, &websocket.DialOptions{
		HTTPClient: t.cfg.http, HTTPHeader: t.cfg.header, Subprotocols: []string{t.cfg.protocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return fmt.Errorf("%w: HTTP status %s", errRefused, resp.Status)
		}
		return err
	}
	defer ws.CloseNow()
	c := codecOf(ws.Subprotocol())
	if c == nil {
		return fmt.Errorf("%w: it does not speak %s", errRefused, t.cfg.protocol)
	}
	ws.SetReadLimit(-1) // of what a server sends that was chosen
	opcode := websocket.MessageText
	if _, ok := c.(binaryCodec); ok {
		opcode = websocket.MessageBinary
	}
	write := func(b []byte) error {
		stalled := time.AfterFunc(15*time.Second, func() { ws.CloseNow() })
		defer stalled.Stop()
		return ws.Write(context.Background(), opcode, b[headroom:])
	}
	broken := make(chan error, 1)
	l := &clientLink{ws: ws, done: make(chan struct{})}
	defer close(l.done)
	l.out = newOutlet(c, write, func(err error) {
		select {
		case broken <- err:
		default:
		}
		ws.CloseNow()
	})
	defer l.out.close()
	hello := frame{Type: frameHello, Client: "echo-go", Token: token}
	t.mu.Lock()
	hello.Session = t.session
	t.mu.Unlock()
	l.out.send(hello)
	stop := context.AfterFunc(ctx, func() { ws.CloseNow() }) // until the welcome
	defer stop()
	err = t.read(l, c, stop)
	select {
	case e := <-broken:
		err = errors.Join(e, err)
	default:
	}
	return err
}

// read reads what a link brings.
func (t *Transport) read(l *clientLink, c codec, welcomed func() bool) error {
	var watch *silence
	defer func() {
		if watch != nil {
			watch.stop()
		}
	}()
	var last error // what the server said before it closed
	for {
		_, r, err := l.ws.Reader(context.Background())
		if err != nil {
			if last != nil {
				return last
			}
			return err
		}
		batch, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if watch != nil {
			watch.heard.Store(true)
		}
		var sub clientSub
		for len(batch) > 0 {
			var f frame
			rest, err := c.next(batch, &f)
			if err != nil {
				return fmt.Errorf("the server sent what cannot be read: %w", err)
			}
			batch = rest
			switch f.Type {
			case frameWelcome:
				if watch != nil {
					return errors.New("the server welcomed twice")
				}
				welcomed()
				watch = watchFor(l, max(duration(f.Ping), time.Second)/3)
				t.opened(l, &f)
			case frameRun:
				t.mu.Lock()
				sub = t.subs[f.Sid]
				t.mu.Unlock()
			case frameMsg, frameDlv, frameGap:
				if sub != nil {
					if err := sub.message(&f); err != nil {
						return err
					}
				}
			case framePing:
				l.out.send(frame{Type: framePong, N: f.N})
			case frameDrain:
				last = &drained{duration(f.Within)}
			case frameErr:
				if f.Rid == 0 && f.Sid == 0 {
					last = &Error{Code: f.Code, Text: f.Text}
				} else {
					t.answer(l, &f)
				}
			case frameOK, framePubOK, frameSubOK, frameSubEnd:
				t.answer(l, &f)
			}
		}
	}
}

// silence sees to a link whose server is not heard any more: after a third of
// the limit it asks, after another two it gives up.
type silence struct {
	heard atomic.Bool
	end   chan struct{}
	ended chan struct{}
}

func watchFor(l *clientLink, third time.Duration) *silence {
	s := &silence{end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		tick := time.NewTicker(third)
		defer tick.Stop()
		for quiet := 0; ; {
			select {
			case <-tick.C:
			case <-s.end:
				return
			}
			if quiet++; s.heard.Swap(false) {
				quiet = 0
			}
			switch {
			case quiet >= 3:
				l.ws.CloseNow()
				return
			case quiet > 0:
				l.out.send(frame{Type: framePing})
			}
		}
	}()
	return s
}

func (s *silence) stop() {
	close(s.end)
	<-s.ended
}

// opened takes a link into use, and brings the server up to date: first the
// subscriptions, then what was not answered, in order.
func (t *Transport) opened(l *clientLink, f *frame) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.session, t.welcome = f.Session, *f
	t.link = l
	for _, sid := range t.left {
		l.out.send(frame{Type: frameUnsub, Sid: sid})
	}
	t.left = nil
	for sid := uint64(1); sid <= t.sid; sid++ { // in the order they were made
		if s := t.subs[sid]; s != nil {
			l.out.send(s.request(f.Resumed))
		}
	}
	var order []*call
	for _, c := range t.order {
		if c.keep == nil || !c.keep(f.Resumed) {
			c.lose()
			delete(t.calls, c.rid)
			continue
		}
		order = append(order, c)
		for i := range c.frames {
			c.frames[i].Again = true
		}
		l.out.send(c.frames[c.got:]...)
	}
	t.order = order
	close(t.up)
	t.work.Go(func() {
		t.cfg.state(State{Up: true, Resumed: f.Resumed})
		if t.cfg.token != nil && f.TTL > 0 {
			t.refresh(l, f.TTL)
		}
	})
}

// refresh sends fresh tokens on a link before the old ones expire.
func (t *Transport) refresh(l *clientLink, ttl uint64) {
	for pause := duration(ttl) * 3 / 4; ; {
		select {
		case <-time.After(pause):
		case <-l.done:
			return
		}
		ctx, cancel := context.WithTimeout(t.ctx, 10*time.Second)
		token, err := t.cfg.token(ctx)
		cancel()
		if err != nil {
			t.cfg.logger.Warn("wsstream: getting a fresh token failed", "error", err)
			pause = max(time.Second, pause/4)
			continue
		}
		c := &call{count: 1, frames: []frame{{Type: frameAuth, Token: token}}}
		t.mu.Lock()
		if t.link != l {
			t.mu.Unlock()
			return
		}
		t.add(c)
		t.mu.Unlock()
		select {
		case <-c.done:
		case <-l.done:
			return
		}
		switch {
		case c.err != nil:
			t.cfg.logger.Warn("wsstream: a fresh token was refused", "error", c.err)
			pause = max(time.Second, pause/4)
		case c.ttl == 0:
			return
		default:
			pause = duration(c.ttl) * 3 / 4
		}
	}
}

// lose answers a call for deliveries that nobody holds any more.
func (c *call) lose() {
	for i := range c.frames {
		c.gone = append(c.gone, c.frames[i].Ns...)
	}
	close(c.done)
}

// down notes that there is no link.
func (t *Transport) down(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.link != nil {
		t.link = nil
		t.up = make(chan struct{})
	}
}

// answer gives an answer to who waits for it.
func (t *Transport) answer(l *clientLink, f *frame) {
	if f.Sid != 0 && f.Rid == 0 {
		t.mu.Lock()
		s := t.subs[f.Sid]
		t.mu.Unlock()
		if s != nil && s.answered(f) {
			t.again(l, f.Sid, s)
		}
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := int(max(f.Count, 1))
	for n > 0 {
		c := t.callOf(f.Rid)
		if c == nil {
			return
		}
		k := min(n, c.count-c.got)
		if f.Type == frameErr {
			if c.err == nil {
				c.err, c.bad = &Error{Code: f.Code, Text: f.Text}, c.got
			}
		} else if c.err == nil && f.Type == framePubOK {
			c.at = append(c.at, f.At[:min(k, len(f.At))]...)
			f.At = f.At[min(k, len(f.At)):]
		} else if f.Type == frameOK {
			c.gone, c.ttl = f.Ns, f.TTL
		}
		c.got += k
		f.Rid += uint64(k)
		n -= k
		if c.got >= c.count {
			t.forget(c)
			close(c.done)
		}
	}
}

// again subscribes again on the same link, a while after the server could not
// serve a subscription that it had opened before.
func (t *Transport) again(l *clientLink, sid uint64, s clientSub) {
	t.cfg.logger.Warn("wsstream: the server could not go on with a subscription, subscribing again", "sid", sid)
	t.work.Go(func() {
		select {
		case <-time.After(rand.N(4*t.cfg.first) + t.cfg.first/4):
		case <-l.done: // and the next link subscribes
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.link == l && t.subs[sid] == s {
			l.out.send(s.request(false))
		}
	})
}

// callOf returns the call that a rid belongs to. The caller holds mu.
func (t *Transport) callOf(rid uint64) *call {
	if c := t.calls[rid]; c != nil {
		return c
	}
	for _, c := range t.order {
		if rid >= c.rid && rid < c.rid+uint64(c.count) {
			return c
		}
	}
	return nil
}

// forget removes a call. The caller holds mu.
func (t *Transport) forget(c *call) {
	if t.calls[c.rid] != c {
		return
	}
	delete(t.calls, c.rid)
	for i, o := range t.order {
		if o == c {
			copy(t.order[i:], t.order[i+1:])
			t.order[len(t.order)-1] = nil
			t.order = t.order[:len(t.order)-1]
			break
		}
	}
	if c.publish {
		t.under -= c.count
	}
	close(t.change)
	t.change = make(chan struct{})
}

// await waits until there is a link and ready returns true; both are looked at
// with the lock held, which await returns with.
func (t *Transport) await(ctx context.Context, ready func() bool) error {
	for {
		t.mu.Lock()
		switch {
		case t.closed:
			t.mu.Unlock()
			return transport.ErrClosed
		case ctx.Err() != nil:
			t.mu.Unlock()
			return context.Cause(ctx)
		case t.link != nil && ready():
			return nil
		}
		wait := t.up
		if t.link != nil {
			wait = t.change
		}
		t.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		case <-t.ctx.Done():
		}
	}
}

// add registers a call and sends it. The caller holds mu, and there is a link.
func (t *Transport) add(c *call) {
	c.done = make(chan struct{})
	c.rid = t.rid + 1
	t.rid += uint64(c.count)
	for i := range c.frames {
		c.frames[i].Rid = c.rid + uint64(i)
	}
	t.calls[c.rid] = c
	t.order = append(t.order, c)
	t.link.out.send(c.frames...)
}

// Send implements [transport.Sender]. Without a link it waits for one, within
// ctx. A message whose answer is lost with the link is sent again with the same
// ID on the next one, and the server stores it once as long as it remembers it.
func (t *Transport) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if err := transport.CheckName("topic", topic); err != nil {
		return 0, notPublished(err)
	}
	n := 0
	for n < len(msgs) || len(msgs) == 0 {
		k, err := t.sendSome(ctx, topic, msgs[n:])
		if n += k; err != nil || len(msgs) == 0 {
			return n, err
		}
	}
	return n, nil
}

func notPublished(err error) error { return fmt.Errorf("%w: %w", transport.ErrNotPublished, err) }

// sendSome sends as many messages as the server allows at a time.
func (t *Transport) sendSome(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	c := &call{publish: true, keep: func(bool) bool { return true }}
	err := t.await(ctx, func() bool {
		most := int(max(t.welcome.MaxPublish, 1))
		size := 0
		k := 0
		for k < len(msgs) && k < most && (k == 0 || size+msgs[k].Size() <= 8*batchBytes) {
			size += msgs[k].Size()
			k++
		}
		c.count = k
		return t.under == 0 || t.under+k <= most
	})
	if err != nil {
		return 0, notPublished(err)
	}
	if len(msgs) == 0 {
		t.mu.Unlock()
		return 0, nil
	}
	if limit := t.welcome.MaxMessage; limit > 0 && uint64(msgs[0].Size())+1024 > limit {
		t.mu.Unlock()
		return 0, notPublished(fmt.Errorf("%w: message %s has %d bytes, the server takes %d with what is around it", transport.ErrTooLarge, msgs[0].ID, msgs[0].Size(), limit))
	}
	within := uint64(0)
	if d, ok := ctx.Deadline(); ok {
		within = max(1, milliseconds(time.Until(d)))
	}
	c.frames = make([]frame, c.count)
	for i := range c.frames {
		c.frames[i] = frameOf(framePub, &msgs[i])
		c.frames[i].Pos, c.frames[i].Attempt = transport.Position{}, 0
		c.frames[i].Topic, c.frames[i].Within = topic, within
		if c.frames[i].Time.IsZero() { // the same one if it is sent again
			c.frames[i].Time = time.Now().UTC()
		}
	}
	t.under += c.count
	t.add(c)
	t.mu.Unlock()
	select {
	case <-c.done:
	case <-ctx.Done():
		t.mu.Lock()
		t.forget(c)
		t.mu.Unlock()
		select {
		case <-c.done:
		default:
			return t.partly(c, msgs, context.Cause(ctx))
		}
	case <-t.ctx.Done():
		return t.partly(c, msgs, transport.ErrClosed)
	}
	return c.result(msgs)
}

// partly is the result of a call that is given up.
func (t *Transport) partly(c *call, msgs []transport.Message, why error) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range c.at {
		msgs[i].Position = p
	}
	return len(c.at), fmt.Errorf("%w: %w", transport.ErrPublishUnknown, why)
}

// result is that of a publish that was answered.
func (c *call) result(msgs []transport.Message) (int, error) {
	for i, p := range c.at {
		msgs[i].Position = p
	}
	if c.err == nil {
		return len(c.at), nil
	}
	var e *Error
	if errors.As(c.err, &e); e.Code == CodeUnknown {
		return len(c.at), c.err
	}
	return len(c.at), notPublished(c.err)
}

// do sends a request about deliveries and waits for the answer.
func (t *Transport) do(ctx context.Context, m *member, gen uint64, f frame) (gone []uint64, err error) {
	c := &call{count: 1, frames: []frame{f}, keep: func(resumed bool) bool { return resumed && gen == m.generation() }}
	if err := t.await(ctx, func() bool { return true }); err != nil {
		return nil, err
	}
	if gen != m.generation() {
		t.mu.Unlock()
		return f.Ns, nil
	}
	t.add(c)
	t.mu.Unlock()
	select {
	case <-c.done:
		return c.gone, c.err
	case <-m.ended:
		err = transport.ErrClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-t.ctx.Done():
		err = transport.ErrClosed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(c)
	return nil, err
}

// Subscribe implements [transport.Subscriber]. Without a link it waits for one.
// A subscription to a group is an Acker, Nacker, Releaser and Extender at the
// server; a broadcast is all that and a Positioner here.
func (t *Transport) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return nil, err
	}
	if o.Group != "" {
		if err := transport.CheckName("group", o.Group); err != nil {
			return nil, err
		}
	}
	if o.Lease < 0 || o.MaxPending < 0 || o.MaxPendingBytes < 0 || o.Start.From > transport.AfterPosition {
		return nil, fmt.Errorf("wsstream: options %+v: a lease or bound is negative, or there is no such start", o)
	}
	if err := t.await(ctx, func() bool { return true }); err != nil {
		return nil, err
	}
	t.sid++
	sid := t.sid
	var s clientSub
	var opened chan struct{}
	var failed *error
	if o.Group == "" {
		b := newBroadcast(t, sid, topic, o)
		s, opened, failed = b, b.opened, &b.err
	} else {
		m := newMember(t, sid, topic, o)
		s, opened, failed = m, m.opened, &m.err
	}
	t.subs[sid] = s
	t.link.out.send(s.request(false))
	t.mu.Unlock()
	var err error
	select {
	case <-opened:
		err = *failed
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-t.ctx.Done():
		err = transport.ErrClosed
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// end forgets a subscription, and tells the server if tell.
func (t *Transport) end(sid uint64, tell bool) *call {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subs[sid] == nil {
		return nil
	}
	delete(t.subs, sid)
	if !tell || t.closed {
		return nil
	}
	if t.link == nil { // the session may go on, and hold what this one held
		t.left = append(t.left, sid)
		return nil
	}
	c := &call{count: 1, frames: []frame{{Type: frameUnsub, Sid: sid}}}
	t.add(c)
	return c
}

// send sends a frame that needs no answer, if there is a link.
func (t *Transport) send(f frame) {
	t.mu.Lock()
	l := t.link
	t.mu.Unlock()
	if l != nil {
		l.out.send(f)
	}
}

// Close implements [transport.Transport]. The server gives back at once what
// subscriptions hold, if it can be reached.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.work.Wait()
		return nil
	}
	t.closed = true
	l := t.link
	subs := t.subs
	t.subs = map[uint64]clientSub{}
	t.mu.Unlock()
	for _, s := range subs {
		s.shut(transport.ErrClosed)
	}
	t.cancel()
	if l != nil {
		l.out.send(frame{Type: frameBye})
		stalled := time.AfterFunc(time.Second, func() { l.ws.CloseNow() })
		l.out.drain()
		l.out.close()
		stalled.Reset(100 * time.Millisecond)
		l.ws.Close(websocket.StatusNormalClosure, "")
		stalled.Stop()
		l.ws.CloseNow()
	}
	t.work.Wait()
	return nil
}

// redacted is a URL without what may be secret in it.
func redacted(url string) string {
	for i, r := range url {
		if r == '?' || r == '#' {
			return url[:i]
		}
	}
	return url
}

// later sends a frame from where the lock may be held.
func (t *Transport) later(f frame) { t.work.Go(func() { t.send(f) }) }
