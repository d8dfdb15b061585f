package flow

import (
	"context"
	"fmt"
	"hash/maphash"

	"github.com/echobus/echo"
)

// Parallel is a stream whose elements are handled by n goroutines from here on.
// Elements with one key go to one of them, in order, others to whichever is free;
// without a key function the key is that of the message. Each goroutine has a
// few elements waiting.
//
// It is for keys other than the messages', and for streams of several topics:
// for the messages of one topic, [echo.WithConcurrency] of the consumer does the
// same, and keeps the order through retries, too.
func Parallel[T any](s Stream[T], n int, key func(T) string) Stream[T] {
	return Stream[T]{func(b *pipes, to sink[T]) {
		const waiting = 16
		pa := &parallel[T]{to: to, free: make(chan item[T]), seed: maphash.MakeSeed()}
		s.to(b, sink[T]{func(ctx context.Context, e item[T]) error {
			if key != nil {
				e.key = key(e.value)
			}
			return pa.take(ctx, e)
		}, true})
		pa.place = b.add(b.in, ParallelKind, fmt.Sprintf("parallel %d", n))
		if n < 1 {
			b.fail(pa.place, ErrDefinition, "Parallel needs at least one goroutine, not %d", n)
			return
		}
		for range n {
			lane := make(chan item[T], waiting)
			pa.lanes = append(pa.lanes, lane)
			b.stages = append(b.stages, func(ctx context.Context, _ <-chan struct{}) { pa.run(ctx, lane) })
		}
	}}
}

type parallel[T any] struct {
	place *place
	to    sink[T]
	free  chan item[T] // without key
	lanes []chan item[T]
	seed  maphash.Seed
}

func (pa *parallel[T]) take(ctx context.Context, e item[T]) error {
	lane := pa.free
	if e.key != "" {
		lane = pa.lanes[maphash.String(pa.seed, e.key)%uint64(len(pa.lanes))]
	}
	return hand(ctx, lane, e)
}

// noRoom is why an element was not handed to a stage before its time was up. That is
// nobody's failure: its message is given back.
type noRoom struct{ error }

func (e noRoom) Unwrap() error { return e.error }

// hand gives an element to a stage.
func hand[T any](ctx context.Context, to chan<- T, e T) error {
	select {
	case to <- e:
		return echo.ErrLater
	case <-ctx.Done():
		return noRoom{context.Cause(ctx)}
	}
}

func (pa *parallel[T]) run(ctx context.Context, lane <-chan item[T]) {
	for {
		var e item[T]
		select {
		case e = <-lane:
		case e = <-pa.free:
		case <-ctx.Done():
			return
		}
		pass(ctx, pa.place, pa.to, e)
	}
}

// pass gives an element to what follows a stage, and tells its origin what became
// of it.
func pass[T any](ctx context.Context, p *place, to sink[T], e item[T]) {
	if err := offer(ctx, p, to, e); err != echo.ErrLater {
		e.from.settle(err)
	}
}

// offer gives an element to what follows a stage. A panic there is an error, and so
// is the end of the goroutine.
func offer[T any](ctx context.Context, p *place, to sink[T], e item[T]) error {
	since := p.begin()
	err := together(ctx, 1, 1, func(ctx context.Context, _ int) error { return to.take(ctx, e) })
	err = p.located(err)
	p.end(since, err)
	return err
}
