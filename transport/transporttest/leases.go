package transporttest

import (
	"errors"
	"time"

	"github.com/echobus/echo/transport"
)

const shortLease = 300 * time.Millisecond

// leases: what happens to messages that nobody settles.
var leases = []promise{
	{"an unsettled message comes again after its lease, and not before", func(b *bench) {
		s := b.subscribe("t", transport.Options{Group: "g", Lease: shortLease})
		capability[transport.Extender](s)
		peer := b.subscribe("t", transport.Options{Group: "g", Lease: time.Minute})
		sent := b.sendNew("t", 3)
		begin := time.Now()
		lost := s.receive(3)
		again := peer.receive(3)
		if took := time.Since(begin); took < shortLease-10*time.Millisecond {
			b.Errorf("came again after %v, want no sooner than %v", took, shortLease)
		}
		b.sameIDs("the peer", again, sent)
		for _, m := range again {
			if m.Attempt != 2 {
				b.Errorf("message %s: got attempt %d, want 2", m.ID, m.Attempt)
			}
		}
		err := capability[transport.Acker](s).Ack(b.ctx, receipts(lost[:1]))
		if !errors.Is(err, transport.ErrLeaseLost) {
			b.Errorf("Ack after the lease was lost: got %v, want ErrLeaseLost", err)
		}
		err = capability[transport.Nacker](s).Nack(b.ctx, receipts(lost[1:2]), 0)
		if !errors.Is(err, transport.ErrLeaseLost) {
			b.Errorf("Nack after the lease was lost: got %v, want ErrLeaseLost", err)
		}
		err = capability[transport.Extender](s).Extend(b.ctx, receipts(lost[2:]), 0)
		if !errors.Is(err, transport.ErrLeaseLost) {
			b.Errorf("Extend after the lease was lost: got %v, want ErrLeaseLost", err)
		}
		peer.ack(again...)
	}},
	{"a lease that is extended is kept", func(b *bench) {
		const lease = time.Second // long enough for a busy machine to be in time
		s := b.subscribe("t", transport.Options{Group: "g", Lease: lease})
		e := capability[transport.Extender](s)
		if e.Lease() != lease {
			b.Errorf("Lease: got %v, want %v", e.Lease(), lease)
		}
		peer := b.group("t", "g")
		b.sendNew("t", 2)
		msgs := s.receive(2)
		for range 6 {
			peer.nothing(lease/4, "the leases are extended")
			if err := e.Extend(b.ctx, receipts(msgs[:1]), 0); err != nil {
				b.Fatalf("Extend: %v", err)
			}
			if err := e.Extend(b.ctx, receipts(msgs[1:]), lease); err != nil {
				b.Fatalf("Extend: %v", err)
			}
		}
		s.ack(msgs...)
		peer.nothing(lease+shortLease, "the messages are settled")
	}},
	{"a broadcast subscription's unsettled messages come again too", func(b *bench) {
		s := b.subscribe("t", transport.Options{Lease: shortLease})
		capability[transport.Extender](s)
		sent := b.sendNew("t", 2)
		s.receive(2)
		again := s.receive(2)
		b.sameIDs("after the lease", again, sent)
		if again[0].Attempt != 2 {
			b.Errorf("got attempt %d, want 2", again[0].Attempt)
		}
	}},
	{"what is held for longer than its lease takes no room", func(b *bench) {
		for _, group := range []string{"", "g"} {
			topic := "t." + group
			s := b.subscribe(topic, transport.Options{Group: group, Lease: shortLease, MaxPending: 1})
			capability[transport.Extender](s)
			sent := b.sendNew(topic, 2)
			b.sameIDs("first", s.receive(1), sent[:1])
			again := s.one() // though there is no room until its lease ends
			if again.ID != sent[0].ID || again.Attempt != 2 {
				b.Errorf("got message %s attempt %d, want %s attempt 2", again.ID, again.Attempt, sent[0].ID)
			}
			s.ack(again)
			b.sameIDs("after it is settled", s.receive(1), sent[1:])
		}
	}},
	{"what a closed subscription held goes to its group at once", func(b *bench) {
		s := b.subscribe("t", transport.Options{Group: "g", Lease: time.Hour})
		peer := b.group("t", "g")
		sent := b.sendNew("t", 20)
		s.ack(s.receive(20)[:5]...)
		s.close()
		begin := time.Now()
		again := peer.receive(15)
		b.sameIDs("the peer", again, sent[5:])
		if took := time.Since(begin); took > time.Second {
			b.Errorf("came after %v, want less than a second", took)
		}
		for _, m := range again {
			if m.Attempt != 2 {
				b.Errorf("message %s: got attempt %d, want 2", m.ID, m.Attempt)
			}
		}
	}},
	{"a delayed message survives the subscription that gave it back", func(b *bench) {
		s := b.group("t", "g")
		sent := b.sendNew("t", 1)
		s.nack(shortLease, s.one())
		s.close()
		b.sameIDs("the next member", b.group("t", "g").receive(1), sent)
	}},
}
