package echo

import (
	"context"
	"errors"
	"fmt"

	"github.com/echobus/echo/transport"
)

// Inspection is how a topic is. Figures that the transport cannot tell are
// [transport.Unknown], which is not zero.
type Inspection struct {
	transport.Info
	// DeadLetters are those that [Redrive] has yet to send home.
	DeadLetters int64
	// Consumers is what the consumers of the topic in this bus did, those of patterns aside.
	Consumers ConsumerStats
}

// Inspect returns how a topic is now: what the transport keeps, how far each
// group is, and what became of messages. A transport that cannot tell leads to
// an error that wraps [errors.ErrUnsupported].
func (b *Bus) Inspect(ctx context.Context, topic string) (Inspection, error) {
	i, err := b.inspect(ctx, topic)
	if err != nil {
		return Inspection{}, fmt.Errorf("echo: inspect %s: %w", topic, err)
	}
	return i, nil
}

func (b *Bus) inspect(ctx context.Context, topic string) (Inspection, error) {
	if b.err != nil {
		return Inspection{}, b.err
	}
	i, ok := transport.As[transport.Inspector](b.transport)
	if !ok {
		return Inspection{}, fmt.Errorf("the transport cannot tell: %w", errors.ErrUnsupported)
	}
	info, err := i.Inspect(ctx, topic)
	if err != nil {
		return Inspection{}, err
	}
	in := Inspection{Info: info}
	b.mu.Lock()
	for c := range b.consumers {
		if c.topic == topic {
			in.Consumers.add(c.stats())
		}
	}
	b.mu.Unlock()
	dead := transport.DeadTopic(topic)
	if _, letters := transport.CutDead(topic); letters || transport.CheckName("topic", dead) != nil {
		return in, nil
	}
	letters, err := i.Inspect(ctx, dead)
	if err != nil {
		return Inspection{}, fmt.Errorf("of dead letters: %w", err)
	}
	in.DeadLetters = letters.Messages
	for _, g := range letters.Groups {
		if g.Name == redriveGroup {
			in.DeadLetters = transport.Unknown
			if g.Lag != transport.Unknown && g.Pending != transport.Unknown {
				in.DeadLetters = g.Lag + g.Pending
			}
		}
	}
	return in, nil
}

// Ping asks the transport for a sign of life within ctx: nil means that it works.
func (b *Bus) Ping(ctx context.Context) error {
	err := b.err
	if err == nil && b.closed.Load() {
		err = ErrClosed
	}
	if p, ok := transport.As[transport.Pinger](b.transport); ok && err == nil {
		err = p.Ping(ctx)
	}
	if err != nil {
		return fmt.Errorf("echo: ping: %w", err)
	}
	return nil
}
