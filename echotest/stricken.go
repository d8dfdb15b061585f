package echotest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// stricken is a subscription of a transport that misbehaves.
type stricken struct {
	transport.Subscription
	f          *faulty
	topic, who string
	acker      transport.Acker
	nacker     transport.Nacker

	since time.Time     // when late ones were received; Receive's
	pause time.Duration // how long they are delayed; Receive's

	mu   sync.Mutex                   // guards the rest
	late []transport.Message          // received, and delayed
	held map[transport.Receipt]uint64 // numbers of messages whose leases were not lost here
}

func (s *stricken) Unwrap() transport.Subscription { return s.Subscription }

// strikes reports whether a fault strikes the message with a number here.
func (s *stricken) strikes(fault string, number uint64, rate float64) bool {
	return s.f.strikes(strike{fault, s.topic, s.who, number}, rate)
}

// Receive hands out messages, perhaps late: then it keeps them meanwhile, also
// when ctx ends. The transport gives them back if the subscription is closed.
func (s *stricken) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	for {
		s.mu.Lock()
		none := len(s.late) == 0
		s.mu.Unlock()
		if none {
			n, err := s.Subscription.Receive(ctx, dst)
			if s.pause = s.delay(dst[:n]); s.pause == 0 {
				s.hand(ctx, dst[:n])
				return n, err
			}
			s.mu.Lock()
			s.late, s.since = append(s.late, dst[:n]...), time.Now()
			s.mu.Unlock()
		}
		left := time.NewTimer(s.pause - time.Since(s.since))
		defer left.Stop()
		select {
		case <-left.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		s.mu.Lock()
		n := copy(dst, s.late)
		s.late = s.late[n:]
		s.mu.Unlock()
		if n > 0 { // else they went back
			s.hand(ctx, dst[:n])
			return n, nil
		}
	}
}

// Nack gives messages back. Without a delay what is late goes back, too, as it
// came after them.
func (s *stricken) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	if delay <= 0 {
		defer s.recall(ctx)
	}
	return s.nacker.Nack(ctx, rs, delay)
}

// Release gives messages back, and what is late.
func (s *stricken) Release(ctx context.Context, rs []transport.Receipt) error {
	defer s.recall(ctx)
	return s.release(ctx, rs)
}

func (s *stricken) release(ctx context.Context, rs []transport.Receipt) error {
	if r, ok := transport.As[transport.Releaser](s.Subscription); ok {
		return r.Release(ctx, rs)
	}
	return s.nacker.Nack(ctx, rs, 0)
}

// recall gives back what is late. What cannot be comes when its lease ends.
func (s *stricken) recall(ctx context.Context) {
	s.mu.Lock()
	var rs []transport.Receipt
	for i := range s.late {
		rs = append(rs, s.late[i].Receipt())
	}
	s.late = nil
	s.mu.Unlock()
	if len(rs) > 0 {
		s.release(context.WithoutCancel(ctx), rs)
	}
}

// delay returns how long messages are to be late.
func (s *stricken) delay(msgs []transport.Message) (most time.Duration) {
	for i := range msgs {
		number := s.f.number(s.topic, msgs[i].ID)
		if s.strikes("delay", number, s.f.plan.Delay) {
			s.f.count(&s.f.counts.Delayed)
			r := s.f.draw(strike{"delay for", s.topic, s.who, number})
			most = max(most, 1+time.Duration(r.Int64N(int64(s.f.plan.MaxDelay))))
		}
	}
	return most
}

// hand notes which messages are handed out, and takes the leases of some away.
func (s *stricken) hand(ctx context.Context, msgs []transport.Message) {
	ctx = context.WithoutCancel(ctx) // they were received
	for i := range msgs {
		m := &msgs[i]
		number := s.f.number(s.topic, m.ID)
		if s.strikes("lose lease", number, s.f.plan.LoseLease) && s.nacker.Nack(ctx, []transport.Receipt{m.Receipt()}, 0) == nil {
			s.f.count(&s.f.counts.LostLeases)
			continue
		}
		s.mu.Lock()
		s.held[m.Receipt()] = number
		s.mu.Unlock()
	}
}

// Ack acknowledges messages but for those that are struck: whose
// acknowledgement gets lost, or which come again.
func (s *stricken) Ack(ctx context.Context, rs []transport.Receipt) error {
	var done, again []transport.Receipt
	for _, r := range rs {
		s.mu.Lock()
		number, ok := s.held[r]
		delete(s.held, r)
		s.mu.Unlock()
		switch {
		case ok && s.strikes("lose ack", number, s.f.plan.LoseAck):
			s.f.count(&s.f.counts.LostAcks)
		case ok && s.strikes("duplicate", number, s.f.plan.Duplicate):
			again = append(again, r)
		default:
			done = append(done, r)
		}
	}
	var err error
	if len(done) > 0 {
		err = s.acker.Ack(ctx, done)
	}
	if len(again) == 0 {
		return err
	}
	nack := s.nacker.Nack(ctx, again, 0)
	if nack == nil {
		s.f.mu.Lock()
		s.f.counts.Duplicates += len(again)
		s.f.mu.Unlock()
	}
	return both(err, nack)
}

// both joins the errors of two settlements, which may name lost leases.
func both(a, b error) error {
	one, ok1 := errors.AsType[*transport.LeaseError](a)
	two, ok2 := errors.AsType[*transport.LeaseError](b)
	if ok1 && ok2 {
		return &transport.LeaseError{Lost: append(one.Lost, two.Lost...)}
	}
	switch {
	case a == nil, ok1 && b != nil:
		return b
	case b == nil, ok2:
		return a
	}
	return errors.Join(a, b)
}
