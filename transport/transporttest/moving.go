package transporttest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// moving: what Move does.
var moving = []promise{
	{"a message that is moved to the dead letters is there once, and settled", func(b *bench) {
		s := b.group("t", "g")
		b.sendNew("t", 3)
		msgs := s.receive(3)
		dead := b.dead(msgs[1])
		s.move("t.dead", dead, msgs[1])
		s.ack(msgs[0])
		s.nack(0, msgs[2])
		again := s.one()
		b.sameIDs("what was not settled", []transport.Message{again}, msgs[2:])
		s.ack(again)
		s.close()
		b.group("t", "g").nothing(50*time.Millisecond, "two are done, and one was moved")
		d := b.group("t.dead", "g")
		b.same(d.one(), dead)
		d.nothing(50*time.Millisecond, "one message was moved")
	}},
	{"a dead letter can be moved home", func(b *bench) {
		s := b.group("t", "g")
		sent := b.sendNew("t", 1)
		m := s.one()
		s.move("t.dead", b.dead(m), m)
		d := b.group("t.dead", "g")
		d.move("t", sent[0], d.one())
		again := s.one()
		b.same(again, sent[0])
		if again.Attempt != 1 {
			b.Errorf("got attempt %d of the message that came home, want 1", again.Attempt)
		}
		d.nothing(50*time.Millisecond, "it went home")
	}},
	{"a message that is not held any more is not moved", func(b *bench) {
		s := b.group("t", "g")
		mover := capability[transport.Mover](s)
		b.sendNew("t", 1)
		m := s.one()
		s.nack(0, m)
		again := s.one()
		err := mover.Move(b.ctx, "t.dead", b.dead(m), m.Receipt())
		e, ok := errors.AsType[*transport.LeaseError](err)
		if !ok || !errors.Is(err, transport.ErrLeaseLost) || !e.Has(m.Receipt()) {
			b.Fatalf("Move with an old receipt: got %v, want a LeaseError that names it", err)
		}
		b.group("t.dead", "g").nothing(50*time.Millisecond, "nothing was moved")
		s.ack(again)
	}},
	{"a message is moved or settled, and not both", func(b *bench) {
		const n = 50
		s := b.group("t", "g")
		mover, acker := capability[transport.Mover](s), capability[transport.Acker](s)
		b.sendNew("t", n)
		msgs := s.receive(n)
		moved := make(chan int)
		go func() {
			k := 0
			for _, m := range msgs {
				if mover.Move(b.ctx, "t.dead", b.dead(m), m.Receipt()) == nil {
					k++
				}
			}
			moved <- k
		}()
		acked := 0
		for i := len(msgs) - 1; i >= 0; i-- {
			if acker.Ack(b.ctx, []transport.Receipt{msgs[i].Receipt()}) == nil {
				acked++
			}
		}
		k := <-moved
		if k+acked != n {
			b.Errorf("%d messages were moved and %d acknowledged, want %d together", k, acked, n)
		}
		d := b.group("t.dead", "g")
		d.receive(k)
		d.nothing(50*time.Millisecond, "no more were moved")
		s.nothing(50*time.Millisecond, "all are settled")
	}},
	{"a context that has ended moves nothing", func(b *bench) {
		s := b.group("t", "g")
		mover := capability[transport.Mover](s)
		b.sendNew("t", 1)
		m := s.one()
		ctx, cancel := context.WithCancel(b.ctx)
		cancel()
		if err := mover.Move(ctx, "t.dead", b.dead(m), m.Receipt()); !errors.Is(err, transport.ErrNotPublished) || !errors.Is(err, context.Canceled) {
			b.Errorf("Move with a cancelled context: got %v, want ErrNotPublished and context.Canceled", err)
		}
		s.move("t.dead", b.dead(m), m)
	}},
	{"a topic that refuses leaves a message where it was", func(b *bench) {
		s := b.group("t", "g")
		mover := capability[transport.Mover](s)
		b.sendNew("t", 1)
		m := s.one()
		if err := mover.Move(b.ctx, "t:dead", b.dead(m), m.Receipt()); !errors.Is(err, transport.ErrNotPublished) {
			b.Errorf("Move to a topic whose name is wrong: got %v, want ErrNotPublished", err)
		}
		if err := mover.Move(b.ctx, transport.InboxTopic("a"), b.dead(m), m.Receipt()); !transport.RefusedForItself(err) {
			b.Errorf("Move to a topic for replies: got %v, want ErrNotPublished and ErrUnsupported", err)
		}
		s.nack(0, m)
		if again := s.one(); again.ID != m.ID {
			b.Errorf("got message %s, want %s", again.ID, m.ID)
		}
	}},
	{"a topic of dead letters is listed from the first one on", func(b *bench) {
		l, ok := transport.As[transport.Lister](b.tr)
		if !ok {
			b.Skip("the transport is no transport.Lister")
		}
		s := b.group("t", "g")
		b.sendNew("t", 1)
		m := s.one()
		s.move("t.dead", b.dead(m), m)
		if got, err := l.Topics(b.ctx, "*.dead"); err != nil || !slices.Equal(got, []string{"t.dead"}) {
			b.Errorf("Topics: got %v, %v, want t.dead", got, err)
		}
	}},
}

// dead is m as a dead letter.
func (b *bench) dead(m transport.Message) transport.Message {
	d := m.Clone()
	d.Header = map[string]string{"reason": "it failed"}
	return d
}

func (s *sub) move(topic string, as, m transport.Message) {
	s.b.Helper()
	mover := capability[transport.Mover](s)
	if err := mover.Move(s.b.ctx, topic, as, m.Receipt()); err != nil {
		s.b.Fatalf("Move of %s to %s: %v", m.ID, topic, err)
	}
}
