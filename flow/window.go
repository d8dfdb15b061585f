package flow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/echobus/echo"
)

// Batch is a stream in slices: of n elements, or of those that came until wait
// after the first. When the pipeline stops, what there is makes a slice.
//
// A slice whose steps fail is settled as failed whole. Its messages then come
// again each in a slice of its own, as does what was delivered before for
// another reason, so that one that cannot be handled takes no others along: give
// their consumer at least two attempts, if it bounds them.
func Batch[T any](s Stream[T], n int, wait time.Duration) Stream[[]T] {
	return Stream[[]T]{func(b *pipes, to sink[[]T]) {
		ba := &batching[T]{to: to, n: n, wait: wait, in: make(chan item[T])}
		s.to(b, sink[T]{func(ctx context.Context, e item[T]) error { return hand(ctx, ba.in, e) }, true})
		ba.place = b.add(b.in, BatchKind, fmt.Sprintf("batch %d in %v", n, wait))
		if n < 1 || wait <= 0 {
			b.fail(ba.place, ErrDefinition, "a batch needs at least one element, not %d, and some time, not %v", n, wait)
		}
		b.stages = append(b.stages, ba.run)
	}}
}

type batching[T any] struct {
	place *place
	to    sink[[]T]
	n     int
	wait  time.Duration
	in    chan item[T]
	held  []item[T]
}

func (ba *batching[T]) run(ctx context.Context, stop <-chan struct{}) {
	over := time.NewTimer(ba.wait)
	over.Stop()
	wait := ba.wait
	for {
		select {
		case e := <-ba.in:
			if e.attempt > 1 {
				passAll(ctx, ba.place, ba.to, []item[T]{e})
				continue
			}
			if ba.held = append(ba.held, e); len(ba.held) == 1 {
				over.Reset(wait)
			}
			if len(ba.held) < ba.n {
				continue
			}
			over.Stop()
		case <-over.C:
		case <-stop: // what was received before comes at once, or not at all
			stop, wait = nil, time.Millisecond
			if len(ba.held) > 0 {
				over.Reset(wait)
			}
			continue
		case <-ctx.Done():
			return
		}
		held := ba.held
		ba.held = nil
		passAll(ctx, ba.place, ba.to, held)
	}
}

// passAll passes elements on as a slice.
func passAll[T any](ctx context.Context, p *place, to sink[[]T], es []item[T]) {
	e := bundled(es)
	pass(ctx, p, to, become(e, unwrapped(es)))
}

// bundled is an element that stands for several: the last of them, with the
// origin of all.
func bundled[T any](es []item[T]) item[T] {
	last := es[len(es)-1]
	from := make(group, len(es))
	for i := range es {
		from[i] = es[i].from
		if es[i].key != last.key {
			last.key = ""
		}
	}
	last.from = from
	return last
}

func unwrapped[T any](es []item[T]) []T {
	vs := make([]T, len(es))
	for i := range es {
		vs[i] = es[i].value
	}
	return vs
}

// Windows says which elements belong together; see [Windowed].
type Windows[T any] struct {
	// Every is how long a window is, by the time of its elements. Windows follow
	// each other, from the zero time on. 0: time does not matter.
	Every time.Duration
	// Late is how long, by the time of the elements, a window stays open after
	// its end for elements that come out of order.
	Late time.Duration
	// Count is how many elements close a window; 0: as many as come.
	Count int
	// Idle closes all windows when nothing came for so long, by the clock. The
	// default is Every and Late together; without Every it is never.
	Idle time.Duration
	// Key puts elements with different keys into different windows. Nil: one
	// window is for all.
	Key func(T) string
	// Time is when an element happened. Nil: when its message was published. One in
	// the future belongs to a window there, and closes none.
	Time func(T) time.Time
	// Attempts is how often a window is tried whose steps fail, with a back-off
	// from 100 ms to 10 s and nothing else passing, before its messages become dead
	// letters as if a handler had rejected them. 0: until it is accepted, or a step
	// returns [echo.Reject].
	Attempts int
}

// Window is elements that belong together.
type Window[T any] struct {
	Key        string    // of all, "" without a key function
	Start, End time.Time // of Every: from Start to before End; otherwise the times of the first and of the last
	Again      bool      // it may not be the first with this key and these times: one was closed, or some of it was delivered before
	Values     []T       // in the order in which they came
}

// Windowed is a stream in windows. A window is closed when an element shows that
// its time is over, when it is full, or when nothing comes any more.
//
// The messages of open windows are not acknowledged and count against
// [echo.WithPrefetch] of their consumers: nothing more comes when that is used up,
// until windows close because of Idle. So there must be room for a window, and
// for Late. When the pipeline stops they go back, and make the
// same windows where it goes on. Members of a group share its messages, and a
// window has those of one member: let one process at a time run the pipeline, or
// give each keys of its own.
//
// What comes after its window was closed, for whatever reason, makes another one,
// marked Again. After a crash a window may come a second time, whole or in part, and
// is marked, too. So whoever keeps windows looks at what there is already before a
// marked one is added. Windows that an earlier process closed are not known to this one.
func Windowed[T any](s Stream[T], w Windows[T]) Stream[Window[T]] {
	return Stream[Window[T]]{func(b *pipes, to sink[Window[T]]) {
		wi := &windowing[T]{Windows: w, to: to, in: make(chan item[T]), open: make(map[windowID]*opened[T]), early: make(map[windowID]struct{})}
		s.to(b, sink[T]{wi.take, true})
		wi.place = b.add(b.in, WindowKind, "window "+w.name())
		switch {
		case w.Every < 0 || w.Late < 0 || w.Count < 0 || w.Idle < 0 || w.Attempts < 0:
			b.fail(wi.place, ErrDefinition, "a duration or number of Windows is negative")
		case w.Every == 0 && w.Count == 0:
			b.fail(wi.place, ErrDefinition, "Windows has neither Every nor Count, so no window would end")
		case w.Every == 0 && w.Late > 0:
			b.fail(wi.place, ErrDefinition, "Windows.Late means nothing without Every")
		}
		if wi.Idle == 0 {
			wi.Idle = w.Every + w.Late
		}
		b.stages = append(b.stages, wi.run)
	}}
}

func (w *Windows[T]) name() string {
	switch {
	case w.Every == 0:
		return fmt.Sprint(w.Count)
	case w.Count == 0:
		return w.Every.String()
	}
	return fmt.Sprintf("%v, %d", w.Every, w.Count)
}

type windowing[T any] struct {
	Windows[T]
	place *place
	to    sink[Window[T]]
	in    chan item[T]

	open   map[windowID]*opened[T]
	early  map[windowID]struct{} // closed before their time was over
	newest time.Time             // of all elements, but not in the future
	due    time.Time             // the first end of open windows, or before; zero: no such
	came   time.Time             // when the last element did, by the clock
	alarm  time.Time             // the first of the times until which windows are open, by the clock; zero: none
	timer  *time.Timer
	stop   <-chan struct{}
}

type windowID struct {
	key   string
	start time.Time // in UTC, zero without Every
}

// opened is a window that is open.
type opened[T any] struct {
	Window[T]
	elements []item[T]
	until    time.Time // by the clock, of one whose time is over already
}

func (w *windowing[T]) take(ctx context.Context, e item[T]) error {
	e.key = ""
	if w.Key != nil {
		e.key = w.Key(e.value)
	}
	if w.Time != nil {
		e.at = w.Time(e.value)
	}
	return hand(ctx, w.in, e)
}

func (w *windowing[T]) run(ctx context.Context, stop <-chan struct{}) {
	w.timer, w.stop = time.NewTimer(0), stop
	defer w.timer.Stop()
	for {
		select {
		case e := <-w.in:
			w.add(ctx, e)
		case <-w.timer.C:
			w.tick(ctx)
			w.arm()
		case <-stop:
			w.giveUp(ctx)
			return
		case <-ctx.Done():
			return
		}
	}
}

// giveUp gives back what there is, and what comes.
func (w *windowing[T]) giveUp(ctx context.Context) {
	for _, o := range w.open {
		bundled(o.elements).from.release()
	}
	for {
		select {
		case e := <-w.in:
			e.from.release()
		case <-ctx.Done():
			return
		}
	}
}

// add puts an element into its window, and closes those that are over.
func (w *windowing[T]) add(ctx context.Context, e item[T]) {
	w.came = time.Now()
	id := windowID{key: e.key}
	if w.Every > 0 {
		id.start = e.at.Truncate(w.Every).UTC()
	}
	o := w.open[id]
	if o == nil {
		o = &opened[T]{Window: Window[T]{Key: e.key, Start: e.at, End: e.at}}
		if w.Every > 0 {
			o.Start = e.at.Truncate(w.Every)
			o.End = o.Start.Add(w.Every)
			if _, o.Again = w.early[id]; w.over(o.End) {
				o.Again = true
				o.until = w.came.Add(max(w.Late, min(w.Idle, time.Second)))
				if w.alarm.IsZero() { // otherwise it is sooner
					w.alarm = o.until
					w.arm()
				}
			} else if w.due.IsZero() || o.End.Before(w.due) {
				w.due = o.End
			}
		}
		w.open[id] = o
	}
	if w.Every == 0 {
		o.End = e.at
	}
	if o.elements = append(o.elements, e); len(o.elements) == w.Count {
		w.close(ctx, id)
	}
	w.newest = newer(w.newest, e.at, w.came)
	if w.Every > 0 && !w.due.IsZero() && w.over(w.due) {
		w.closeAll(ctx, func(o *opened[T]) bool { return o.until.IsZero() && w.over(o.End) })
	}
}

// newer is the later of two times, of which the second may be that of a clock which
// is wrong: one in the future is not believed.
func newer(newest, at, now time.Time) time.Time {
	if at.After(now) {
		at = now
	}
	if at.After(newest) {
		return at
	}
	return newest
}

// over reports whether elements show that a time has passed.
func (w *windowing[T]) over(end time.Time) bool { return !end.Add(w.Late).After(w.newest) }

// tick closes what is over by the clock.
func (w *windowing[T]) tick(ctx context.Context) {
	now := time.Now()
	idle := w.Idle > 0 && now.Sub(w.came) >= w.Idle
	w.closeAll(ctx, func(o *opened[T]) bool { return idle || !o.until.IsZero() && !o.until.After(now) })
}

// arm sets the timer for the next tick. As elements come, that may be early.
func (w *windowing[T]) arm() {
	next := time.Hour
	if w.Idle > 0 {
		next = w.Idle
		if since := time.Since(w.came); since < w.Idle {
			next = w.Idle - since
		}
	}
	if !w.alarm.IsZero() {
		next = min(next, time.Until(w.alarm))
	}
	w.timer.Reset(max(next, time.Millisecond))
}

// closeAll closes windows, the earliest first.
func (w *windowing[T]) closeAll(ctx context.Context, which func(*opened[T]) bool) {
	var ids []windowID
	for id, o := range w.open {
		if which(o) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b windowID) int { return cmp.Or(a.start.Compare(b.start), cmp.Compare(a.key, b.key)) })
	for _, id := range ids {
		w.close(ctx, id)
	}
	w.due, w.alarm = time.Time{}, time.Time{}
	for _, o := range w.open {
		first := &w.due
		at := o.End
		if !o.until.IsZero() {
			first, at = &w.alarm, o.until
		}
		if first.IsZero() || at.Before(*first) {
			*first = at
		}
	}
	for id := range w.early {
		if w.over(id.start.Add(w.Every)) { // that alone tells now
			delete(w.early, id)
		}
	}
}

func (w *windowing[T]) close(ctx context.Context, id windowID) {
	o := w.open[id]
	delete(w.open, id)
	if w.Every > 0 && !w.over(o.End) {
		w.early[id] = struct{}{}
	}
	o.Values = unwrapped(o.elements)
	o.Again = o.Again || slices.ContainsFunc(o.elements, func(e item[T]) bool { return e.attempt > 1 })
	persist(ctx, w.stop, w.place, w.Attempts, w.to, become(bundled(o.elements), o.Window))
}

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// persist is pass for what would not come again as it is: it is tried again
// here, until that is hopeless.
func persist[T any](ctx context.Context, stop <-chan struct{}, p *place, attempts int, to sink[T], e item[T]) {
	pause := firstPause
	for n := 1; ; n++ {
		err := offer(ctx, p, to, e)
		switch {
		case err == echo.ErrLater:
			return
		case err == nil:
			e.from.settle(nil)
			return
		case ctx.Err() != nil:
			e.from.release()
			return
		case n == attempts || rejected(err):
			e.from.settle(echo.Reject(err))
			return
		}
		p.retried.Add(1)
		t := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-t.C:
		case <-stop: // whoever goes on tries again
			t.Stop()
			e.from.release()
			return
		}
		pause = min(2*pause, longestPause)
	}
}

// rejected reports whether an error says that trying again is of no use; see
// [echo.Reject].
func rejected(err error) (yes bool) {
	defer func() { recover() }() // as it may be any error
	r, ok := errors.AsType[interface {
		error
		Rejected() bool
	}](err)
	return ok && r.Rejected()
}
