package wsstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// member is a group subscription of a Transport. Deliveries are held at the
// server; a token is the number of a delivery with that of its session.
type member struct {
	t      *Transport
	sid    uint64
	topic  string
	group  string
	start  frame
	opened chan struct{}
	err    error
	ended  chan struct{} // closed by Close

	mu      sync.Mutex // guards the rest
	known   bool
	open    bool // the server has it, on this link
	closed  bool
	lease   time.Duration
	gen     uint64              // of the session
	seen    uint64              // the last delivery that came
	batch   []transport.Message // the last of them
	came    []transport.Message
	lost    *transport.LostError
	final   error
	asked   int // messages that Receive waits for
	backs   int // how often deliveries are going back; Receive waits for it
	wake    chan struct{}
	waiting bool        // somebody is in Receive
	stale   *time.Timer // gives back what nobody receives
}

// generation bits of a token.
const genShift = 40

func newMember(t *Transport, sid uint64, topic string, o transport.Options) *member {
	return &member{
		t: t, sid: sid, topic: topic, group: o.Group, opened: make(chan struct{}), ended: make(chan struct{}), wake: make(chan struct{}, 1),
		start: frame{
			From: from(o.Start.From), Pos: o.Start.Position, ID: o.Start.ID, Time: o.Start.Time,
			Lease: milliseconds(o.Lease), Most: uint64(o.MaxPending), MostB: uint64(o.MaxPendingBytes),
		},
	}
}

func (s *member) generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

func (s *member) request(resumed bool) frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
	if !resumed && s.known {
		s.anew()
	}
	s.came, s.batch = append(s.came, s.batch...), nil
	if len(s.came) > 0 && !s.waiting { // as if it had not come
		s.seen = number(s.came[0].Token) - 1
		s.came = nil
	}
	f := s.start
	f.Type, f.Sid, f.Topic, f.Group, f.Manual = frameSub, s.sid, s.topic, s.group, true
	f.Resumed, f.Seen = resumed, s.seen // the server may have it even if its answer was lost
	return f
}

// anew forgets what came: nothing of it is held any more, and numbers begin at
// 1. The caller holds mu.
func (s *member) anew() {
	s.gen++
	s.seen = 0
	s.came, s.batch = nil, nil
}

// settles reports whether deliveries can be settled now, or never.
func (s *member) settles() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open || s.closed || s.final != nil
}

func (s *member) answered(f *frame) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.signal()
	if f.Type == frameSubOK {
		s.lease = duration(f.Lease)
		s.open = true
		switch {
		case !s.known:
			s.known = true
			close(s.opened)
		case !f.Resumed && s.seen > 0:
			s.anew()
		}
		if s.asked > 0 && s.backs == 0 {
			s.t.later(frame{Type: frameFlow, Sid: s.sid, Credit: uint64(s.asked), Once: true})
		}
		return goOn
	}
	s.open = false
	if s.known && f.Code.temporary() {
		s.anew()
		return askAgain
	}
	s.final = fmt.Errorf("wsstream: subscription of group %s to %s: %w", s.group, s.topic, &Error{Code: f.Code, Text: f.Text})
	s.anew()
	if !s.known {
		s.known = true
		s.err = s.final
		close(s.opened)
	}
	return over
}

func (s *member) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *member) message(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Type == frameGap {
		lost := &transport.LostError{Topic: s.topic, Group: s.group, Count: f.Count, Next: f.Pos}
		if s.lost != nil && s.lost.Count > 0 && lost.Count > 0 {
			lost.Count += s.lost.Count
		}
		s.lost = lost
		return nil
	}
	s.seen = f.N
	m := f.message()
	m.Token = s.gen<<genShift | f.N
	s.batch = append(s.batch, m)
	return nil
}

// arrived lets Receive have what came together. Were it one by one, Receive
// would ask for more while that is on its way.
func (s *member) arrived() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.batch) > 0 {
		s.asked = 0
		s.came, s.batch = append(s.came, s.batch...), s.batch[:0]
		clear(s.batch[:cap(s.batch)])
		s.watch()
	}
	s.signal()
}

// watch sees to it that what came goes back soon unless it is received. The
// caller holds mu.
func (s *member) watch() {
	if len(s.came) > 0 && !s.waiting && s.stale == nil && !s.closed && s.backs == 0 {
		s.stale = time.AfterFunc(100*time.Millisecond, s.giveUp)
	}
}

// giveUp gives back what came and nobody received for a while, as Receive was
// cancelled.
func (s *member) giveUp() {
	s.mu.Lock()
	s.stale = nil
	idle := !s.waiting && !s.closed && len(s.came) > 0 && s.backs == 0
	gen := s.gen
	s.mu.Unlock()
	if idle {
		s.giveBack(gen, frame{Type: frameNack, Sid: s.sid, Release: true})
	}
}

// result is the outcome of a settlement.
type result struct {
	gone []uint64
	err  error
}

// giveBack sends a request that gives deliveries back at once. What came after
// them and was not received, or is on its way, goes back with them, or Receive
// would return that first. Until there is an answer it returns nothing.
func (s *member) giveBack(gen uint64, f frame) <-chan result {
	done := make(chan result, 1)
	s.mu.Lock()
	f.Seen = s.unreceived(&f)
	if gen != s.gen || len(f.Ns) == 0 {
		s.mu.Unlock()
		done <- result{gone: f.Ns}
		return done
	}
	s.backs++
	s.mu.Unlock()
	ask := func() {
		gone, err := s.t.do(s.t.ctx, s, gen, f) // whoever waits for it or not
		s.wentBack()
		done <- result{gone, err}
	}
	if !s.t.spawn(ask) {
		ask() // which returns at once
	}
	return done
}

// unreceived returns the last delivery before those that came and were not
// received. A release names these, too. The caller holds mu.
func (s *member) unreceived(f *frame) (seen uint64) {
	seen = s.seen
	for _, ms := range [][]transport.Message{s.batch, s.came} {
		if !f.Release && len(ms) > 0 {
			seen = number(ms[0].Token) - 1
		}
		for i := range ms {
			if f.Release {
				f.Ns = append(f.Ns, number(ms[i].Token))
			}
		}
	}
	return seen
}

// tookBack drops what came and was not received: the server answers that it took
// that back.
func (s *member) tookBack(gen uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if gen == s.gen {
		s.came, s.batch = nil, nil
	}
}

// wentBack notes that giveBack is done. There may be no credit left.
func (s *member) wentBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backs--
	s.asked = 0
	s.watch()
	s.signal()
}

// number is that of a delivery, by its token.
func number(token uint64) uint64 { return token & (1<<genShift - 1) }

func (s *member) Receive(ctx context.Context, dst []transport.Message) (n int, err error) {
	if len(dst) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	s.waiting = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting = false
		s.watch()
	}()
	for {
		s.mu.Lock()
		err := ctx.Err()
		switch {
		case s.closed:
			err = transport.ErrClosed
		case err != nil:
		case s.lost != nil:
			err, s.lost = s.lost, nil
		case s.backs > 0 && s.final == nil:
		case len(s.came) > 0:
			n = copy(dst, s.came)
			clear(s.came[:n])
			if s.came = s.came[n:]; len(s.came) == 0 {
				s.came = nil
			}
			s.asked = 0
			s.mu.Unlock()
			return n, nil
		case s.final != nil:
			err = s.final
		}
		if err != nil {
			withdraw := s.asked > 0 && !s.closed
			s.asked = 0
			s.mu.Unlock()
			if withdraw {
				s.t.send(frame{Type: frameFlow, Sid: s.sid, Once: true})
			}
			return 0, err
		}
		ask := s.asked == 0 && s.open && s.backs == 0
		s.asked = len(dst) // and subok asks, if it is still to come
		s.mu.Unlock()
		if ask {
			s.t.send(frame{Type: frameFlow, Sid: s.sid, Credit: uint64(len(dst)), Once: true})
		}
		select {
		case <-s.wake:
		case <-s.ended:
		case <-ctx.Done():
		}
	}
}

func (s *member) Lease() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lease
}

func (s *member) Ack(ctx context.Context, rs []transport.Receipt) error {
	return s.settle(ctx, rs, frame{Type: frameAck})
}

func (s *member) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return s.settle(ctx, rs, frame{Type: frameNack, Delay: milliseconds(delay)})
}

func (s *member) Release(ctx context.Context, rs []transport.Receipt) error {
	return s.settle(ctx, rs, frame{Type: frameNack, Release: true})
}

func (s *member) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	return s.settle(ctx, rs, frame{Type: frameExtend, Lease: milliseconds(d)})
}

func (s *member) settle(ctx context.Context, rs []transport.Receipt, f frame) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	closed, gen := s.closed, s.gen
	s.mu.Unlock()
	if closed {
		return transport.ErrClosed
	}
	var lost []transport.Receipt
	byN := make(map[uint64]transport.Receipt, len(rs))
	for _, r := range rs {
		n := number(r.Token)
		if r.Token>>genShift != gen {
			lost = append(lost, r)
			continue
		}
		byN[n] = r
		f.Ns = append(f.Ns, n)
	}
	if len(f.Ns) > 0 {
		f.Sid = s.sid
		gone, err := s.ask(ctx, gen, f)
		if err != nil {
			if errors.Is(err, transport.ErrClosed) {
				return err
			}
			return fmt.Errorf("wsstream: %s: %w", f.Type, err)
		}
		for _, n := range gone {
			if r, ok := byN[n]; ok {
				lost = append(lost, r)
			}
		}
	}
	if lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return nil
}

// ask sends a request that settles deliveries, and waits for the answer.
func (s *member) ask(ctx context.Context, gen uint64, f frame) (gone []uint64, err error) {
	if f.Type != frameNack || f.Delay > 0 {
		return s.t.do(ctx, s, gen, f)
	}
	select {
	case r := <-s.giveBack(gen, f):
		return r.gone, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Move implements [transport.Mover], as the transport behind the server does. A
// member may put what it holds among the dead letters of its topic; elsewhere
// it needs the right to publish.
func (s *member) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	if ctx.Err() != nil {
		return notPublished(context.Cause(ctx))
	}
	if err := transport.CheckMove(topic); err != nil {
		return notPublished(err)
	}
	if err := s.t.check(&m); err != nil {
		return err
	}
	s.mu.Lock()
	closed, gen := s.closed, s.gen
	s.mu.Unlock()
	if closed {
		return transport.ErrClosed
	}
	if r.Token>>genShift != gen {
		return &transport.LeaseError{Lost: []transport.Receipt{r}}
	}
	f := publishFrame(frameMove, topic, &m)
	f.Sid, f.Ns = s.sid, []uint64{number(r.Token)}
	gone, err := s.t.do(ctx, s, gen, f)
	switch e, refused := errors.AsType[*Error](err); {
	case err == nil && len(gone) > 0:
		return &transport.LeaseError{Lost: []transport.Receipt{r}}
	case refused && e.Code != CodeUnknown:
		return notPublished(err)
	}
	return err
}

// Close implements [transport.Subscription]. It waits, for 100 ms at most, until
// the server says that what was held went back.
func (s *member) Close() error {
	untouched, first := s.close()
	if !first {
		return nil
	}
	if len(untouched.Ns) > 0 {
		s.t.send(untouched)
	}
	if c := s.t.end(s.sid, true); c != nil {
		t := time.NewTimer(100 * time.Millisecond)
		defer t.Stop()
		select {
		case <-c.done:
		case <-t.C:
		case <-s.t.ctx.Done():
		}
		s.t.mu.Lock()
		s.t.forget(c)
		s.t.mu.Unlock()
	}
	return nil
}

// close returns what gives back the deliveries that nobody received, as if they
// had not been made, and whether it was the first to close.
func (s *member) close() (untouched frame, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return frame{}, false
	}
	s.closed = true
	untouched = frame{Type: frameNack, Sid: s.sid, Release: true}
	for _, m := range append(s.came, s.batch...) {
		untouched.Ns = append(untouched.Ns, number(m.Token))
	}
	s.came = nil
	if s.stale != nil {
		s.stale.Stop()
	}
	close(s.ended)
	return untouched, true
}

func (s *member) shut(error) {
	if untouched, first := s.close(); first && len(untouched.Ns) > 0 {
		s.t.send(untouched)
	}
}
