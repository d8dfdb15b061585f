package transporttest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// delivery: who gets which messages, and in what order.
var delivery = []promise{
	{"a message needs no subscriber, and a group that comes later gets it", func(b *bench) {
		sent := b.sendNew("t", 3)
		b.sameIDs("new group", b.group("t", "g").receive(3), sent)
	}},
	{"a broadcast subscription begins now", func(b *bench) {
		b.sendNew("t", 3)
		s := b.broadcast("t")
		later := b.sendNew("t", 2)
		b.sameIDs("broadcast", s.receive(2), later)
	}},
	{"every broadcast subscription gets every message", func(b *bench) {
		subs := []*sub{b.broadcast("t"), b.broadcast("t"), b.broadcast("t")}
		sent := b.sendNew("t", 100)
		for _, s := range subs {
			b.sameIDs("broadcast", s.receive(100), sent)
		}
	}},
	{"every group gets every message", func(b *bench) {
		one, two := b.group("t", "one"), b.group("t", "two")
		sent := b.sendNew("t", 100)
		b.sameIDs("group one", one.receive(100), sent)
		b.sameIDs("group two", two.receive(100), sent)
	}},
	{"the members of a group share its messages", func(b *bench) {
		const n, members = 600, 3
		var mu sync.Mutex
		count := map[string]int{}
		var wg sync.WaitGroup
		all := make(chan struct{})
		for range members {
			s := b.group("t", "g")
			wg.Go(func() {
				s.pump(all, func(m transport.Message) bool {
					mu.Lock()
					defer mu.Unlock()
					if count[m.ID]++; len(count) == n {
						close(all)
					}
					return true
				})
			})
		}
		sent := b.sendNew("t", n)
		b.await(all, "the group to get all messages")
		wg.Wait()
		for _, m := range sent {
			if count[m.ID] != 1 {
				b.Errorf("message %s was delivered %d times, want once", m.ID, count[m.ID])
			}
		}
	}},
	{"first deliveries keep the order of Send", func(b *bench) {
		s := b.broadcast("t")
		var sent []transport.Message
		for _, n := range []int{1, 700, 1, 1, 297, 1000} {
			sent = append(sent, b.sendNew("t", n)...)
		}
		var got []transport.Message
		for _, n := range []int{1, 2, 497, 1000, 500} {
			msgs := s.receive(n)
			got = append(got, msgs...)
			s.ack(msgs...)
		}
		b.sameIDs("2,000 messages", got, sent)
	}},
	{"a subscription begins where it is told to", func(b *bench) {
		sent := b.messages(10)
		hour := time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
		for i := range sent {
			sent[i].Time = hour.Add(time.Duration(i) * time.Minute)
		}
		b.send("t", sent...)
		for _, c := range []struct {
			what  string
			start transport.Start
			first int
		}{
			{"oldest", transport.Start{From: transport.Oldest}, 0},
			{"newest", transport.Start{From: transport.Newest}, 10},
			{"after an ID", transport.Start{From: transport.AfterID, ID: sent[3].ID}, 4},
			{"after the last ID", transport.Start{From: transport.AfterID, ID: sent[9].ID}, 10},
			{"at a time", transport.Start{From: transport.AtTime, Time: sent[6].Time}, 6},
			{"at a time between two messages", transport.Start{From: transport.AtTime, Time: sent[6].Time.Add(time.Second)}, 7},
			{"at a time to come", transport.Start{From: transport.AtTime, Time: time.Now().Add(time.Hour)}, 10},
			{"after a position", transport.Start{From: transport.AfterPosition, Position: sent[1].Position}, 2},
			{"after no position", transport.Start{From: transport.AfterPosition}, 0},
		} {
			for _, s := range []*sub{
				b.subscribe("t", transport.Options{Start: c.start}),
				b.subscribe("t", transport.Options{Start: c.start, Group: strings.ReplaceAll(c.what, " ", "-")}),
			} {
				if c.first < 10 {
					b.sameIDs(c.what, s.receive(10-c.first), sent[c.first:])
				}
				s.close()
			}
		}
	}},
	{"beginning after a message that is not kept is an error", func(b *bench) {
		b.sendNew("t", 1)
		for _, group := range []string{"", "g"} {
			opts := transport.Options{Group: group, Start: transport.Start{From: transport.AfterID, ID: "unheard-of"}}
			if _, err := b.tr.Subscribe(b.ctx, "t", opts); !errors.Is(err, transport.ErrNotFound) {
				b.Errorf("group %q: got %v, want an error that wraps ErrNotFound", group, err)
			}
		}
	}},
	{"a group keeps its place when it has no members, whatever start is asked for", func(b *bench) {
		first := b.sendNew("t", 5)
		s := b.group("t", "g")
		got := s.receive(5)
		b.sameIDs("first member", got, first)
		s.ack(got...)
		s.close()
		later := b.sendNew("t", 5)
		s = b.subscribe("t", transport.Options{Group: "g", Start: transport.Start{From: transport.Oldest}})
		b.sameIDs("next member", s.receive(5), later)
	}},
	{"a broadcast subscription that begins where another one ended misses nothing and repeats nothing", func(b *bench) {
		var sent []transport.Message
		opts := transport.Options{}
		for round, n := range []int{0, 5, 0, 1, 40} {
			s := b.subscribe("t", opts)
			b.sameIDs(fmt.Sprintf("round %d", round), s.receive(len(sent)), sent)
			opts.Start = transport.Start{From: transport.AfterPosition, Position: capability[transport.Positioner](s).Position()}
			sent = b.sendNew("t", n)
			if len(sent) > 10 { // some of which this one gets
				got := s.receive(10)
				b.sameIDs("the first ten", got, sent[:10])
				opts.Start.Position = capability[transport.Positioner](s).Position()
				sent = sent[10:]
			}
			s.close()
		}
		b.sameIDs("the last round", b.subscribe("t", opts).receive(len(sent)), sent)
	}},
	{"a message sent after Subscribe returned is never missed", func(b *bench) {
		for range 100 {
			s := b.broadcast("t")
			m := b.sendNew("t", 1)
			b.sameIDs("first message", s.receive(1), m)
			s.close()
		}
	}},
	{"a subscriber that does not receive delays nobody", func(b *bench) {
		b.broadcast("t")
		b.group("t", "idle")
		fast := b.broadcast("t")
		for range 20 {
			sent := b.sendNew("t", 50)
			got := fast.receive(50)
			b.sameIDs("the other subscriber", got, sent)
			fast.ack(got...)
		}
	}},
}

// pump receives and acknowledges until stop is closed. handle says whether to
// acknowledge a message; one it does not want acknowledged stays held.
func (s *sub) pump(stop <-chan struct{}, handle func(transport.Message) bool) {
	ctx, cancel := s.b.until(stop)
	defer cancel()
	a, ok := transport.As[transport.Acker](s.Subscription)
	dst := make([]transport.Message, 16)
	for {
		n, err := s.Receive(ctx, dst)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, transport.ErrClosed) {
				s.b.Errorf("Receive: %v", err)
			}
			return
		}
		var done []transport.Receipt
		for i := range dst[:n] {
			if handle(dst[i]) {
				done = append(done, dst[i].Receipt())
			}
		}
		if ok && len(done) > 0 {
			if err := a.Ack(s.b.ctx, done); err != nil && !errors.Is(err, transport.ErrLeaseLost) {
				s.b.Errorf("Ack: %v", err)
				return
			}
		}
	}
}
