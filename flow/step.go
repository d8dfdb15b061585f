package flow

import (
	"context"
	"errors"
	"runtime/debug"

	"github.com/echobus/echo"
)

// Step is something that makes an Out of an In: a function, or steps put
// together. The zero Step cannot be part of a flow.
type Step[In, Out any] struct {
	// build makes a step of a place in a flow, and returns that place.
	build func(b *builder, parent *place) (runner[In, Out], *place)
}

// runner runs a step that is part of a flow.
type runner[In, Out any] func(context.Context, In) (Out, error)

// in builds the step as part of a place.
func (s Step[In, Out]) in(b *builder, parent *place) (runner[In, Out], *place) {
	if s.build == nil {
		b.fail(parent, ErrEmpty, "a step is missing: a Step is made by a function of package flow")
		return nil, parent
	}
	return s.build(b, parent)
}

// ErrSkip is returned by a function that has no result for its input, and that
// is no failure: the steps after it are not run. In [All] or [Each] its result
// is left out; [Both], [Three] and [Merge], which need all results, skip as well.
var ErrSkip = errors.New("flow: skipped")

// Func is a step that calls a function.
func Func[In, Out any](name string, f func(context.Context, In) (Out, error)) Step[In, Out] {
	return leaf(FuncKind, name, f == nil, f)
}

// MapCtx is a step that calls a function that cannot fail.
func MapCtx[In, Out any](name string, f func(context.Context, In) Out) Step[In, Out] {
	return leaf(FuncKind, name, f == nil, func(ctx context.Context, in In) (Out, error) { return f(ctx, in), nil })
}

// Try is a step that calls a function that takes no context.
func Try[In, Out any](name string, f func(In) (Out, error)) Step[In, Out] {
	return leaf(FuncKind, name, f == nil, func(_ context.Context, in In) (Out, error) { return f(in) })
}

// Map is a step that calls a function that takes no context and cannot fail.
func Map[In, Out any](name string, f func(In) Out) Step[In, Out] {
	return leaf(FuncKind, name, f == nil, func(_ context.Context, in In) (Out, error) { return f(in), nil })
}

// Source is a step that needs no input.
func Source[Out any](name string, f func(context.Context) (Out, error)) Step[struct{}, Out] {
	return leaf(SourceKind, name, f == nil, func(ctx context.Context, _ struct{}) (Out, error) { return f(ctx) })
}

// Tap is a step that calls a function, such as one that writes its input
// somewhere, and returns its input.
func Tap[In any](name string, f func(context.Context, In) error) Step[In, In] {
	return leaf(TapKind, name, f == nil, func(ctx context.Context, in In) (In, error) { return in, f(ctx, in) })
}

// Filter is a step that returns its input, or skips it if keep is false.
func Filter[In any](name string, keep func(In) bool) Step[In, In] {
	return leaf(FilterKind, name, keep == nil, func(_ context.Context, in In) (In, error) {
		if !keep(in) {
			return in, ErrSkip
		}
		return in, nil
	})
}

// leaf is a step that calls a function.
func leaf[In, Out any](kind Kind, name string, missing bool, f func(context.Context, In) (Out, error)) Step[In, Out] {
	return Step[In, Out]{func(b *builder, parent *place) (runner[In, Out], *place) {
		p := b.add(parent, kind, name)
		switch {
		case missing:
			b.fail(p, ErrNotCallable, "the function is nil")
		case name == "":
			b.fail(p, ErrDefinition, "a step has no name")
		}
		return func(ctx context.Context, in In) (out Out, err error) {
			if ctx.Err() != nil {
				return out, p.wrap(context.Cause(ctx))
			}
			since := p.begin()
			returned := false
			defer func() {
				if !returned { // it panicked, or ended its goroutine
					err = &echo.PanicError{Value: recover(), Stack: debug.Stack()}
				}
				if err != nil {
					err = p.wrap(err)
				}
				p.end(since, err)
			}()
			out, err = f(ctx, in)
			returned = true
			return out, err
		}, p
	}}
}

// named is a step with a place of its own around another.
func named[In, Out any](kind Kind, name string, s Step[In, Out]) Step[In, Out] {
	return Step[In, Out]{func(b *builder, parent *place) (runner[In, Out], *place) {
		p := b.add(parent, kind, name)
		run, _ := s.in(b, p)
		return counted(p, run), p
	}}
}
