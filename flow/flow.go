// Package flow composes functions: one after another, at the same time, nested as
// deep as one likes, each checked by the compiler against those beside it.
//
//	read := flow.Merge("read", join,
//		flow.Func("csv", readCSV),
//		flow.Func("json", readJSON))
//	f, err := flow.New("import", flow.Then(read, flow.All("write",
//		flow.Tap("sqlite", store),
//		flow.Tap("report", report))))
//	written, err := f.Run(ctx, files)
//
// A [Step] is a definition, a value that may be used in many places. [New] makes
// a [Flow] of one: it finds what is wrong with it, names each place, and counts
// what happens there. A flow may be run by many goroutines at once.
//
// The first step that fails cancels the context of those that run beside it. The
// flow waits until they have returned and returns an [*Error], which says where
// it failed. A panic of a function is its error, and so is runtime.Goexit in a
// group; elsewhere that ends the goroutine that runs the flow.
//
// A [Registry] knows functions by name, with names for their arguments. It makes
// flows of text, which may be in a file of configuration:
//
//	f, err := registry.Parse("import", "source, target | compare | s3_logger, notify")
//	results, err := f.Run(ctx, flow.Values{"day": day})
//
// A stream does the same for ever, with the messages of topics:
//
//	s := flow.Via(flow.FromTopic(orders), flow.Then(enrich, flow.ToTopic(invoices)))
//	p, err := flow.Pipe("invoicing", s)
//	err = p.Run(ctx)
//
// A message is acknowledged when all that came of it was accepted.
package flow

import (
	"context"
	"errors"
	"time"
)

// Flow is a step that can be run.
type Flow[In, Out any] struct {
	name string
	step Step[In, Out]
	root *place
	run  runner[In, Out]
	text string // that it was parsed from
}

// New makes a flow of a step. Its error joins all that is wrong with the
// definition, each an [*Error] that says where.
func New[In, Out any](name string, step Step[In, Out]) (*Flow[In, Out], error) {
	b := &builder{}
	root := b.add(nil, FlowKind, name)
	run, _ := step.in(b, root)
	if len(b.errs) > 0 {
		return nil, errors.Join(b.errs...)
	}
	return &Flow[In, Out]{name: name, step: step, root: root, run: counted(root, run)}, nil
}

// Must is New for definitions that are known to be right. It panics if one is not.
func Must[In, Out any](name string, step Step[In, Out]) *Flow[In, Out] {
	f, err := New(name, step)
	if err != nil {
		panic(err)
	}
	return f
}

// Run runs the flow. Its error is an [*Error], or [ErrSkip] if a step left the
// input out. When it returns, everything that it began has ended.
func (f *Flow[In, Out]) Run(ctx context.Context, in In) (Out, error) {
	return f.run(ctx, in)
}

// Step returns the flow as a step of others. It counts for itself in each.
func (f *Flow[In, Out]) Step() Step[In, Out] {
	return named(FlowKind, f.name, f.step)
}

// Name is what the flow was called.
func (f *Flow[In, Out]) Name() string { return f.name }

// String describes the flow on one line, as that of [Sight] does; one of a text
// prints as that.
func (f *Flow[In, Out]) String() string {
	if f.text != "" {
		return f.text
	}
	return f.Sight().String()
}

// Forever runs the flow with one input again and again, with a pause between, until
// a run fails or ctx ends, and returns why.
func (f *Flow[In, Out]) Forever(ctx context.Context, in In, pause time.Duration) error {
	for {
		if _, err := f.Run(ctx, in); err != nil && !isSkip(err) {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// Sight returns what is where in the flow, and what happened there so far.
func (f *Flow[In, Out]) Sight() Sight { return f.root.sight() }
