package memstream

import (
	"context"
	"runtime"
	"time"

	"github.com/echobus/echo/transport"
)

// subscription is a member of a group. The topic's lock guards its fields
// after woken, but for those that belong to the one caller of Receive.
type subscription struct {
	group                *group
	maxPending, maxBytes int // bounds of what it holds; 0 means none
	lease                time.Duration
	woken                chan struct{} // holds a token when Receive should look again

	spans  []span
	lastN  int           // messages last received
	lastAt time.Duration // and when

	held      int // messages not settled
	heldBytes int
	idle      bool // in group.waiting
	full      bool // Receive waits for a settlement
	closed    bool
}

// span is a run of new messages to copy out of a segment, which counts s
// among its readers meanwhile.
type span struct {
	seg  *segment
	msgs []transport.Message
}

var (
	_ transport.Subscription = (*subscription)(nil)
	_ transport.Acker        = (*subscription)(nil)
	_ transport.Nacker       = (*subscription)(nil)
	_ transport.Releaser     = (*subscription)(nil)
	_ transport.Extender     = (*subscription)(nil)
	_ transport.Mover        = (*subscription)(nil)
	_ transport.Positioner   = (*subscription)(nil)
)

func (s *subscription) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	g, t := s.group, s.group.topic
	s.linger()
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		t.mu.Lock()
		n, err := s.take(dst)
		if n > 0 || err != nil {
			g.pass()
			t.mu.Unlock()
			s.copy(dst[:n])
			if !t.inbox { // whoever waits for a reply waits for this one
				s.lastN, s.lastAt = n, clock()
			}
			return n, err
		}
		s.wait()
		t.mu.Unlock()

		select {
		case <-s.woken:
		case <-ctx.Done():
			t.mu.Lock()
			s.full = false
			if !g.unwait(s) {
				g.pass() // the wake-up we did not use
			}
			t.mu.Unlock()
			return 0, ctx.Err()
		}
	}
}

// Position implements [transport.Positioner], for a group too.
func (s *subscription) Position() transport.Position {
	t := s.group.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at(s.group.next - 1)
}

// linger lets a few messages come before they are received, when the last ones
// were few and a moment ago and more keep coming: together they are much
// cheaper for both sides. Where messages come slower than two in a glance it
// costs no more than the glance.
func (s *subscription) linger() {
	const (
		few    = 64
		moment = 20 * time.Microsecond
		glance = time.Microsecond
		most   = 10 * time.Microsecond
	)
	if s.lastN == 0 || s.lastN >= few || clock()-s.lastAt > moment {
		return
	}
	tail := &s.group.topic.tail
	before := tail.Load()
	yield(glance)
	if n := tail.Load() - before; n >= 2 && n < few {
		yield(min(glance*time.Duration(few-n)/time.Duration(n), most))
	}
}

// yield lets other goroutines run for about d. It counts, too, as in a
// testing/synctest bubble the clock stands still while anybody runs.
func yield(d time.Duration) {
	until := clock() + d
	for range d / (20 * time.Nanosecond) {
		if runtime.Gosched(); clock() >= until {
			return
		}
	}
}

// wait notes that Receive is about to wait, and for what.
func (s *subscription) wait() {
	select {
	case <-s.woken: // an old token
	default:
	}
	if s.room() == 0 || s.group.available() { // no room at all, or not for what is there
		s.full = true
		return
	}
	s.idle = true
	s.group.topic.idle++
	s.group.waiting = append(s.group.waiting, s)
}

func (s *subscription) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// room is how many messages the subscription may be given now, the bound in
// bytes apart.
func (s *subscription) room() int {
	switch {
	case s.maxBytes > 0 && s.held > 0 && s.heldBytes >= s.maxBytes:
		return 0
	case s.maxPending > 0:
		return s.maxPending - s.held
	}
	return int(^uint(0) >> 1)
}

// take gives the subscription what is there: first what must be delivered
// again, which it copies to dst, then new messages, whose place it notes in
// spans for copy to fill in without the lock.
func (s *subscription) take(dst []transport.Message) (int, error) {
	g := s.group
	s.spans = s.spans[:0]
	switch {
	case s.closed, g.topic.closed:
		return 0, transport.ErrClosed
	case g.lost > 0 || g.foreign:
		e := &transport.LostError{Topic: g.topic.name, Group: g.name, Count: g.lost, Next: g.topic.at(g.next - 1)}
		if g.foreign {
			e.Count = 0
		}
		g.lost, g.foreign = 0, false
		return 0, e
	}
	room := min(len(dst), s.room())
	if room <= 0 || !g.available() {
		return 0, nil
	}
	now := clock()
	n := s.takeReady(dst[:room], now)
	if len(g.ready) == 0 && !g.overfull() {
		n += s.takeNew(room-n, now)
	}
	if n > 0 {
		g.arm(after(now, s.lease), now)
	}
	return n, nil
}

func (s *subscription) takeReady(dst []transport.Message, now time.Duration) (n int) {
	g := s.group
	for n < len(dst) && len(g.ready) > 0 {
		p := g.parked[g.ready[0].i]
		if s.held > 0 && !s.fits(p.size) {
			break
		}
		g.ready.pop()
		p.attempt++
		p.token++
		p.holder, p.deadline = s, after(now, s.lease)
		s.hold(1, p.size)
		dst[n] = p.msg
		dst[n].Attempt, dst[n].Token = p.attempt, p.token
		n++
	}
	return n
}

func (s *subscription) takeNew(room int, now time.Duration) (n int) {
	g, log := s.group, &s.group.topic.log
	first := g.next
	last := min(first+uint64(room), log.next)
	for last > first && !s.fits(log.size(first, last)) {
		if last = first + (last-first)/2; last == first && s.held == 0 {
			last++ // one that is larger than the bound
			break
		}
	}
	if last == first {
		return 0
	}
	for k, i := log.find(first), first; i < last; k++ {
		seg := log.segs[k]
		from := int(i - seg.base)
		to := min(from+int(last-i), len(seg.msgs))
		seg.readers.Add(1)
		s.spans = append(s.spans, span{seg, seg.msgs[from:to]})
		i += uint64(to - from)
	}
	s.hold(int(last-first), log.size(first, last))
	g.flight = append(g.flight, run{first, last, s, after(now, s.lease)})
	g.limit()
	g.next = last
	return int(last - first)
}

// fits reports whether s may hold so many bytes more. What does not fit is
// given to a subscription that holds nothing all the same, one by one.
func (s *subscription) fits(size int) bool {
	return s.maxBytes == 0 || s.heldBytes+size <= s.maxBytes
}

// hold notes that s was given messages.
func (s *subscription) hold(n, size int) {
	s.held += n
	s.heldBytes += size
}

// drop undoes hold.
func (s *subscription) drop(n, size int) {
	s.held -= n
	s.heldBytes -= size
	if s.full {
		s.full = false
		s.wake()
	}
}

// copy fills the end of dst with the messages that take noted.
func (s *subscription) copy(dst []transport.Message) {
	n := len(dst)
	for _, sp := range s.spans {
		n -= len(sp.msgs)
	}
	for _, sp := range s.spans {
		n += copy(dst[n:], sp.msgs)
		sp.seg.readers.Add(-1)
	}
	clear(s.spans)
}

func (s *subscription) Lease() time.Duration { return s.lease }

func (s *subscription) Ack(ctx context.Context, rs []transport.Receipt) error {
	g := s.group
	return s.each(ctx, rs, settlement{
		run:    g.settle,
		parked: g.settleParked,
	})
}

func (s *subscription) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return s.giveBack(ctx, rs, delay, 0)
}

func (s *subscription) Release(ctx context.Context, rs []transport.Receipt) error {
	return s.giveBack(ctx, rs, 0, 1)
}

// giveBack gives messages back and takes attempts off their count.
func (s *subscription) giveBack(ctx context.Context, rs []transport.Receipt, delay time.Duration, attempts int) error {
	g, now := s.group, clock()
	return s.each(ctx, rs, settlement{
		run: func(k int, a, b uint64) {
			for i := b; i > a; i-- {
				p := g.park(k, i-1)
				p.attempt -= attempts
				g.giveBack(i-1, p, delay, now)
			}
		},
		parked: func(i uint64, p *parked) {
			p.attempt -= attempts
			g.giveBack(i, p, delay, now)
		},
	})
}

func (s *subscription) Extend(ctx context.Context, rs []transport.Receipt, lease time.Duration) error {
	if lease == 0 {
		lease = s.lease
	}
	g, now := s.group, clock()
	return s.each(ctx, rs, settlement{
		run: func(k int, a, b uint64) {
			g.flight.extend(k, a, b, after(now, lease))
			g.arm(after(now, lease), now)
		},
		parked: func(_ uint64, p *parked) {
			p.deadline = after(now, lease)
			g.arm(p.deadline, now)
		},
	})
}

// settlement is what happens to messages a to b-1 of run k of the flight, and
// to parked ones.
type settlement struct {
	run    func(k int, a, b uint64)
	parked func(i uint64, p *parked)
}

// each applies do to the deliveries of rs that s holds and names the others.
func (s *subscription) each(ctx context.Context, rs []transport.Receipt, do settlement) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g, t := s.group, s.group.topic
	now := clock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed || t.closed {
		return transport.ErrClosed
	}
	var lost []transport.Receipt
	for len(rs) > 0 {
		n := consecutive(rs)
		lost = s.apply(rs[:n], do, now, lost)
		rs = rs[n:]
	}
	g.pass()
	t.offerRoom()
	if lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return nil
}

// consecutive returns how many receipts at the start of rs are of first
// deliveries of consecutive messages, or 1.
func consecutive(rs []transport.Receipt) int {
	n, next := 1, rs[0].Position.Lo+1
	for n < len(rs) && rs[n].Token == firstToken && rs[n].Position.Lo == next {
		n, next = n+1, next+1
	}
	return n
}

// apply settles deliveries of consecutive messages.
func (s *subscription) apply(rs []transport.Receipt, do settlement, now time.Duration, lost []transport.Receipt) []transport.Receipt {
	g := s.group
	for len(rs) > 0 {
		i, token := rs[0].Position.Lo, rs[0].Token
		if p := g.parked[i]; p != nil {
			if p.holder == s && p.token == token && p.deadline > now {
				do.parked(i, p)
			} else {
				lost = append(lost, rs[0])
			}
			rs = rs[1:]
			continue
		}
		k := g.flight.find(i)
		if k == len(g.flight) || token != firstToken || g.flight[k].first > i || g.flight[k].holder != s || g.flight[k].deadline <= now {
			lost = append(lost, rs[0])
			rs = rs[1:]
			continue
		}
		n := min(uint64(len(rs)), g.flight[k].end-i)
		do.run(k, i, i+n)
		rs = rs[n:]
	}
	return lost
}

// Close ends the subscription. A group gets back what it held; a broadcast
// subscription's place in the topic goes with it.
func (s *subscription) Close() error {
	g, t := s.group, s.group.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.closed || t.closed {
		return nil
	}
	s.closed = true
	g.unwait(s)
	s.wake()
	if g.name == "" {
		t.remove(g)
		if transport.IsInbox(t.name) && len(t.groups) == 0 {
			t.of.forget(t)
		}
		return nil
	}
	g.leave(s, clock())
	g.wake(len(g.ready))
	return nil
}
