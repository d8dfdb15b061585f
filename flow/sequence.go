package flow

import "context"

// Then is one step after another.
func Then[A, B, C any](first Step[A, B], second Step[B, C]) Step[A, C] {
	return Step[A, C]{func(b *builder, parent *place) (runner[A, C], *place) {
		p := b.add(parent, SequenceKind, "")
		f, _ := first.in(b, p)
		g, _ := second.in(b, p)
		return func(ctx context.Context, in A) (out C, err error) {
			mid, err := f(ctx, in)
			if err != nil {
				return out, err
			}
			return g(ctx, mid)
		}, p
	}}
}

// Then3 is three steps, one after another.
func Then3[A, B, C, D any](first Step[A, B], second Step[B, C], third Step[C, D]) Step[A, D] {
	return Then(first, Then(second, third))
}

// Then4 is four steps, one after another.
func Then4[A, B, C, D, E any](first Step[A, B], second Step[B, C], third Step[C, D], fourth Step[D, E]) Step[A, E] {
	return Then(first, Then3(second, third, fourth))
}

// Chain is steps of one type, one after another.
func Chain[T any](steps ...Step[T, T]) Step[T, T] {
	return Step[T, T]{func(b *builder, parent *place) (runner[T, T], *place) {
		p := b.add(parent, SequenceKind, "")
		if len(steps) == 0 {
			b.fail(p, ErrEmpty, "a sequence has no steps")
		}
		runs := make([]runner[T, T], len(steps))
		for i, s := range steps {
			runs[i], _ = s.in(b, p)
		}
		return func(ctx context.Context, v T) (_ T, err error) {
			for _, run := range runs {
				if v, err = run(ctx, v); err != nil {
					var none T
					return none, err
				}
			}
			return v, nil
		}, p
	}}
}

// Adapt is a step whose input and output are changed, so that it fits.
func Adapt[A, B, C, D any](in func(A) B, step Step[B, C], out func(C) D) Step[A, D] {
	return Step[A, D]{func(b *builder, parent *place) (runner[A, D], *place) {
		run, p := step.in(b, parent)
		if in == nil || out == nil {
			b.fail(p, ErrNotCallable, "a function of Adapt is nil")
		}
		return func(ctx context.Context, v A) (none D, err error) {
			w, err := run(ctx, in(v))
			if err != nil {
				return none, err
			}
			return out(w), nil
		}, p
	}}
}

// Named gives a step, such as a sequence, a name of its own in paths and
// descriptions.
func Named[In, Out any](name string, step Step[In, Out]) Step[In, Out] {
	return named(FlowKind, name, step)
}
