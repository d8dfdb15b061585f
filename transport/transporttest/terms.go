package transporttest

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/echobus/echo/transport"
)

// terms: what Send does with the Terms of messages.
var terms = []promise{
	{"a delayed message comes when it is due, and not before", func(b *bench) {
		const delay = 400 * time.Millisecond
		b.delays()
		s, all := b.group("t", "g"), b.broadcast("t")
		m := b.delayed(delay)
		begin := time.Now()
		b.send("t", m)
		now := b.sendNew("t", 1)
		b.sameIDs("what is due at once", s.receive(1), now)
		b.same(s.one(), m)
		if took := time.Since(begin); took < delay-10*time.Millisecond || took > delay+time.Second {
			b.Errorf("came after %v, want about %v", took, delay)
		}
		b.sameIDs("a broadcast", all.receive(2), append(now, m))
		s.nothing(50*time.Millisecond, "it came")
	}},
	{"a message that is refused for itself keeps no other from being sent", func(b *bench) {
		b.delays()
		topic := transport.InboxTopic("a")
		s := b.broadcast(topic)
		msgs := b.messages(5)
		msgs[2] = b.delayed(time.Hour) // replies are neither delayed nor stored once
		n, err := b.tr.Send(b.ctx, topic, msgs)
		if n != 2 || !transport.RefusedForItself(err) {
			b.Fatalf("Send of 5 messages, the third of which is refused: got %d, %v", n, err)
		}
		b.send(topic, msgs[3:]...)
		b.sameIDs("those that are not refused", s.receive(4), slices.Delete(msgs, 2, 3))
	}},
	{"delayed messages come in the order in which they are due", func(b *bench) {
		b.delays()
		s := b.group("t", "g")
		var want []transport.Message
		for i := range 20 {
			want = append(want, b.delayed(200*time.Millisecond+time.Duration(i)*20*time.Millisecond))
		}
		mixed := slices.Clone(want)
		slices.Reverse(mixed)
		b.send("t", mixed...)
		b.sameIDs("in the order in which they are due", s.receive(20), want)
	}},
	{"a message that was due already comes at once", func(b *bench) {
		b.delays()
		s := b.group("t", "g")
		m := b.delayed(-time.Hour)
		b.send("t", m)
		b.same(s.one(), m)
	}},
	{"delayed messages are counted when inspected, and wait for nobody", func(b *bench) {
		b.delays()
		b.send("t", b.delayed(300*time.Millisecond), b.delayed(time.Hour), b.message())
		if i := b.inspect("t"); i.Delayed != 2 || i.Messages != 1 {
			b.Errorf("got %d delayed and %d kept, want 2 and 1", i.Delayed, i.Messages)
		}
		time.Sleep(350 * time.Millisecond)
		s := b.group("t", "late")
		s.receive(2)
		if i := b.inspect("t"); i.Delayed != 1 {
			b.Errorf("got %d delayed, want 1", i.Delayed)
		}
	}},
	{"of a thousand delayed messages none is lost or doubled", func(b *bench) {
		b.delays()
		s := b.group("t", "g")
		const n = 1000
		var want []string
		for range n / 50 {
			var batch []transport.Message
			for range 50 {
				m := b.delayed(time.Duration(100+7*b.sent%500) * time.Millisecond)
				batch = append(batch, m)
				want = append(want, m.ID)
			}
			b.send("t", batch...)
		}
		got := ids(s.receive(n))
		slices.Sort(got)
		if !slices.Equal(got, want) {
			b.Errorf("got %d messages, which are not those that were sent", len(got))
		}
		s.nothing(200*time.Millisecond, "all came")
	}},
	{"a message of a name is stored once within its window", func(b *bench) {
		b.deduplicates()
		s := b.group("t", "g")
		const window = 500 * time.Millisecond
		begin := time.Now()
		first := b.once("a", window)
		b.send("t", first, b.once("a", window), b.once("b", window))
		b.send("t", b.once("a", window))
		b.send("u", b.once("a", window))
		got := s.receive(2)
		b.same(got[0], first)
		if took := time.Since(begin); took < window/2 {
			s.nothing(50*time.Millisecond, "a was there already")
		}
		time.Sleep(window)
		again := b.once("a", window)
		b.send("t", again)
		b.same(s.one(), again)
		if i := b.inspect("t"); i.Duplicates != transport.Unknown && i.Duplicates != 2 {
			b.Errorf("got %d duplicates, want 2", i.Duplicates)
		}
		if i := b.inspect("t"); i.Forgotten != transport.Unknown && i.Forgotten != 0 {
			b.Errorf("got %d forgotten, want none", i.Forgotten)
		}
		b.group("u", "g").receive(1)
	}},
	{"a name is stored once by many senders at a time", func(b *bench) {
		b.deduplicates()
		s := b.group("t", "g")
		const n, senders = 50, 4
		done := make(chan error)
		for range senders {
			batch := make([]transport.Message, n)
			for i := range batch {
				batch[i] = b.once(fmt.Sprint(i), time.Minute)
			}
			go func() {
				for i := range batch {
					if _, err := b.tr.Send(b.ctx, "t", batch[i:i+1]); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range senders {
			if err := <-done; err != nil {
				b.Fatalf("Send: %v", err)
			}
		}
		s.receive(n)
		s.nothing(100*time.Millisecond, "each name came")
	}},
	{"a delayed message is stored once, too", func(b *bench) {
		b.delays()
		b.deduplicates()
		s := b.group("t", "g")
		one, two := b.once("a", time.Minute), b.once("a", time.Minute)
		one.Terms.Due = time.Now().Add(200 * time.Millisecond)
		b.send("t", one)
		b.send("t", two)
		b.same(s.one(), one)
		b.send("t", b.once("a", time.Minute))
		s.nothing(50*time.Millisecond, "it was accepted before")
	}},
}

// delayed is a message that is due after d.
func (b *bench) delayed(d time.Duration) transport.Message {
	m := b.message()
	m.Terms = &transport.Terms{Due: time.Now().Add(d)}
	return m
}

// once is a message that is to be stored once.
func (b *bench) once(name string, window time.Duration) transport.Message {
	m := b.message()
	m.Terms = &transport.Terms{Once: name, Window: window}
	return m
}

// delays skips the test unless the transport is a Delayer.
func (b *bench) delays() { needs(b, b.tr, transport.Delayer.DelaysMessages) }

// deduplicates skips the test unless the transport is a Deduplicator.
func (b *bench) deduplicates() { needs(b, b.tr, transport.Deduplicator.DeduplicatesMessages) }

func needs[T any](t testing.TB, tr transport.Transport, does func(T) bool) {
	t.Helper()
	if c, ok := transport.As[T](tr); !ok || !does(c) {
		t.Skipf("the transport is no %v", reflect.TypeFor[T]())
	}
}
