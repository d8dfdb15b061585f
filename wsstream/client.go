package wsstream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	neturl "net/url"
	"slices"
	"strings"
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
// held for a while. What a server closed the link for is not asked of it again:
// publishes under way end with [transport.ErrPublishUnknown] then, and what was
// held is lost. Safe for concurrent use.
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
	left     []uint64                 // subscriptions that ended while there was no link
	calls    map[uint64]*call         // by their first rid
	pings    map[uint64]chan struct{} // by number
	pinged   uint64                   // the last of these numbers
	order    []*call                  // in the order of their rids
	under    load                     // of messages that are being published
	asked    int                      // questions under way
	closed   bool

	telling sync.Mutex // guards states
	states  []State    // to be told; the first one is being told
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
	// answered is called with the answer, and with what ends it.
	answered(f *frame) verdict
	// message takes a message or a loss.
	message(f *frame) error
	// arrived is called when all is taken that came together.
	arrived()
	// shut ends it, if the transport is closed or the server ended it.
	shut(err error)
}

// verdict is what follows from an answer to a subscription.
type verdict uint8

const (
	goOn     verdict = iota
	askAgain         // the server is what could not
	over             // it has ended for good
)

// call is a request that waits for its answer: a publish, which is sent again
// on the next link; one about deliveries, which is if their session goes on; or
// another, which ends with the link.
type call struct {
	rid       uint64
	count     int // rids, for publishes
	frames    []frame
	bytes     int  // of messages in frames
	publish   bool // else of, or question
	of        *member
	question  bool
	gen       uint64 // of the member's deliveries
	abandoned bool   // nobody waits for the answer
	done      chan struct{}

	// Known when done is closed.
	got  int // answers so far
	at   []transport.Position
	gone []uint64
	ttl  uint64
	data []byte
	err  error // of the first that failed
	more bool  // what came after that may have been stored
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
	if err := errors.Join(append(cfg.errs, checkURL(url))...); err != nil {
		return nil, fmt.Errorf("wsstream: %w", err)
	}
	t := &Transport{url: url, cfg: cfg, up: make(chan struct{}), change: make(chan struct{}), subs: make(map[uint64]clientSub), calls: make(map[uint64]*call), pings: make(map[uint64]chan struct{})}
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

// checkURL says what is wrong with a server's URL, without what may be secret in it.
func checkURL(s string) error {
	u, err := neturl.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("the server's URL %s is none", redacted(s))
	case u.Host == "", !slices.Contains([]string{"ws", "wss", "http", "https"}, u.Scheme):
		return fmt.Errorf("the server's URL %s is not ws://host… or wss://host…", redacted(s))
	}
	return nil
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
		t.tell(State{Err: err})
		t.cfg.logger.Warn("wsstream: the link is down, connecting again", "error", err)
		select {
		case failed <- err:
		default:
		}
		if time.Since(began) > 30*time.Second {
			wait = t.cfg.first
		}
		pause := rand.N(wait) + time.Millisecond
		switch s := websocket.CloseStatus(err); {
		case s == closeDrain, errors.Is(err, errDrained):
			pause, wait = rand.N(t.cfg.first)+time.Millisecond, t.cfg.first
		case s >= 4300 && s < 4400, s == websocket.StatusMessageTooBig:
			t.forgo(err)
			pause = t.cfg.last/2 + rand.N(t.cfg.last/2+1)
		default:
			wait = min(2*wait, t.cfg.last)
		}
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			return
		}
	}
}

var errDrained = errors.New("the server is going away")

// drainMost bounds how long a client stays with a server that is going away.
const drainMost = 5 * time.Minute

// forgo gives up what was asked of a server that does not bear it: sent again,
// it would end the next link too. What the session held is nobody's then.
func (t *Transport) forgo(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.session = ""
	for _, c := range slices.Clone(t.order) {
		if c.publish && c.err == nil {
			c.err, c.more = fmt.Errorf("the server closed the link: %w", err), true
		}
		t.lose(c)
	}
}

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
		if e, ok := errors.AsType[*neturl.Error](err); ok { // which shows the URL, with all that is secret in it
			err = e.Err
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
	var leave *time.Timer
	defer func() {
		if leave != nil {
			leave.Stop()
		}
	}()
	for {
		_, r, err := l.ws.Reader(context.Background())
		if err != nil {
			if last != nil {
				return fmt.Errorf("%w; %w", last, err)
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
				if !t.opened(l, &f) {
					return transport.ErrClosed
				}
			case frameRun:
				if sub != nil {
					sub.arrived()
				}
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
			case framePong:
				t.ponged(f.N)
			case frameDrain:
				last = errDrained
				if leave == nil {
					leave = time.AfterFunc(rand.N(min(duration(f.Within), drainMost)+1), func() { l.ws.CloseNow() })
				}
			case frameErr:
				if f.Rid == 0 && f.Sid == 0 {
					last = &Error{Code: f.Code, Text: f.Text}
				} else {
					t.answer(l, &f)
				}
			case frameOK, framePubOK, frameSubOK, frameSubEnd, frameInfo:
				t.answer(l, &f)
			}
		}
		if sub != nil {
			sub.arrived()
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
// subscriptions, then what was not answered, in order. What concerns a group
// waits for its subscription. It reports false if the transport was closed.
func (t *Transport) opened(l *clientLink, f *frame) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.session, t.welcome = f.Session, *f
	t.link = l
	l.out.limit(int(min(cmp.Or(f.MaxMessage, math.MaxInt32), math.MaxInt32)), int(min(cmp.Or(f.MaxFrames, math.MaxInt32), math.MaxInt32)), clientMost)
	for _, sid := range t.left {
		l.out.send(frame{Type: frameUnsub, Sid: sid})
	}
	t.left = nil
	for sid := uint64(1); sid <= t.sid; sid++ { // in the order they were made
		if s := t.subs[sid]; s != nil {
			l.out.send(s.request(f.Resumed))
		}
	}
	for _, c := range slices.Clone(t.order) {
		switch {
		case c.publish && !c.abandoned:
			c.resend(l)
		case c.of == nil || c.abandoned || !f.Resumed || c.gen != c.of.generation():
			t.lose(c)
		}
	}
	close(t.up)
	t.tell(State{Up: true, Resumed: f.Resumed})
	if t.cfg.token != nil && f.TTL > 0 {
		t.work.Go(func() { t.refresh(l, f.TTL) })
	}
	return true
}

// resend sends what was not answered of a call again.
func (c *call) resend(l *clientLink) {
	for i := range c.frames {
		c.frames[i].Again = true
	}
	l.out.send(c.frames[c.got:]...)
}

// tell tells of a state, one after another.
func (t *Transport) tell(s State) {
	t.telling.Lock()
	defer t.telling.Unlock()
	if t.states = append(t.states, s); len(t.states) == 1 {
		go t.tellAll() // not of work: it may call Close
	}
}

func (t *Transport) tellAll() {
	for {
		t.telling.Lock()
		s := t.states[0]
		t.telling.Unlock()
		t.cfg.state(s)
		t.telling.Lock()
		t.states = t.states[1:]
		done := len(t.states) == 0
		t.telling.Unlock()
		if done {
			return
		}
	}
}

// afresh is when to get a fresh token, for one that is good for ttl milliseconds.
func afresh(ttl uint64) time.Duration {
	return min(max(duration(ttl)/4*3, time.Second), 24*time.Hour)
}

// refresh sends fresh tokens on a link before the old ones expire.
func (t *Transport) refresh(l *clientLink, ttl uint64) {
	for pause := afresh(ttl); ; {
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
			pause = afresh(c.ttl)
		}
	}
}

// lose ends a call without an answer: what it names, nobody holds any more, and
// whether a message was moved is not known. The caller holds mu.
func (t *Transport) lose(c *call) {
	if c.frames[0].Type == frameMove {
		c.err = &Error{Code: CodeUnknown}
	}
	for i := range c.frames {
		c.gone = append(c.gone, c.frames[i].Ns...)
	}
	t.forget(c)
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
		if s != nil {
			t.answeredSub(l, f.Sid, s, s.answered(f))
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
		switch {
		case f.Type == frameOK:
			c.gone, c.ttl = f.Ns, f.TTL
			if c.of != nil && c.frames[0].Seen > 0 {
				c.of.tookBack(c.gen)
			}
		case f.Type == frameInfo:
			c.data = bytes.Clone(f.Data)
		case c.err != nil:
			c.more = c.more || f.Type == framePubOK || f.Code == CodeUnknown
		case f.Type == frameErr:
			c.err = &Error{Code: f.Code, Text: f.Text}
		default:
			at := f.At[:min(k, len(f.At))]
			f.At = f.At[len(at):]
			c.at = append(append(c.at, at...), make([]transport.Position, k-len(at))...)
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

// answeredSub sees to what follows from an answer to a subscription.
func (t *Transport) answeredSub(l *clientLink, sid uint64, s clientSub, v verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v == over && t.subs[sid] == s {
		delete(t.subs, sid)
	}
	if m, ok := s.(*member); ok && v != askAgain {
		for _, c := range slices.Clone(t.order) {
			switch {
			case c.of != m:
			case v == goOn && c.gen == m.generation():
				c.resend(l)
			default:
				t.lose(c)
			}
		}
		t.changed()
	}
	if v != askAgain {
		return
	}
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
	if c.publish || c.bytes > 0 {
		t.under.add(-c.count, -c.bytes)
	}
	if c.question {
		t.asked--
	}
	t.changed()
}

// changed makes who waits look again. The caller holds mu.
func (t *Transport) changed() {
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

// DelaysMessages reports true: the transport behind the server decides, and
// Send returns an error that wraps [errors.ErrUnsupported] where it does not.
func (t *Transport) DelaysMessages() bool { return true }

// DeduplicatesMessages reports true; it is as with DelaysMessages.
func (t *Transport) DeduplicatesMessages() bool { return true }

// Send implements [transport.Sender]. Without a link it waits for one, within
// ctx. A message whose answer is lost with the link is sent again with the same
// ID on the next one, and the server stores it once as long as it remembers it.
func (t *Transport) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if err := transport.CheckName("topic", topic); err != nil {
		return 0, notPublished(err)
	}
	good := len(msgs)
	var bad error
	for i := range msgs {
		if bad = t.check(&msgs[i]); bad != nil {
			good = i
			break
		}
	}
	n := 0
	for n < good || len(msgs) == 0 {
		k, err := t.sendSome(ctx, topic, msgs[n:good])
		if n += k; err != nil || len(msgs) == 0 {
			return n, err
		}
	}
	return n, bad
}

func notPublished(err error) error { return fmt.Errorf("%w: %w", transport.ErrNotPublished, err) }

// check says why a message cannot be sent, whatever the server.
func (t *Transport) check(m *transport.Message) error {
	switch {
	case len(m.ID) > idMost:
		return notPublished(fmt.Errorf("%w: an ID of %d bytes; it may have %d", transport.ErrTooLarge, len(m.ID), idMost))
	case m.Terms != nil && len(m.Terms.Once) > idMost:
		return notPublished(fmt.Errorf("%w: a name of %d bytes; it may have %d", transport.ErrTooLarge, len(m.Terms.Once), idMost))
	case len(m.Header) > headersMost:
		return notPublished(fmt.Errorf("%w: a header of %d names; it may have %d", transport.ErrTooLarge, len(m.Header), headersMost))
	case !m.Time.IsZero() && (m.Time.Before(earliest) || m.Time.After(latest)):
		return notPublished(fmt.Errorf("message %s has the time %v, which cannot be sent", m.ID, m.Time))
	}
	return nil
}

// What a client has under way at most, in bytes: publishes, and all that waits
// to be written.
const (
	underMost  = 4 << 20
	clientMost = 64 << 20
)

// sendSome sends as many messages as the server takes at a time.
func (t *Transport) sendSome(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	c := &call{publish: true}
	err := t.await(ctx, func() bool {
		most := int(min(max(t.welcome.MaxPublish, 1), math.MaxInt32))
		k, size := 0, 0
		for k < len(msgs) && k < most && (k == 0 || size+msgs[k].Size() <= 8*batchBytes) {
			size += msgs[k].Size()
			k++
		}
		c.count, c.bytes = k, size
		return t.under.messages == 0 || t.under.messages+k <= most && t.under.bytes+size <= underMost
	})
	if err != nil {
		return 0, notPublished(err)
	}
	if len(msgs) == 0 {
		t.mu.Unlock()
		return 0, nil
	}
	within := uint64(0)
	if d, ok := ctx.Deadline(); ok {
		within = max(1, milliseconds(time.Until(d)))
	}
	c.frames = make([]frame, c.count)
	for i := range c.frames {
		c.frames[i] = publishFrame(framePub, topic, &msgs[i])
		c.frames[i].Within = within
		c.frames[i].Chain = i > 0
		c.frames[i].demand(msgs[i].Terms)
		if err = t.tooLarge(&c.frames[i]); err != nil {
			if c.count = i; i == 0 {
				t.mu.Unlock()
				return 0, err
			}
			break
		}
	}
	c.frames = c.frames[:c.count]
	c.bytes = 0
	for i := range c.frames {
		c.bytes += msgs[i].Size()
	}
	t.under.add(c.count, c.bytes)
	t.add(c)
	t.mu.Unlock()
	select {
	case <-c.done:
	case <-ctx.Done():
		return t.partly(c, msgs, context.Cause(ctx))
	case <-t.ctx.Done():
		return t.partly(c, msgs, transport.ErrClosed)
	}
	n, e := c.result(msgs)
	return n, cmp.Or(e, err)
}

// publishFrame is a frame with a message for a topic.
func publishFrame(typ frameType, topic string, m *transport.Message) frame {
	f := frameOf(typ, m)
	f.Pos, f.Attempt, f.Topic = transport.Position{}, 0, topic
	if f.Time.IsZero() { // the same one if it is sent again
		f.Time = time.Now().UTC()
	}
	return f
}

// tooLarge returns an error if a frame with a message is larger than the server
// takes. The caller holds mu.
func (t *Transport) tooLarge(f *frame) error {
	limit := t.welcome.MaxMessage
	m := f.message()
	if limit == 0 || uint64(6*(m.Size()+len(m.ID)+len(f.Topic)+len(f.Name))+16*len(f.Header)+1024) <= limit { // whatever is escaped
		return nil
	}
	again := *f
	again.Again, again.Rid = true, math.MaxUint64
	n := len(t.link.out.codec.append(nil, &again))
	if uint64(n) <= limit {
		return nil
	}
	return notPublished(fmt.Errorf("%w: message %s takes %d bytes, the server takes %d", transport.ErrTooLarge, f.ID, n, limit))
}

// partly is the result of a call that is given up. The server may still be at
// it, so it counts among those under way.
func (t *Transport) partly(c *call, msgs []transport.Message, why error) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-c.done:
		return c.result(msgs)
	default:
	}
	c.abandoned = true
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
	if e, ok := errors.AsType[*Error](c.err); ok && e.Code == CodeUnknown {
		return len(c.at), c.err
	}
	if c.more {
		return len(c.at), fmt.Errorf("%w: %w", transport.ErrPublishUnknown, c.err)
	}
	return len(c.at), notPublished(c.err)
}

// do sends a request about deliveries and waits for the answer. Its error wraps
// ErrNotPublished if a message was not even sent.
func (t *Transport) do(ctx context.Context, m *member, gen uint64, f frame) (gone []uint64, err error) {
	c := &call{count: 1, frames: []frame{f}, of: m, gen: gen}
	if f.Type == frameMove {
		msg := f.message()
		c.bytes = max(1, msg.Size())
	}
	if err := t.await(ctx, func() bool { return m.settles() && t.fits(c.bytes) }); err != nil {
		if c.bytes > 0 {
			err = notPublished(err)
		}
		return nil, err
	}
	if gen != m.generation() {
		t.mu.Unlock()
		return f.Ns, nil
	}
	if c.bytes > 0 {
		if err := t.tooLarge(&f); err != nil {
			t.mu.Unlock()
			return nil, err
		}
		t.under.add(1, c.bytes)
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
	if c.bytes > 0 { // the server may still be at it, so it counts among those under way
		c.abandoned = true
	} else {
		t.forget(c)
	}
	return nil, err
}

// Subscribe implements [transport.Subscriber]. Without a link it waits for one.
// A subscription to a group is an Acker, Nacker, Releaser, Extender and Mover at the
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

// fits reports whether a message of a size may be under way besides the others.
// The caller holds mu.
func (t *Transport) fits(size int) bool {
	return size == 0 || t.under.messages == 0 ||
		t.under.messages < int(min(max(t.welcome.MaxPublish, 1), math.MaxInt32)) && t.under.bytes+size <= underMost
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

// spawn runs f in a goroutine that Close waits for, unless the transport is closed.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.work.Go(f)
	return true
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
	if i := strings.IndexAny(url, "?#"); i >= 0 {
		url = url[:i]
	}
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + "://" + rest
}

// later sends a frame from where the lock may be held.
func (t *Transport) later(f frame) { t.work.Go(func() { t.send(f) }) }
