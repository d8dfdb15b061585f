package flow

import (
	"context"
	"time"

	"github.com/echobus/echo"
)

// Stream is what comes from a topic, or from several, and what steps made of it.
// It is a definition, as a [Step] is; [Pipe] makes of it something that runs.
//
// A message of a topic is acknowledged when all that came of it was accepted: when
// every step after it has returned without an error, and has skipped it or
// passed it on to the end. Otherwise it comes again, or becomes a dead letter, as
// [echo.WithRetry] of its consumer says. So a crash repeats work, but
// loses none, and steps must bear repetition.
//
// Nothing is taken from a topic for which there is no room: a stage that is busy
// keeps those before it waiting, and [echo.WithPrefetch] bounds what is under way.
type Stream[T any] struct {
	connect func(b *pipes, to sink[T])
}

// item is a value on its way, and what is known about it.
type item[T any] struct {
	value   T
	key     string    // of the message that it came from, or that a stage gave it
	at      time.Time // when that was published, or when it happened
	attempt int       // how often the message was delivered
	from    origin    // nil where nobody keeps elements
}

// become returns another value with what is known about e.
func become[A, B any](e item[A], v B) item[B] {
	return item[B]{v, e.key, e.at, e.attempt, e.from}
}

// sink takes elements. It returns [echo.ErrLater] if it keeps one: then it tells
// its origin what became of it. Only a sink that keeps may do so.
type sink[T any] struct {
	take  func(ctx context.Context, e item[T]) error
	keeps bool
}

// to connects a stream to what follows it.
func (s Stream[T]) to(b *pipes, to sink[T]) {
	if s.connect == nil {
		b.fail(b.in, ErrEmpty, "a stream is missing: a Stream is made by a function of package flow")
		return
	}
	s.connect(b, to)
}

// Via is a stream after a step. What the step skips is done with.
func Via[A, B any](s Stream[A], step Step[A, B]) Stream[B] {
	return Stream[B]{func(b *pipes, to sink[B]) {
		var run runner[A, B]
		s.to(b, sink[A]{func(ctx context.Context, e item[A]) error {
			v, err := run(ctx, e.value)
			switch {
			case err == nil:
				return to.take(ctx, become(e, v))
			case isSkip(err):
				return nil
			}
			return err
		}, to.keeps})
		run, _ = step.in(b.builder, b.in)
	}}
}

// Union is the elements of several streams.
func Union[T any](streams ...Stream[T]) Stream[T] {
	return Stream[T]{func(b *pipes, to sink[T]) {
		if len(streams) == 0 {
			b.fail(b.in, ErrEmpty, "a union has no streams")
		}
		b.within(UnionKind, "", func() {
			for _, s := range streams {
				b.within(SequenceKind, "", func() { s.to(b, to) })
			}
		})
	}}
}

// Spread is the elements of slices. The message that a slice came from is done
// with when all its elements are.
func Spread[T any](s Stream[[]T]) Stream[T] {
	return Stream[T]{func(b *pipes, to sink[T]) {
		s.to(b, sink[[]T]{func(ctx context.Context, e item[[]T]) error {
			if e.from == nil {
				for _, v := range e.value {
					if err := to.take(ctx, become(e, v)); err != nil {
						return err
					}
				}
				return nil
			}
			parts, kept := share(e.from), false
			for _, v := range e.value {
				part := become(e, v)
				part.from = parts
				parts.add()
				err := to.take(ctx, part)
				if err != nil && err != echo.ErrLater && !kept { // nobody else has a part in it
					return err
				}
				if err == echo.ErrLater {
					kept = true
				} else {
					parts.settle(err)
				}
			}
			if !kept {
				return nil
			}
			parts.settle(nil) // the share of this loop
			return echo.ErrLater
		}, to.keeps})
	}}
}
