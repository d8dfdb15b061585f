package transporttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// settlement: what Ack, Nack and Release do.
var settlement = []promise{
	{"an acknowledged message does not come again", func(b *bench) {
		s := b.group("t", "g")
		sent := b.sendNew("t", 10)
		s.ack(s.receive(10)...)
		s.close()
		s = b.group("t", "g")
		more := b.sendNew("t", 1)
		b.sameIDs("after acknowledging the first ten", s.receive(1), more)
		s.nothing(50*time.Millisecond, "messages "+sent[0].ID+" to "+sent[9].ID+" are done")
	}},
	{"a message that is given back comes again with a higher attempt, before later ones", func(b *bench) {
		for topic, s := range map[string]*sub{"t.1": b.group("t.1", "g"), "t.2": b.broadcast("t.2")} {
			sent := b.sendNew(topic, 5)
			first := s.receive(2)
			s.nack(0, first...)
			again := s.receive(5)
			b.sameIDs("after two were given back", again, sent)
			for i, m := range again {
				if want := []int{2, 2, 1, 1, 1}[i]; m.Attempt != want {
					b.Errorf("message %s: got attempt %d, want %d", m.ID, m.Attempt, want)
				}
			}
			s.nack(0, again[1])
			if m := s.one(); m.ID != sent[1].ID || m.Attempt != 3 {
				b.Errorf("got message %s attempt %d, want %s attempt 3", m.ID, m.Attempt, sent[1].ID)
			}
			s.close()
		}
	}},
	{"a message given back with a delay comes after it, and holds nobody up", func(b *bench) {
		const delay = 300 * time.Millisecond
		s := b.group("t", "g")
		sent := b.sendNew("t", 2)
		first := s.one()
		begin := time.Now()
		s.nack(delay, first)
		next := s.one()
		b.sameIDs("while the first one is delayed", []transport.Message{next}, sent[1:])
		s.ack(next)
		again := s.one()
		if took := time.Since(begin); took < delay-10*time.Millisecond {
			b.Errorf("came again after %v, want no sooner than %v", took, delay)
		}
		if again.ID != first.ID || again.Attempt != 2 {
			b.Errorf("got message %s attempt %d, want %s attempt 2", again.ID, again.Attempt, first.ID)
		}
		b.same(again, sent[0])
	}},
	{"a message that is released comes again with the same attempt", func(b *bench) {
		s := b.group("t", "g")
		r := capability[transport.Releaser](s)
		sent := b.sendNew("t", 3)
		if err := r.Release(b.ctx, receipts(s.receive(3))); err != nil {
			b.Fatalf("Release: %v", err)
		}
		again := b.group("t", "g").receive(3)
		b.sameIDs("after the release", again, sent)
		for _, m := range again {
			if m.Attempt != 1 {
				b.Errorf("message %s: got attempt %d, want 1", m.ID, m.Attempt)
			}
		}
	}},
	{"what is released comes again in order before what is new, however much it is", func(b *bench) {
		s := b.group("t", "g")
		r := capability[transport.Releaser](s)
		sent := b.sendNew("t", 300)
		held := s.receive(100)
		for _, part := range [][]transport.Message{held[60:], held[:60]} { // in any order
			if err := r.Release(b.ctx, receipts(part)); err != nil {
				b.Fatalf("Release: %v", err)
			}
		}
		var again []transport.Message
		for len(again) < len(sent) {
			some := s.receive(min(8, len(sent)-len(again)))
			s.ack(some...)
			again = append(again, some...)
		}
		b.sameIDs("after the release", again, sent)
		b.sendNew("t", 60) // of which more are due again than are received
		s.nack(time.Millisecond, s.receive(30)...)
		time.Sleep(30 * time.Millisecond)
		held = s.receive(10)
		if err := r.Release(b.ctx, receipts(held)); err != nil {
			b.Fatalf("Release: %v", err)
		}
		b.sameIDs("after a delay and a release", s.receive(10), held)
	}},
	{"what goes back comes again before what came after it, though that was asked for and is on its way", func(b *bench) {
		for how, giveBack := range map[string]func(*sub, []transport.Message){
			"release": func(s *sub, held []transport.Message) {
				if err := capability[transport.Releaser](s).Release(b.ctx, receipts(held)); err != nil {
					b.Fatalf("Release: %v", err)
				}
			},
			"nack": func(s *sub, held []transport.Message) { s.nack(0, held...) },
		} {
			s := b.group(how, "g")
			attempts := map[string]int{}
			received := func(msgs []transport.Message) []transport.Message {
				for _, m := range msgs {
					if how == "nack" || attempts[m.ID] == 0 {
						attempts[m.ID]++
					}
					if m.Attempt != attempts[m.ID] {
						b.Errorf("%s, message %s: got attempt %d, want %d", how, m.ID, m.Attempt, attempts[m.ID])
					}
				}
				return msgs
			}
			sent := b.sendNew(how, 20)
			giveBack(s, received(s.receive(10)))
			for i, want := range sent {
				one := received(s.receive(1))
				b.sameIDs(fmt.Sprintf("%s, number %d", how, i), one, []transport.Message{want})
				s.ack(one...)
			}
			sent = b.sendNew(how, 200)
			held := received(s.receive(5))
			dst := make([]transport.Message, 20)
			for round := range 100 {
				ctx, cancel := context.WithTimeout(b.ctx, time.Duration(round*10)*time.Microsecond)
				n, err := s.Receive(ctx, dst)
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					b.Fatalf("Receive: %v", err)
				}
				held = append(held, received(dst[:n])...)
				giveBack(s, held)
				held = received(s.receive(5))
				b.sameIDs(fmt.Sprintf("%s, round %d", how, round), held, sent[round:round+5])
				s.ack(held[0])
				held = held[1:]
			}
		}
	}},
	{"settlements of one batch may differ", func(b *bench) {
		s := b.group("t", "g")
		sent := b.sendNew("t", 100)
		var done, failed, want []transport.Message
		for i, m := range s.receive(100) {
			if i%3 == 0 {
				failed, want = append(failed, m), append(want, sent[i])
			} else {
				done = append(done, m)
			}
		}
		slices.Reverse(done) // any order will do
		s.ack(done...)
		s.nack(0, failed...)
		b.sameIDs("the failed third", s.receive(len(want)), want)
		s.nothing(50*time.Millisecond, "the others are done")
	}},
	{"a receipt settles its own delivery only", func(b *bench) {
		s := b.group("t", "g")
		a := capability[transport.Acker](s)
		b.sendNew("t", 2)
		msgs := s.receive(2)
		s.nack(0, msgs[0])
		again := s.one()
		err := a.Ack(b.ctx, receipts(msgs))
		e, ok := errors.AsType[*transport.LeaseError](err)
		if !ok || !errors.Is(err, transport.ErrLeaseLost) || len(e.Lost) != 1 || !e.Has(msgs[0].Receipt()) {
			b.Fatalf("Ack with an old receipt and a good one: got %v, want a LeaseError that names the old one", err)
		}
		s.nack(0, again) // which the old receipt did not settle
		if m := s.one(); m.ID != msgs[0].ID || m.Attempt != 3 {
			b.Errorf("got message %s attempt %d, want %s attempt 3", m.ID, m.Attempt, msgs[0].ID)
		}
	}},
	{"one group's settlements are nothing to another", func(b *bench) {
		one, two := b.group("t", "one"), b.group("t", "two")
		sent := b.sendNew("t", 10)
		one.ack(one.receive(10)...)
		b.sameIDs("group two", two.receive(10), sent)
	}},
	{"a subscription holds no more messages than its bound", func(b *bench) {
		s := b.subscribe("t", transport.Options{Group: "g", MaxPending: 4})
		sent := b.sendNew("t", 10)
		dst := make([]transport.Message, 10)
		n, err := s.Receive(b.ctx, dst)
		if err != nil || n > 4 {
			b.Fatalf("Receive: got %d messages, %v, want at most 4", n, err)
		}
		held := append(dst[:n:n], s.receive(4-n)...)
		s.nothing(50*time.Millisecond, "four messages are held")
		s.ack(held[:3]...)
		b.sameIDs("after three were settled", s.receive(3), sent[4:7])
		s.nothing(50*time.Millisecond, "four messages are held again")
	}},
	{"a subscription holds no more bytes than its bound, but one message at least", func(b *bench) {
		s := b.subscribe("t", transport.Options{Group: "g", MaxPendingBytes: 1000})
		msgs := b.messages(4)
		for i, size := range []int{400, 400, 400, 5000} {
			msgs[i].Data = make([]byte, size)
		}
		b.send("t", msgs...)
		dst := make([]transport.Message, 10)
		n, err := s.Receive(b.ctx, dst)
		if err != nil || n > 2 {
			b.Fatalf("Receive: got %d messages, %v, want at most 2", n, err)
		}
		held := append(dst[:n:n], s.receive(2-n)...)
		s.nothing(50*time.Millisecond, "800 bytes are held")
		s.ack(held...)
		third := s.one()
		s.nothing(50*time.Millisecond, "400 bytes are held and the next message has 5,000")
		s.ack(third)
		b.sameIDs("the large one", s.receive(1), msgs[3:])
	}},
	{"what has no room for its bytes keeps its place", func(b *bench) {
		s := b.subscribe("t", transport.Options{Group: "g", MaxPendingBytes: 10_000})
		msgs := b.messages(300)
		for i := range msgs {
			msgs[i].Data = make([]byte, 50+i%7/6*(8000+i))
		}
		b.send("t", msgs...)
		dst := make([]transport.Message, 32)
		for seen := 0; seen < len(msgs); {
			n, err := s.Receive(b.ctx, dst)
			if err != nil {
				b.Fatalf("Receive: %v", err)
			}
			b.sameIDs(fmt.Sprintf("after %d", seen), dst[:n], msgs[seen:min(seen+n, len(msgs))])
			s.ack(dst[:n]...)
			seen += n
		}
	}},
}
