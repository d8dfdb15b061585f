package flow

import (
	"context"

	"github.com/echobus/echo"
)

// FromTopic is the messages of a consumer, which the pipeline runs: as many at a
// time as [echo.WithConcurrency] says, those of one key in order.
func FromTopic[M any](c *echo.Consumer[M]) Stream[M] {
	return Stream[M]{func(b *pipes, to sink[M]) {
		if c == nil {
			b.fail(b.in, ErrEmpty, "FromTopic: the consumer is nil")
			return
		}
		p := b.add(b.in, TopicKind, c.Topic())
		for _, s := range b.sources {
			if s.id == any(c) {
				b.fail(p, ErrDefinition, "the consumer is a source already: subscribe once more, in another group, for another stream")
			}
		}
		returned := &releases[M]{}
		take := counted(p, func(ctx context.Context, m echo.Message[M]) (struct{}, error) {
			e := item[M]{value: m.Value, key: m.Key, at: m.Time, attempt: m.Attempt}
			if to.keeps {
				e.from = &message[M]{m, returned}
			}
			err := to.take(ctx, e)
			if _, waited := err.(noRoom); waited {
				e.from.release()
				err = echo.ErrLater
			}
			return struct{}{}, err
		})
		b.sources = append(b.sources, source{c, c.Done(), func(ctx context.Context) error {
			return c.Run(ctx, func(ctx context.Context, m echo.Message[M]) error {
				_, err := take(ctx, m)
				return err
			})
		}})
	}}
}

// ToTopic is a step that publishes its input, and returns it: once it has
// returned, the transport has the message.
func ToTopic[M any](p *echo.Producer[M], opts ...echo.PublishOption) Step[M, M] {
	return leaf(PublishKind, topicOf(p), p == nil, func(ctx context.Context, v M) (M, error) {
		return v, p.Publish(ctx, v, opts...)
	})
}

// ToTopicFunc is a [ToTopic] with options that follow from the value. With an
// [echo.WithIdempotencyKey] among them, what is published again because
// something after it failed, or because of a crash, is stored or handled once where
// [echo.WithDedup] says so.
func ToTopicFunc[M any](p *echo.Producer[M], options func(M) []echo.PublishOption) Step[M, M] {
	return leaf(PublishKind, topicOf(p), p == nil || options == nil, func(ctx context.Context, v M) (M, error) {
		return v, p.Publish(ctx, v, options(v)...)
	})
}

// ToTopicBatch is a step that publishes the elements of a slice in order, and
// returns it.
func ToTopicBatch[M any](p *echo.Producer[M], opts ...echo.PublishOption) Step[[]M, []M] {
	return leaf(PublishKind, topicOf(p), p == nil, func(ctx context.Context, vs []M) ([]M, error) {
		return vs, p.PublishBatch(ctx, vs, opts...)
	})
}

func topicOf[M any](p *echo.Producer[M]) string {
	if p == nil {
		return "a topic"
	}
	return p.Topic()
}
