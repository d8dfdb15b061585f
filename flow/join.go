package flow

import (
	"context"
	"slices"
	"time"
)

// Joining says which elements of two streams belong together; see [Join].
type Joining[A, B any] struct {
	// Within is how far apart in time the two elements of a pair are at most.
	Within time.Duration
	// Left and Right are the keys of elements, which must be equal in a pair; an
	// element without a key, "", has no partner. Nil: those of their messages.
	Left  func(A) string
	Right func(B) string
	// LeftTime and RightTime are when an element happened. Nil: when its message
	// was published.
	LeftTime  func(A) time.Time
	RightTime func(B) time.Time
	// Late is how long, by the time of the elements, one waits for others that
	// come out of order. The default is Within.
	Late time.Duration
	// Idle is how long, by the clock, a stream may bring nothing until that is
	// taken for a sign that no older element comes from it. The default is Late.
	Idle time.Duration
	// Grace is how long after its start the join gives up nothing: what another
	// process had in hand when it crashed comes again only when its lease ends, so
	// it must be longer than the lease, by some seconds. The default is 45 s, which
	// suits the usual lease of 30 s.
	Grace time.Duration
	// Outer lets elements that found no partner go on alone; otherwise they
	// are skipped.
	Outer bool
	// Attempts is how often a pair is tried whose steps fail, as in [Windows].
	Attempts int
}

// Joined is a pair, or with Outer an element without a partner.
type Joined[A, B any] struct {
	Key   string
	Left  *A // nil of a Right without partner
	Right *B // nil of a Left without partner
}

// Join is the pairs of elements of two streams that have one key and
// happened within a time of each other; an element may be in many.
//
// An element is held until the other stream is past all that could be its partner,
// and acknowledged then, when its pairs were accepted. Until then it
// counts against [echo.WithPrefetch] of its consumer, which must have room for as many as come
// within Within and Late. Where both have not, both streams stop, until the clock shows
// that partners would be too late: pairs may be missed then. Members of a group share its messages, so one
// process at a time runs the pipeline, or each gets keys of its own.
func Join[A, B any](name string, left Stream[A], right Stream[B], j Joining[A, B]) Stream[Joined[A, B]] {
	return Stream[Joined[A, B]]{func(b *pipes, to sink[Joined[A, B]]) {
		if j.Late == 0 {
			j.Late = j.Within
		}
		if j.Idle == 0 {
			j.Idle = max(j.Late, time.Second)
		}
		if j.Grace == 0 {
			j.Grace = 45 * time.Second
		}
		jo := &joining[A, B]{Joining: j, to: to,
			left:  newSide[A](j.Left, j.LeftTime),
			right: newSide[B](j.Right, j.RightTime),
		}
		jo.place = b.within(JoinKind, name, func() {
			b.within(SequenceKind, "", func() { left.to(b, sink[A]{jo.left.take, true}) })
			b.within(SequenceKind, "", func() { right.to(b, sink[B]{jo.right.take, true}) })
		})
		switch {
		case name == "":
			b.fail(jo.place, ErrDefinition, "a join has no name")
		case j.Within <= 0:
			b.fail(jo.place, ErrDefinition, "Joining.Within is %v, and must be positive", j.Within)
		case j.Late < 0 || j.Idle < 0 || j.Grace < 0 || j.Attempts < 0:
			b.fail(jo.place, ErrDefinition, "a duration or number of Joining is negative")
		}
		b.stages = append(b.stages, jo.run)
	}}
}

type joining[A, B any] struct {
	Joining[A, B]
	place *place
	to    sink[Joined[A, B]]
	left  *side[A]
	right *side[B]
	stop  <-chan struct{}
	grace time.Time // until when nothing is given up
}

// side is what a join knows of one stream.
type side[T any] struct {
	key    func(T) string
	time   func(T) time.Time
	in     chan item[T]
	held   map[string][]*waiting[T] // by key, in the order in which they came
	n      int
	newest time.Time // of all elements
	came   time.Time // when the last one did, by the clock
}

// waiting is an element that waits for partners.
type waiting[T any] struct {
	item[T]
	pairs   *shared // its origin, and that of its pairs
	matched bool
	// Of Outer: its partners, in each of which it has a share, so that they are not
	// acknowledged before it is: alone, it would seem to have none.
	partners []*shared
}

// done gives up its share in its partners, and in itself.
func (w *waiting[T]) done() {
	for _, p := range w.partners {
		p.settle(nil)
	}
	w.pairs.settle(nil)
}

func (w *waiting[T]) giveUp() {
	for _, p := range w.partners {
		p.release()
	}
	w.pairs.release()
}

func newSide[T any](key func(T) string, time func(T) time.Time) *side[T] {
	return &side[T]{key: key, time: time, in: make(chan item[T]), held: make(map[string][]*waiting[T])}
}

func (s *side[T]) take(ctx context.Context, e item[T]) error {
	if s.key != nil {
		e.key = s.key(e.value)
	}
	if s.time != nil {
		e.at = s.time(e.value)
	}
	return hand(ctx, s.in, e)
}

// add holds an element.
func (s *side[T]) add(e item[T]) *waiting[T] {
	s.came = time.Now()
	s.newest = newer(s.newest, e.at, s.came)
	w := &waiting[T]{item: e, pairs: share(e.from)}
	s.held[e.key] = append(s.held[e.key], w)
	s.n++
	return w
}

// expire takes out what happened before a time, the oldest first.
func (s *side[T]) expire(before time.Time) (over []*waiting[T]) {
	for key, ws := range s.held {
		kept := ws[:0]
		for _, w := range ws {
			if w.at.Before(before) {
				over = append(over, w)
			} else {
				kept = append(kept, w)
			}
		}
		clear(ws[len(kept):])
		if s.held[key] = kept; len(kept) == 0 {
			delete(s.held, key)
		}
	}
	s.n -= len(over)
	slices.SortFunc(over, func(a, b *waiting[T]) int { return a.at.Compare(b.at) })
	return over
}

func (s *side[T]) giveUp() {
	for _, ws := range s.held {
		for _, w := range ws {
			w.giveUp()
		}
	}
}

func (j *joining[A, B]) run(ctx context.Context, stop <-chan struct{}) {
	j.stop = stop
	now := time.Now()
	j.grace, j.left.came, j.right.came = now.Add(j.Grace), now, now
	every := min(max(min(j.Idle, j.Within)/4, time.Millisecond), time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case e := <-j.left.in:
			if e.key == "" {
				j.leftAlone(ctx, &waiting[A]{item: e, pairs: share(e.from)})
				continue
			}
			a := j.left.add(e)
			for _, b := range slices.Clone(j.right.held[e.key]) {
				j.match(ctx, a, b)
			}
		case e := <-j.right.in:
			if e.key == "" {
				j.rightAlone(ctx, &waiting[B]{item: e, pairs: share(e.from)})
				continue
			}
			b := j.right.add(e)
			for _, a := range slices.Clone(j.left.held[e.key]) {
				j.match(ctx, a, b)
			}
		case now := <-tick.C:
			j.expire(ctx, now)
		case <-stop:
			j.giveUp(ctx)
			return
		case <-ctx.Done():
			return
		}
	}
}

// giveUp gives back what there is, and what comes.
func (j *joining[A, B]) giveUp(ctx context.Context) {
	j.left.giveUp()
	j.right.giveUp()
	for {
		select {
		case e := <-j.left.in:
			e.from.release()
		case e := <-j.right.in:
			e.from.release()
		case <-ctx.Done():
			return
		}
	}
}

// match passes on a pair, if the two are one.
func (j *joining[A, B]) match(ctx context.Context, a *waiting[A], b *waiting[B]) {
	if d := a.at.Sub(b.at).Abs(); d > j.Within {
		return
	}
	a.matched, b.matched = true, true
	a.pairs.add()
	b.pairs.add()
	if j.Outer {
		a.pairs.add()
		b.pairs.add()
		a.partners, b.partners = append(a.partners, b.pairs), append(b.partners, a.pairs)
	}
	at := a.at
	if b.at.After(at) {
		at = b.at
	}
	j.pass(ctx, item[Joined[A, B]]{Joined[A, B]{a.key, &a.value, &b.value}, a.key, at, max(a.attempt, b.attempt), group{a.pairs, b.pairs}})
}

func (j *joining[A, B]) pass(ctx context.Context, e item[Joined[A, B]]) {
	persist(ctx, j.stop, j.place, j.Attempts, j.to, e)
}

// expire lets go of what no partner can come for any more.
func (j *joining[A, B]) expire(ctx context.Context, now time.Time) {
	if now.Before(j.grace) {
		return
	}
	for _, a := range j.left.expire(j.past(j.right.newest, j.right.came, now)) {
		j.leftAlone(ctx, a)
	}
	for _, b := range j.right.expire(j.past(j.left.newest, j.left.came, now)) {
		j.rightAlone(ctx, b)
	}
}

// leftAlone lets go of an element.
func (j *joining[A, B]) leftAlone(ctx context.Context, a *waiting[A]) {
	if !a.matched {
		j.alone(ctx, become(a.item, Joined[A, B]{Key: a.key, Left: &a.value}), a.pairs)
	}
	a.done()
}

func (j *joining[A, B]) rightAlone(ctx context.Context, b *waiting[B]) {
	if !b.matched {
		j.alone(ctx, become(b.item, Joined[A, B]{Key: b.key, Right: &b.value}), b.pairs)
	}
	b.done()
}

// past is the time before which elements find no partners any more in a stream
// that came as far as newest, and brought something last at came.
func (j *joining[A, B]) past(newest, came, now time.Time) time.Time {
	if now.Sub(came) >= j.Idle && now.After(newest) {
		newest = now
	}
	return newest.Add(-j.Within - j.Late)
}

// alone sees to an element that found no partner.
func (j *joining[A, B]) alone(ctx context.Context, e item[Joined[A, B]], pairs *shared) {
	if !j.Outer {
		j.place.skipped.Add(1)
		return
	}
	pairs.add()
	e.from = pairs
	j.pass(ctx, e)
}
