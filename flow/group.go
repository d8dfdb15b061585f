package flow

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/echobus/echo"
)

// All runs steps at the same time, with one input. Their results are in the
// order of the steps, those that skipped left out.
func All[In, Out any](name string, steps ...Step[In, Out]) Step[In, []Out] {
	return Step[In, []Out]{func(b *builder, parent *place) (runner[In, []Out], *place) {
		p := b.add(parent, GroupKind, name)
		if len(steps) == 0 {
			b.fail(p, ErrEmpty, "a group has no steps")
		}
		runs := make([]runner[In, Out], len(steps))
		for i, s := range steps {
			runs[i], _ = s.in(b, p)
		}
		return counted(p, func(ctx context.Context, in In) ([]Out, error) {
			outs := &results[Out]{all: make([]Out, len(runs))}
			err := together(ctx, len(runs), len(runs), func(ctx context.Context, i int) error {
				out, err := runs[i](ctx, in)
				return outs.set(i, out, err)
			})
			return outs.list(), err
		}), p
	}}
}

// Each runs a step for each element of a slice, for as many as limit at the same
// time, all if it is 0. Results are in the order of the elements, those that were
// skipped left out.
func Each[In, Out any](name string, limit int, step Step[In, Out]) Step[[]In, []Out] {
	return Step[[]In, []Out]{func(b *builder, parent *place) (runner[[]In, []Out], *place) {
		p := b.add(parent, EachKind, name)
		if limit < 0 {
			b.fail(p, ErrDefinition, "the limit of Each is negative: %d", limit)
		}
		run, each := step.in(b, p)
		return counted(p, func(ctx context.Context, ins []In) ([]Out, error) {
			each.given.Add(int64(len(ins)))
			outs := &results[Out]{all: make([]Out, len(ins))}
			most := limit
			if most == 0 {
				most = len(ins)
			}
			err := together(ctx, len(ins), most, func(ctx context.Context, i int) error {
				out, err := run(ctx, ins[i])
				return outs.set(i, out, err)
			})
			return outs.list(), err
		}), p
	}}
}

// Pair is the results of two steps.
type Pair[A, B any] struct {
	First  A
	Second B
}

// Triple is the results of three steps.
type Triple[A, B, C any] struct {
	First  A
	Second B
	Third  C
}

// Both runs two steps at the same time, with one input. If one of them skips,
// so does the pair, after both.
func Both[In, A, B any](name string, first Step[In, A], second Step[In, B]) Step[In, Pair[A, B]] {
	return Step[In, Pair[A, B]]{func(b *builder, parent *place) (runner[In, Pair[A, B]], *place) {
		p := b.add(parent, GroupKind, name)
		f, _ := first.in(b, p)
		g, _ := second.in(b, p)
		return counted(p, func(ctx context.Context, in In) (both Pair[A, B], err error) {
			err = unlessSkipped(ctx, 2, func(ctx context.Context, i int) (err error) {
				if i == 0 {
					both.First, err = f(ctx, in)
				} else {
					both.Second, err = g(ctx, in)
				}
				return err
			})
			return both, err
		}), p
	}}
}

// Three runs three steps at the same time, with one input. If one of them skips,
// so does the triple, after all.
func Three[In, A, B, C any](name string, first Step[In, A], second Step[In, B], third Step[In, C]) Step[In, Triple[A, B, C]] {
	return Step[In, Triple[A, B, C]]{func(b *builder, parent *place) (runner[In, Triple[A, B, C]], *place) {
		p := b.add(parent, GroupKind, name)
		f, _ := first.in(b, p)
		g, _ := second.in(b, p)
		h, _ := third.in(b, p)
		return counted(p, func(ctx context.Context, in In) (all Triple[A, B, C], err error) {
			err = unlessSkipped(ctx, 3, func(ctx context.Context, i int) (err error) {
				switch i {
				case 0:
					all.First, err = f(ctx, in)
				case 1:
					all.Second, err = g(ctx, in)
				default:
					all.Third, err = h(ctx, in)
				}
				return err
			})
			return all, err
		}), p
	}}
}

// Merge runs two steps at the same time and makes one result of theirs.
func Merge[In, A, B, Out any](name string, merge func(A, B) (Out, error), first Step[In, A], second Step[In, B]) Step[In, Out] {
	return Then(Both("", first, second), leaf(FuncKind, name, merge == nil, func(_ context.Context, both Pair[A, B]) (Out, error) {
		return merge(both.First, both.Second)
	}))
}

// unlessSkipped is together for steps all of whose results are needed: if one skips,
// so do all, when the others have returned and none has failed.
func unlessSkipped(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	var skipped atomic.Bool
	err := together(ctx, n, n, func(ctx context.Context, i int) error {
		err := f(ctx, i)
		if isSkip(err) {
			skipped.Store(true)
			return nil
		}
		return err
	})
	if err == nil && skipped.Load() {
		return ErrSkip
	}
	return err
}

// results are those of a group.
type results[Out any] struct {
	all     []Out
	mark    sync.Once
	skipped []bool // which of all were, nil if none
}

// set notes the result of member i.
func (r *results[Out]) set(i int, out Out, err error) error {
	if err == nil {
		r.all[i] = out
		return nil
	}
	if !isSkip(err) {
		return err
	}
	r.mark.Do(func() { r.skipped = make([]bool, len(r.all)) })
	r.skipped[i] = true
	return nil
}

// list is the results that there are.
func (r *results[Out]) list() []Out {
	if r.skipped == nil {
		return r.all
	}
	kept := r.all[:0]
	for i := range r.all {
		if !r.skipped[i] {
			kept = append(kept, r.all[i])
		}
	}
	clear(r.all[len(kept):])
	return kept
}

// together calls f for 0 to n-1, for at most so many at the same time. The first
// error cancels the context of the others and is returned when all have returned.
func together(ctx context.Context, n, most int, f func(ctx context.Context, i int) error) error {
	if n == 0 {
		return nil
	}
	g := &crowd{n: int64(n), f: f}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	defer g.cancel(nil)
	g.work.Add(min(n, most))
	for range min(n, most) {
		go g.run()
	}
	g.work.Wait()
	return g.err
}

// crowd is goroutines that share work.
type crowd struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	f      func(ctx context.Context, i int) error
	n      int64
	next   atomic.Int64
	work   sync.WaitGroup
	failed atomic.Bool
	err    error // of the first that failed; known when work is done
}

// run does what others have not begun.
func (g *crowd) run() {
	defer g.work.Done()
	for {
		i := g.next.Add(1) - 1
		if i >= g.n || g.failed.Load() {
			return
		}
		g.one(int(i))
	}
}

func (g *crowd) one(i int) {
	err := errExit
	defer func() {
		if v := recover(); v != nil { // of a function that is no step of its own
			err = &echo.PanicError{Value: v, Stack: debug.Stack()}
		}
		if err != nil && g.failed.CompareAndSwap(false, true) {
			g.err = err
			g.cancel(err)
		}
	}()
	err = g.f(g.ctx, i)
}
