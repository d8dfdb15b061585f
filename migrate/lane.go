package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// lane copies one topic of a bridge, batch by batch.
type lane struct {
	*bridgeConfig
	topic string
	sub   *part
	to    transport.Transport
	held  []transport.Message // received and not settled, in order

	mu sync.Mutex          // guards the rest
	rs []transport.Receipt // of held, for the keeper
}

// settleMost is how long a settlement may take, also after the bridge's context ended.
const settleMost = 5 * time.Second

func openLane(ctx context.Context, from, to transport.Transport, topic string, c *bridgeConfig) (*lane, error) {
	if !c.stop {
		if err := transport.CheckName("topic", transport.DeadTopic(topic)); err != nil {
			return nil, fmt.Errorf("of the dead letters: %w", err)
		}
	}
	s, err := from.Subscribe(ctx, topic, transport.Options{Group: c.group, Lease: c.lease, MaxPending: c.batch})
	if err != nil {
		return nil, err
	}
	l := &lane{bridgeConfig: c, topic: topic, to: to}
	if l.sub, err = newPart(s, !c.stop); err != nil {
		return nil, err
	}
	return l, nil
}

// run copies until ctx ends, or something fails for good.
func (l *lane) run(ctx context.Context) error {
	room := make([]transport.Message, l.batch)
	for {
		n, err := l.sub.Receive(ctx, room)
		lost, _ := errors.AsType[*transport.LostError](err)
		switch {
		case lost != nil:
			l.meter.lost.Add(lost.Count)
			l.logger.Error("migrate: a bridge lost messages", "topic", l.topic, "error", lost)
			continue
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := l.copy(ctx, room[:n]); err != nil {
			return err
		}
		clear(room)
	}
}

// copy copies a batch. What it could not copy before ctx ended it gives back.
func (l *lane) copy(ctx context.Context, batch []transport.Message) error {
	batch, returned := split(batch, l.returns)
	l.hold(batch)
	stop := l.keep(ctx)
	defer stop()
	if len(returned) > 0 {
		l.meter.returned.Add(uint64(len(returned)))
		if err := l.ack(ctx, returned); err != nil {
			return err
		}
	}
	out := make([]transport.Message, len(batch))
	for i := range batch {
		out[i] = l.outward(&batch[i])
	}
	err := l.sendAll(ctx, out)
	l.giveBack(ctx)
	return err
}

// split returns the messages for which what is false, and those for which it is true.
func split(msgs []transport.Message, what func(*transport.Message) bool) (no, yes []transport.Message) {
	for i := range msgs {
		if what(&msgs[i]) {
			yes = append(yes, msgs[i])
		} else {
			no = append(no, msgs[i])
		}
	}
	return no, yes
}

// sendAll sends what is held, as out says, until ctx ends.
func (l *lane) sendAll(ctx context.Context, out []transport.Message) error {
	failures := 0
	for len(out) > 0 && ctx.Err() == nil {
		n, err := l.to.Send(ctx, l.topic, out)
		if err := l.accepted(ctx, n); err != nil {
			return err
		}
		out = out[n:]
		switch {
		case err == nil:
			failures = 0
		case errors.Is(err, transport.ErrClosed):
			return fmt.Errorf("the other end: %w", err)
		case transport.RefusedForItself(err):
			if err := l.refuse(ctx, err); err != nil {
				return err
			}
			out = out[1:]
		case ctx.Err() == nil:
			l.meter.refused.Add(1)
			if !errors.Is(err, transport.ErrNotPublished) {
				l.meter.repeated.Add(uint64(len(out)))
			}
			l.again(ctx, failures, "messages were not copied", err)
			failures++
		}
	}
	return nil
}

// accepted settles the first n held messages.
func (l *lane) accepted(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	done := l.held[:n]
	for i := range done {
		if done[i].Attempt > 1 {
			l.meter.repeated.Add(1)
		}
	}
	l.meter.copied.Add(uint64(n))
	err := l.ack(ctx, done)
	l.hold(l.held[n:])
	return err
}

// refuse makes the first held message a dead letter where it came from.
func (l *lane) refuse(ctx context.Context, why error) error {
	m := &l.held[0]
	if l.stop {
		return fmt.Errorf("message %s is refused by the other end: %w", m.ID, why)
	}
	err := l.settle(ctx, "a dead letter was not made", func(ctx context.Context) error {
		return l.sub.mover.Move(ctx, transport.DeadTopic(l.topic), l.dead(m, why), m.Receipt())
	})
	if err == nil {
		l.meter.dead.Add(1)
		l.logger.Error("migrate: message is a dead letter, as the other end refuses it", "topic", l.topic, "id", m.ID, "error", why)
	}
	l.hold(l.held[1:])
	return ended(err)
}

func (l *lane) ack(ctx context.Context, msgs []transport.Message) error {
	return ended(l.settle(ctx, "messages were not acknowledged", func(ctx context.Context) error {
		return l.sub.acker.Ack(ctx, receipts(msgs))
	}))
}

// ended is err if the lane has to end for it. Otherwise messages come again.
func ended(err error) error {
	if errors.Is(err, transport.ErrClosed) {
		return err
	}
	return nil
}

// settle tries until it is done, or cannot be done any more, or ctx has ended.
func (l *lane) settle(ctx context.Context, what string, do func(context.Context) error) error {
	for failures := 0; ; failures++ {
		once, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleMost)
		err := do(once)
		cancel()
		if err == nil || errors.Is(err, transport.ErrLeaseLost) || errors.Is(err, transport.ErrClosed) || ctx.Err() != nil {
			return err
		}
		l.again(ctx, failures, what, err)
	}
}

// again waits before the next attempt.
func (l *lane) again(ctx context.Context, failures int, what string, err error) {
	d := min(l.max, l.min<<min(failures, 20))
	if d <= 0 {
		d = l.max
	}
	d -= rand.N(d/2 + 1)
	l.logger.Warn("migrate: "+what+", trying again", "topic", l.topic, "after", d, "error", err)
	pause(ctx, d)
}

// giveBack releases what is still held.
func (l *lane) giveBack(ctx context.Context) {
	if len(l.held) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleMost)
	defer cancel()
	if err := l.sub.releaser.Release(ctx, receipts(l.held)); err != nil {
		l.logger.Debug("migrate: messages were not given back, they come again when their leases end", "topic", l.topic, "error", err)
	}
	l.hold(nil)
}

// hold notes what is held from now on.
func (l *lane) hold(msgs []transport.Message) {
	l.held = msgs
	rs := receipts(msgs)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rs = rs
}

// keep extends the leases of what is held until stop is called.
func (l *lane) keep(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // settling goes on after its end
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(max(l.sub.extender.Lease()/3, time.Millisecond))
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			l.mu.Lock()
			rs := l.rs
			l.mu.Unlock()
			if len(rs) == 0 {
				continue
			}
			if err := l.sub.extender.Extend(ctx, rs, 0); err != nil && ctx.Err() == nil {
				l.logger.Debug("migrate: leases were not extended", "topic", l.topic, "error", err)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func receipts(msgs []transport.Message) []transport.Receipt {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	return rs
}

// headBridge lists where a message came from, with commas between.
const headBridge = "echo-bridge"

// nowhere stands in it for an end without a name.
const nowhere = "-"

// returns reports whether a message is not to be copied.
func (c *bridgeConfig) returns(m *transport.Message) bool {
	list := m.Header[headBridge]
	if list == "" {
		return false
	}
	hops := strings.Split(list, ",")
	return len(hops) >= c.hops || c.there != "" && slices.Contains(hops, c.there)
}

// outward is m as it is sent.
func (c *bridgeConfig) outward(m *transport.Message) transport.Message {
	o := *m
	o.Attempt, o.Position, o.Token, o.Terms = 0, transport.Position{}, 0, nil
	if c.once > 0 {
		o.Terms = &transport.Terms{Once: m.ID, Window: c.once}
	}
	here := c.here
	if here == "" {
		here = nowhere
	}
	if list := m.Header[headBridge]; list != "" {
		here = list + "," + here
	}
	o.Header = withHeader(m.Header, 1)
	o.Header[headBridge] = here
	if o.Header[headFor] == c.group { // a dead letter of ours that was sent home
		delete(o.Header, headFor)
	}
	return o
}

// headFor names, as package echo reads it, the one group that handles a message.
const headFor = "echo-for"

// dead is m as a dead letter, with the headers that package echo reads.
func (c *bridgeConfig) dead(m *transport.Message, why error) transport.Message {
	d := *m
	d.Header = withHeader(m.Header, 5)
	d.Header["echo-dead-reason"] = "rejected"
	delete(d.Header, headFor)
	text := why.Error()
	d.Header["echo-dead-error"] = strings.Map(printable, strings.ToValidUTF8(text[:min(len(text), 1<<10)], ""))
	d.Header["echo-dead-attempts"] = strconv.Itoa(m.Attempt)
	d.Header["echo-dead-group"] = c.group
	d.Header["echo-dead-time"] = time.Now().UTC().Format(time.RFC3339Nano)
	return d
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// withHeader returns a copy of a header, which is shared with other receivers,
// with room for more.
func withHeader(h map[string]string, more int) map[string]string {
	own := make(map[string]string, len(h)+more)
	maps.Copy(own, h)
	return own
}
