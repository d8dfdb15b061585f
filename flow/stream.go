package flow

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
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

// origin is what an element came from.
type origin interface {
	// settle tells what became of the element: nil, that it was accepted.
	settle(err error)
	// release says that the element was given up, and nothing was done with it.
	release()
}

// pipes is a builder of a pipeline.
type pipes struct {
	*builder
	in      *place // what is being built is part of
	sources []source
	stages  []func(ctx context.Context, stop <-chan struct{})
}

// within builds what is part of a new place.
func (b *pipes) within(kind Kind, name string, build func()) *place {
	outer := b.in
	defer func() { b.in = outer }()
	b.in = b.add(outer, kind, name)
	build()
	return b.in
}

// source is a consumer whose messages are handled until ctx ends.
type source struct {
	id   any
	done <-chan struct{} // closed when it ends by itself
	run  func(ctx context.Context) error
}

// to connects a stream to what follows it.
func (s Stream[T]) to(b *pipes, to sink[T]) {
	if s.connect == nil {
		b.fail(b.in, ErrEmpty, "a stream is missing: a Stream is made by a function of package flow")
		return
	}
	s.connect(b, to)
}

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

// message is an origin that is one message of a consumer.
type message[M any] struct {
	echo.Message[M]
	returned *releases[M]
}

func (m *message[M]) settle(err error) {
	if _, waited := err.(noRoom); waited {
		m.release()
	} else {
		m.Settle(err)
	}
}

func (m *message[M]) release() { m.returned.add(m.Message) }

// releases gives back messages, together what came while others went.
type releases[M any] struct {
	mu    sync.Mutex
	busy  bool
	batch echo.Batch[M]
}

func (r *releases[M]) add(m echo.Message[M]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch = append(r.batch, m)
	if !r.busy {
		r.busy = true
		go r.send()
	}
}

func (r *releases[M]) send() {
	for {
		time.Sleep(time.Millisecond) // others are on their way
		r.mu.Lock()
		batch := r.batch
		r.batch = nil
		r.busy = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if err := batch.Release(context.Background()); err != nil {
			for _, m := range batch {
				m.Settle(err)
			}
		}
	}
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

// shared is an origin that several elements came from. It is settled when all are,
// and whoever made it has.
type shared struct {
	of       origin
	mu       sync.Mutex
	left     int
	err      error
	returned bool // one of them was given up
}

func share(o origin) *shared { return &shared{of: o, left: 1} }

func (s *shared) add() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left++
}

func (s *shared) settle(err error) { s.less(err, false) }
func (s *shared) release()         { s.less(nil, true) }

func (s *shared) less(err error, returned bool) {
	s.mu.Lock()
	s.left--
	s.returned = s.returned || returned
	if s.err == nil {
		s.err = err
	}
	last := s.left == 0
	s.mu.Unlock()
	switch {
	case !last:
	case s.err == nil && s.returned:
		s.of.release()
	default:
		s.of.settle(s.err)
	}
}

// group is an origin that is several.
type group []origin

func (g group) settle(err error) {
	for _, o := range g {
		o.settle(err)
	}
}

func (g group) release() {
	for _, o := range g {
		o.release()
	}
}

// ToTopic is a step that publishes its input, and returns it: once it has
// returned, the transport has the message.
func ToTopic[M any](p *echo.Producer[M], opts ...echo.PublishOption) Step[M, M] {
	return leaf(PublishKind, topicOf(p), p == nil, func(ctx context.Context, v M) (M, error) {
		return v, p.Publish(ctx, v, opts...)
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

// Pipeline is a stream that can be run.
type Pipeline struct {
	name string
	root *place
	pipes
	ran atomic.Bool
}

// Pipe makes a pipeline of a stream. Its error joins all that is wrong with the
// definition, each an [*Error] that says where. A stream cannot lead back to
// itself: a pipeline without end is made with topics.
func Pipe[T any](name string, s Stream[T]) (*Pipeline, error) {
	b := pipes{builder: &builder{}}
	b.in = b.add(nil, PipelineKind, name)
	s.to(&b, sink[T]{take: func(context.Context, item[T]) error { return nil }})
	if len(b.errs) > 0 {
		return nil, errors.Join(b.errs...)
	}
	return &Pipeline{name: name, root: b.in, pipes: b}, nil
}

// Name is what the pipeline was called.
func (p *Pipeline) Name() string { return p.name }

// Sight returns what is where in the pipeline, and what happened there so far.
func (p *Pipeline) Sight() Sight { return p.root.sight() }

// String describes the pipeline on one line, as that of [Sight] does.
func (p *Pipeline) String() string { return p.Sight().String() }

// Run handles the messages of the pipeline's consumers until ctx ends, or one of
// them or its bus is closed, which is no error, or a subscription fails for
// good. Then batches that wait for more are done, other windows are given back
// with what they hold, and Run returns when all that is under way has ended or [echo.WithDrainTimeout]
// is over. The consumers are closed then, so a pipeline runs once.
func (p *Pipeline) Run(ctx context.Context) error {
	if !p.ran.CompareAndSwap(false, true) {
		return fmt.Errorf("flow: pipeline %s: %w: it runs once", p.name, echo.ErrClosed)
	}
	receive, halt := context.WithCancel(ctx)
	defer halt()
	work, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var stages, sources, watchers sync.WaitGroup
	for _, run := range p.stages {
		stages.Go(func() { run(work, receive.Done()) })
	}
	errs := make([]error, len(p.sources))
	for i, s := range p.sources {
		sources.Go(func() {
			defer halt()
			errs[i] = s.run(receive)
		})
		watchers.Go(func() {
			select {
			case <-s.done:
				halt()
			case <-receive.Done():
			}
		})
	}
	sources.Wait()
	watchers.Wait()
	end(echo.ErrClosed) // nobody waits for what is still under way
	stages.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("flow: pipeline %s: %w", p.name, err)
	}
	return nil
}

// safely calls f, and makes an error of a panic, or of the end of its goroutine.
func (p *place) safely(ctx context.Context, f func(context.Context) error) error {
	return together(ctx, 1, 1, func(ctx context.Context, _ int) (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = p.wrap(&echo.PanicError{Value: v, Stack: debug.Stack()})
			}
		}()
		return f(ctx)
	})
}
