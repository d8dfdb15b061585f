package flow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/echobus/echo"
)

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
// with what they hold, and Run returns when all that is under way has ended; the contexts of what goes on
// after [echo.WithDrainTimeout] end. The consumers are closed then, so a pipeline runs once.
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
