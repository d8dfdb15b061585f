package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// Publishers' clocks may differ by so much, and messages be stored so late.
const skew = time.Minute

// learn notes what old keeps as given by it, as far back as new may have it too.
func (d *Draining) learn(ctx context.Context, topic string, g *given) error {
	select {
	case g.learning <- struct{}{}:
		defer func() { <-g.learning }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if g.learned {
		return nil
	}
	start, some, err := d.overlap(ctx, topic)
	if err == nil && some {
		err = d.scan(ctx, topic, start, func(id string) {
			_, forgotten := g.claim(id, fromOld)
			d.forget(topic, forgotten)
		})
	}
	if err != nil {
		return err
	}
	g.learned = true
	return nil
}

// overlap returns where messages begin on old that new may have, too, and
// whether new has any.
func (d *Draining) overlap(ctx context.Context, topic string) (_ transport.Start, some bool, err error) {
	start := transport.Start{From: transport.Oldest}
	i, ok := transport.As[transport.Inspector](d.new)
	if !ok {
		return start, true, nil
	}
	info, err := i.Inspect(ctx, topic)
	if err != nil || info.Messages == 0 {
		return start, false, err
	}
	s, err := d.new.Subscribe(ctx, topic, transport.Options{Start: start})
	if err != nil {
		return start, false, err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, scanWait)
	defer cancel()
	var first [1]transport.Message
	if _, err := s.Receive(ctx, first[:]); err != nil {
		if _, lost := errors.AsType[*transport.LostError](err); !lost && !errors.Is(err, context.DeadlineExceeded) {
			return start, false, err
		}
		return start, true, nil // it has gone meanwhile
	}
	return transport.Start{From: transport.AtTime, Time: first[0].Time.Add(-skew)}, true, nil
}

// A scan waits so long for the next messages before it takes them for gone.
const scanWait = 2 * time.Second

// scan reads old from a place to its present end.
func (d *Draining) scan(ctx context.Context, topic string, start transport.Start, each func(id string)) error {
	end, known, err := endOf(ctx, d.old, topic)
	if err != nil {
		return err
	}
	s, err := d.old.Subscribe(ctx, topic, transport.Options{Start: start})
	if err != nil {
		return err
	}
	defer s.Close()
	at, ok := transport.As[transport.Positioner](s)
	acker, acks := transport.As[transport.Acker](s)
	msgs := make([]transport.Message, 256)
	for !known || !ok || at.Position().Compare(end) < 0 {
		n, err := receiveFor(ctx, s, scanWait, msgs)
		if err != nil || n == 0 {
			return err
		}
		rs := make([]transport.Receipt, n)
		for i := range msgs[:n] {
			rs[i] = msgs[i].Receipt()
			each(msgs[i].ID)
		}
		if !acks {
			continue
		}
		if err := acker.Ack(ctx, rs); err != nil && !errors.Is(err, transport.ErrLeaseLost) {
			return err
		}
	}
	return nil
}

// receiveFor receives for at most d; nothing is no error, and neither is a loss.
func receiveFor(ctx context.Context, s transport.Subscription, d time.Duration, dst []transport.Message) (int, error) {
	inner, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		n, err := s.Receive(inner, dst)
		_, lost := errors.AsType[*transport.LostError](err)
		switch {
		case lost:
		case err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			return 0, nil
		default:
			return n, err
		}
	}
}

// endOf returns where a topic ends now, if its transport can tell.
func endOf(ctx context.Context, t transport.Transport, topic string) (end transport.Position, known bool, err error) {
	s, err := t.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Newest}})
	if err != nil {
		return end, false, fmt.Errorf("looking for the end of topic %s: %w", topic, err)
	}
	defer s.Close()
	at, ok := transport.As[transport.Positioner](s)
	if !ok {
		return end, false, nil
	}
	return at.Position(), true, nil
}
