package redisstream

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// longest is how long a settlement is tried: not longer than it matters.
func (s *member) longest() time.Duration { return min(settleMost, max(s.lease, time.Second)) }

func (s *member) Lease() time.Duration { return s.lease }

func (s *member) Ack(ctx context.Context, rs []transport.Receipt) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	set := s.settle(rs, s.lease, clock())
	defer set.free()
	lost, err := s.ack(ctx, set)
	if err != nil {
		s.restore(set)
		s.t.failed(err)
		return describe("XACK", s.key, err)
	}
	s.t.count.acked.Add(uint64(len(set.rs) - len(lost)))
	s.t.count.stale.Add(uint64(len(lost) + len(set.lost)))
	return leaseError(append(set.lost, lost...))
}

// ack acknowledges deliveries that s believes to hold, and returns those it
// did not.
func (s *member) ack(ctx context.Context, set *settling) (lost []transport.Receipt, err error) {
	if len(set.rs) == 0 {
		return nil, nil
	}
	if set.unsure { // somebody else may have some of them; XACK does not ask whose they are
		return s.settleByScript(ctx, "ack", set.rs, "", 0, 0)
	}
	n, again, err := s.ackIDs(ctx, set.rs)
	switch {
	case err != nil:
		return nil, err
	case again || set.tried || n == len(set.rs): // the first reply was lost and cannot be asked for
		return nil, nil
	case n == 0:
		return slices.Clone(set.rs), nil // the group was lost
	}
	// Somebody else acknowledged some, and the server does not say which.
	s.t.count.stale.Add(uint64(len(set.rs) - n))
	s.t.cfg.logger.Warn("redisstream: messages were not pending when acknowledged", "topic", s.topic, "group", s.name.group, "messages", len(set.rs)-n)
	return nil, nil
}

// ackIDs acknowledges entries, whoever holds them.
func (s *member) ackIDs(ctx context.Context, rs []transport.Receipt) (n int, again bool, err error) {
	x := pipelines.Get().(*xadds)
	x.args = append(x.args, &xack, &s.key, &s.name.group)
	x.ids(rs)
	again, err = s.t.retrying(ctx, s.longest(), func(ctx context.Context) error {
		x.replies.b = x.replies.b[:0]
		if err := raw(ctx, s.t.clients.command(), &x.replies, 1, x.args); err != nil {
			return err
		}
		c := cursor{x.replies.b}
		k, err := c.integer()
		n = int(k)
		return err
	})
	if ctx.Err() == nil { // otherwise the command may be under way
		x.free()
	}
	if err != nil {
		return 0, again, err
	}
	return n, again, nil
}

var xack = "XACK"

// ids appends the IDs of deliveries.
func (x *xadds) ids(rs []transport.Receipt) {
	from := len(x.args)
	for _, r := range rs {
		x.text = appendID(x.text, r.Position)
		x.cuts = append(x.cuts, len(x.text))
		x.args = append(x.args, nil)
	}
	start := 0
	for _, end := range x.cuts {
		x.pieces = append(x.pieces, x.text[start:end])
		start = end
	}
	for i := range x.pieces {
		x.args[from+i] = &x.pieces[i]
	}
}

func (s *member) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	if delay > horizon {
		return fmt.Errorf("redisstream: a delay of %v is longer than %v", delay, horizon)
	}
	return s.give(ctx, rs, max(delay, 0), 0)
}

func (s *member) Release(ctx context.Context, rs []transport.Receipt) error {
	return s.give(ctx, rs, 0, 1)
}

// give gives deliveries back, for after delay, and takes some off their count.
func (s *member) give(ctx context.Context, rs []transport.Receipt, delay time.Duration, less int) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	set := s.settle(rs, s.lease, clock())
	defer set.free()
	idle := atOnce
	if delay > 0 {
		idle = horizon - delay
	}
	lost, err := s.settleByScript(ctx, "give", set.rs, waiting, idle, less)
	if err != nil {
		s.restore(set)
		s.t.failed(err)
		return describe("giving back to", s.key, err)
	}
	s.t.count.givenBack.Add(uint64(len(set.rs) - len(lost)))
	s.t.count.stale.Add(uint64(len(lost) + len(set.lost)))
	if delay > 0 {
		s.group.pokeAfter(delay)
	} else {
		s.supersede()
		s.group.poke()
	}
	return leaseError(append(set.lost, lost...))
}

// supersede lets what goes back be received next. What a job brings after it is
// abandoned comes after that.
func (s *member) supersede() {
	s.state.Lock()
	defer s.state.Unlock()
	s.turn = false
	if s.job != nil {
		s.job.late = true
	}
}

func (s *member) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	if d == 0 {
		d = s.lease
	}
	if d < 0 || d > horizon {
		return fmt.Errorf("redisstream: a lease of %v is not between 0 and %v", d, horizon)
	}
	now := clock()
	held, lost := s.holding(rs, now)
	to, idle := s.self, s.lease-d
	if d > s.lease {
		if to, idle = s.longer(d), 0; to == "" {
			return transport.ErrClosed
		}
	}
	gone, err := s.settleByScript(ctx, "extend", held, to, idle, 0)
	if err != nil {
		s.t.failed(err)
		return describe("extending leases in", s.key, err)
	}
	s.extend(held, now, now+d)
	lost = append(lost, gone...)
	s.drop(lost)
	s.t.count.leasesLost.Add(uint64(len(lost)))
	return leaseError(lost)
}

// longer returns the consumer's name with a longer lease, or "" if the
// subscription is closed: who leaves must know all names.
func (s *member) longer(d time.Duration) string {
	name := s.base + suffix(d)
	s.state.Lock()
	defer s.state.Unlock()
	if s.open(context.Background()) != nil {
		return ""
	}
	if !slices.Contains(s.names, name) {
		s.names = append(s.names[:len(s.names):len(s.names)], name)
	}
	return name
}

// open returns why nothing can be settled, or nil.
func (s *member) open(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.ended:
		return transport.ErrClosed
	default:
		return nil
	}
}

// settleByScript settles or extends those of rs that the server says s holds,
// and returns the others.
func (s *member) settleByScript(ctx context.Context, what string, rs []transport.Receipt, to string, idle time.Duration, less int) (lost []transport.Receipt, err error) {
	const most = 1000 // keep the server's other clients from waiting
	for ; len(rs) > 0 && err == nil; rs = rs[min(most, len(rs)):] {
		var gone []transport.Receipt
		gone, err = s.settleSome(ctx, what, rs[:min(most, len(rs))], to, idle, less)
		lost = append(lost, gone...)
	}
	return lost, err
}

func (s *member) settleSome(ctx context.Context, what string, rs []transport.Receipt, to string, idle time.Duration, less int) (lost []transport.Receipt, err error) {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b transport.Receipt) int { return a.Position.Compare(b.Position) })
	s.state.Lock()
	names := s.names
	s.state.Unlock()
	args := append(make([]any, 0, 6+len(names)+len(rs)), what, s.name.group, to, milliseconds(idle), less, len(names))
	for _, name := range names {
		args = append(args, name)
	}
	for _, r := range rs {
		args = append(args, r.Position.String())
	}
	var reply sink
	again, err := s.t.retrying(ctx, s.longest(), func(ctx context.Context) error {
		reply.b = reply.b[:0]
		return s.t.run(ctx, settleScript, []string{s.key, s.losses}, &reply, args...)
	})
	if faultOf(err) == lostGroup {
		return rs, nil
	}
	if err != nil {
		return nil, err
	}
	if again && what != "extend" {
		return nil, nil // the first reply was lost: it may have settled them
	}
	c := cursor{reply.b}
	n, err := c.array()
	if err != nil {
		return nil, err
	}
	for range n {
		i, err := c.integer()
		if err != nil || i < 0 || i >= int64(len(rs)) {
			return nil, c.fail("an index of an id")
		}
		lost = append(lost, rs[i])
	}
	return lost, nil
}
