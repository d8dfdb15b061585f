package flow

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
)

// Dispatch runs the step that is meant for a key of the input. Without one it
// fails with a [*DispatchError].
func Dispatch[K cmp.Ordered, In, Out any](name string, key func(In) K, steps map[K]Step[In, Out]) Step[In, Out] {
	return dispatch(name, key, steps, nil)
}

// DispatchOr is a Dispatch with a step for all other keys.
func DispatchOr[K cmp.Ordered, In, Out any](name string, key func(In) K, steps map[K]Step[In, Out], otherwise Step[In, Out]) Step[In, Out] {
	return dispatch(name, key, steps, &otherwise)
}

func dispatch[K cmp.Ordered, In, Out any](name string, key func(In) K, steps map[K]Step[In, Out], otherwise *Step[In, Out]) Step[In, Out] {
	return Step[In, Out]{func(b *builder, parent *place) (runner[In, Out], *place) {
		p := b.add(parent, DispatchKind, name)
		switch {
		case key == nil:
			b.fail(p, ErrNotCallable, "the function for keys is nil")
		case len(steps) == 0 && otherwise == nil:
			b.fail(p, ErrEmpty, "a dispatch has no steps")
		}
		runs := make(map[K]runner[In, Out], len(steps))
		for _, k := range slices.Sorted(maps.Keys(steps)) {
			var to *place
			runs[k], to = steps[k].in(b, p)
			to.key = fmt.Sprint(k)
		}
		other := func(_ context.Context, in In) (none Out, err error) {
			return none, p.wrap(&DispatchError{key(in)})
		}
		if otherwise != nil {
			var to *place
			other, to = otherwise.in(b, p)
			to.key = "otherwise"
		}
		return counted(p, func(ctx context.Context, in In) (Out, error) {
			if run, ok := runs[key(in)]; ok {
				return run(ctx, in)
			}
			return other(ctx, in)
		}), p
	}}
}
