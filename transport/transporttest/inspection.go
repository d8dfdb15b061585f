package transporttest

import (
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// inspection: what Inspect tells.
var inspection = []promise{
	{"a topic that nobody used is empty when inspected", func(b *bench) {
		i := b.inspect("t")
		if i.Messages != 0 || i.Delayed > 0 || len(i.Groups) != 0 {
			b.Errorf("got %+v, want nothing", i)
		}
	}},
	{"an inspected topic tells what is kept, and of each group what it has yet to get and to settle", func(b *bench) {
		one, two := b.group("t", "one"), b.group("t", "two")
		b.sendNew("t", 10)
		msgs := one.receive(4)
		one.ack(msgs[:2]...)
		one.nack(time.Hour, msgs[2])
		two.receive(10)
		time.Sleep(20 * time.Millisecond)
		i := b.inspect("t")
		if i.Messages != 10 {
			b.Errorf("got %d messages, want 10", i.Messages)
		}
		if len(i.Groups) != 2 {
			b.Fatalf("got groups %+v, want one and two", i.Groups)
		}
		for k, want := range []transport.GroupInfo{{Name: "one", Lag: 6, Pending: 2}, {Name: "two", Lag: 0, Pending: 10}} {
			g := i.Groups[k]
			if g.Name != want.Name || g.Lag != want.Lag || g.Pending != want.Pending {
				b.Errorf("got %+v, want %+v", g, want)
			}
			if g.Oldest != transport.Unknown && (g.Oldest < 10*time.Millisecond || g.Oldest > b.patience) {
				b.Errorf("group %s: the oldest pending message is %v old, want about 20ms", g.Name, g.Oldest)
			}
		}
	}},
	{"topics are listed by pattern, from the first message or subscription on", func(b *bench) {
		l, ok := transport.As[transport.Lister](b.tr)
		if !ok {
			b.Skip("the transport is no transport.Lister")
		}
		b.send("a.1", b.message())
		b.send("a.1.x", b.message())
		b.send("a.1.dead", b.message())
		b.send(transport.InboxTopic("a"), b.message())
		b.group("a.2", "g")
		b.broadcast("b")
		for pattern, want := range map[string][]string{
			"a.*": {"a.1", "a.2"}, "a.#": {"a.1", "a.1.x", "a.2"}, "#": {"a.1", "a.1.x", "a.2", "b"}, "*.dead": nil, "a.*.dead": {"a.1.dead"}, "b": {"b"}, "c.#": nil,
		} {
			if got, err := l.Topics(b.ctx, pattern); err != nil || !slices.Equal(got, want) {
				b.Errorf("Topics(%q): got %v, %v, want %v", pattern, got, err, want)
			}
		}
		if _, err := l.Topics(b.ctx, "a.#.b"); err == nil {
			b.Error("Topics of a pattern that makes no sense: got no error")
		}
	}},
	{"what is settled, moved or not there is not pending when inspected", func(b *bench) {
		s := b.group("t", "g")
		b.sendNew("t", 2)
		msgs := s.receive(2)
		s.ack(msgs[0])
		s.move("t.dead", b.dead(msgs[1]), msgs[1])
		i := b.inspect("t")
		if g := i.Group("g"); g.Lag != 0 || g.Pending != 0 || g.Oldest != 0 {
			b.Errorf("got %+v, want nothing to do", g)
		}
		if g := i.Group("h"); g.Lag != 0 || g.Pending != 0 {
			b.Errorf("of a group that does not exist got %+v", g)
		}
		if dead := b.inspect("t.dead"); dead.Messages != 1 {
			b.Errorf("got %d dead letters, want 1", dead.Messages)
		}
	}},
}

// inspect inspects a topic, or skips the test.
func (b *bench) inspect(topic string) transport.Info {
	b.Helper()
	i, ok := transport.As[transport.Inspector](b.tr)
	if !ok {
		b.Skip("the transport is no transport.Inspector")
	}
	info, err := i.Inspect(b.ctx, topic)
	if err != nil {
		b.Fatalf("Inspect of %s: %v", topic, err)
	}
	return info
}
