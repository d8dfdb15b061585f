package transporttest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/echobus/echo/transport"
)

// carriage: what a message is when it arrives.
var carriage = []promise{
	{"a message arrives as it was sent", func(b *bench) {
		s := b.broadcast("t")
		want := transport.Message{
			ID: "id-1", Key: "customer 7 · ü", Type: "application/json; version=2", Data: []byte(`{"a":1}`),
			Time:   time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC),
			Header: map[string]string{"traceparent": "00-abc", "tenant": "blue"},
		}
		b.send("t", want.Clone())
		got := s.one()
		b.same(got, want)
		if got.Attempt != 1 {
			b.Errorf("got attempt %d, want 1", got.Attempt)
		}
	}},
	{"payloads of any size and content arrive unchanged", func(b *bench) {
		s := b.broadcast("t")
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		for _, data := range [][]byte{nil, {0}, every, bytes.Repeat(every, 4096)} {
			m := b.message()
			m.Data = data
			b.send("t", m)
			got := s.one()
			b.same(got, m)
			s.ack(got)
		}
	}},
	{"odd keys and headers arrive unchanged", func(b *bench) {
		s := b.broadcast("t")
		m := b.message()
		m.Key = "a:b{c}d*e?f[g]\\ \t\n\"'"
		m.Header = map[string]string{"": "empty name", "empty value": "", "Ünïcode": "日本語\u2028", "a=b&c:d": "\r\n\x00\x01", strings.Repeat("k", 300): strings.Repeat("v", 5000)}
		b.send("t", m.Clone())
		b.same(s.one(), m)
	}},
	{"topics do not mix", func(b *bench) {
		one, two := b.broadcast("t.1"), b.broadcast("t.2")
		first, second := b.sendNew("t.1", 20), b.sendNew("t.2", 20)
		b.sameIDs("topic t.1", one.receive(20), first)
		b.sameIDs("topic t.2", two.receive(20), second)
	}},
	{"a batch is stored in its order, and an empty one is no error", func(b *bench) {
		s := b.broadcast("t")
		b.send("t")
		sent := append(b.sendNew("t", 300), b.sendNew("t", 200)...)
		b.sameIDs("batches", s.receive(500), sent)
	}},
	{"Send tells the positions under which messages arrive, in ascending order", func(b *bench) {
		s := b.broadcast("t")
		sent := append(b.sendNew("t", 30), b.sendNew("t", 1)...)
		for i, got := range s.receive(31) {
			if got.Position != sent[i].Position {
				b.Fatalf("message %d: received at position %v, sent at %v", i, got.Position, sent[i].Position)
			}
			if i > 0 && sent[i-1].Position.Compare(got.Position) >= 0 {
				b.Fatalf("message %d: position %v is not after %v", i, got.Position, sent[i-1].Position)
			}
		}
	}},
	{"Send keeps nothing of the caller's memory", func(b *bench) {
		if r, ok := transport.As[transport.Retainer](b.tr); ok && r.RetainsMessages() {
			b.Skip("the transport is a Retainer")
		}
		s := b.broadcast("t")
		m := b.message()
		m.Header = map[string]string{"a": "b"}
		want := m.Clone()
		b.send("t", m)
		clear(m.Data)
		m.Header["a"] = "changed"
		b.same(s.one(), want)
	}},
	{"Send changes nothing of a message but its position, and does not keep the slice", func(b *bench) {
		s := b.broadcast("t")
		msgs := b.messages(10)
		want := make([]transport.Message, len(msgs))
		for i := range msgs {
			want[i] = msgs[i].Clone()
		}
		b.send("t", msgs...)
		for i := range msgs {
			b.same(msgs[i], want[i])
		}
		clear(msgs)
		b.sameIDs("after the slice was cleared", s.receive(10), want)
	}},
	{"names that a broker could misread are refused", func(b *bench) {
		for _, name := range []string{"", ".a", "-a", "a b", "a:b", "a*", "{a}", "a\n", "ü", strings.Repeat("a", 201)} {
			if n, err := b.tr.Send(b.ctx, name, b.messages(1)); n != 0 || !errors.Is(err, transport.ErrNotPublished) {
				b.Errorf("Send to topic %q: got %d, %v, want 0 and an error that wraps ErrNotPublished", name, n, err)
			}
			if s, err := b.tr.Subscribe(b.ctx, name, transport.Options{}); err == nil {
				s.Close()
				b.Errorf("Subscribe to topic %q: got no error", name)
			}
			if name == "" {
				continue // no group
			}
			if s, err := b.tr.Subscribe(b.ctx, "t", transport.Options{Group: name}); err == nil {
				s.Close()
				b.Errorf("Subscribe as group %q: got no error", name)
			}
		}
		long := strings.Repeat("a", 200)
		m := b.sendNew(long, 1)
		b.sameIDs("names of 200 bytes", b.group(long, long).receive(1), m)
	}},
	{"a context that has ended stops a call before it does anything", func(b *bench) {
		s := b.broadcast("t")
		ctx, cancel := context.WithCancel(b.ctx)
		cancel()
		n, err := b.tr.Send(ctx, "t", b.messages(3))
		if n != 0 || !errors.Is(err, context.Canceled) || !errors.Is(err, transport.ErrNotPublished) {
			b.Errorf("Send: got %d, %v, want 0 and an error that wraps context.Canceled and ErrNotPublished", n, err)
		}
		if _, err := b.tr.Subscribe(ctx, "t", transport.Options{}); !errors.Is(err, context.Canceled) {
			b.Errorf("Subscribe: got %v, want context.Canceled", err)
		}
		m := b.sendNew("t", 1)
		var dst [1]transport.Message
		if n, err := s.Receive(ctx, dst[:]); n != 0 || !errors.Is(err, context.Canceled) {
			b.Errorf("Receive: got %d, %v, want 0, context.Canceled", n, err)
		}
		b.sameIDs("after the cancelled calls", s.receive(1), m)
	}},
}

// same checks what a message carries, its delivery apart.
func (b *bench) same(got, want transport.Message) {
	b.Helper()
	switch {
	case got.ID != want.ID:
		b.Fatalf("got ID %q, want %q", got.ID, want.ID)
	case got.Key != want.Key:
		b.Fatalf("message %s: got key %q, want %q", want.ID, got.Key, want.Key)
	case got.Type != want.Type:
		b.Fatalf("message %s: got type %q, want %q", want.ID, got.Type, want.Type)
	case !got.Time.Equal(want.Time):
		b.Fatalf("message %s: got time %v, want %v", want.ID, got.Time, want.Time)
	case !bytes.Equal(got.Data, want.Data):
		b.Fatalf("message %s: got data of %d bytes, %.40q, want %d bytes, %.40q", want.ID, len(got.Data), got.Data, len(want.Data), want.Data)
	case !maps.Equal(got.Header, want.Header):
		b.Fatalf("message %s: got header %.200q, want %.200q", want.ID, got.Header, want.Header)
	}
}
