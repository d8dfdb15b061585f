package echo

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// run is a use of the consumer that calls a handler for each message.
//
// Its lanes are the goroutines that call the handler. With a concurrency of 1
// the one lane receives for itself. Otherwise a dispatcher receives: it hands
// messages with a key to the lane that the key hashes to, others to whichever
// lane is free. Goroutines begin with the first message.
type run struct {
	*use
	handling
	lanes sync.WaitGroup
	err   error // why receiving ended; the receiver's

	shared chan item // messages without key
	busy   atomic.Int32
	room   chan struct{} // holds a token when busy went down
}

// item is a message on its way to a lane.
type item struct {
	f *fetch
	i int
}

// lane calls the handler for one message after another.
type lane struct {
	r      *run
	ctx    context.Context // the handler's
	cancel context.CancelCauseFunc
	queue  chan item // messages with key; nil when the lane receives for itself

	item     // the message under way
	rs       []transport.Receipt
	err      error // what its handler returned
	returned bool  // it returned at all
	called   bool  // err is to be dealt with
}

// handling is what run does with messages.
type handling struct {
	handle func(ctx context.Context, f *fetch, i int) error
	begun  func(*fetch) // called before one lane handles all of a fetch
	ended  func()       // called after it
}

// run calls a handler for each message until ctx ends, the consumer is
// stopped, or receiving fails for good, which is the error it returns. What it
// needs for handling is made when the first message has come, so that an idle
// consumer is small.
func (c *consumer) run(ctx context.Context, make func() handling) error {
	u, err := c.begin(ctx, true)
	if errors.Is(err, ErrClosed) {
		return nil // as if it had been closed a moment later
	}
	if err != nil {
		return err
	}
	f, err := u.next()
	if err == nil {
		u.prepare()
		err = u.work(f, make())
	}
	if err != nil && !u.closing(err) {
		u.end()
		return errors.Join(err, c.close())
	}
	u.end()
	return c.close()
}

// work handles messages, f first, and returns why receiving ended.
func (u *use) work(f *fetch, h handling) error {
	r := &run{use: u, handling: h}
	if u.c.cfg.concurrency == 1 {
		l := r.newLane(nil)
		l.item = item{f, -1}
		r.lanes.Go(l.receiving)
	} else {
		r.dispatch(f)
	}
	r.lanes.Wait()
	return r.err
}

// next fetches messages and deals with losses.
func (u *use) next() (*fetch, error) {
	for {
		f, err := u.c.receive(u.receive, u.c.cfg.MaxPending)
		e, ok := errors.AsType[*LostError](err)
		if !ok {
			return f, err
		}
		if err := u.c.report(context.WithoutCancel(u.receive), e); err != nil {
			return nil, err
		}
	}
}

// report tells of a loss, or of a message that cannot be decoded.
func (c *consumer) report(ctx context.Context, err error) error {
	if c.cfg.onError != nil {
		return c.cfg.onError(ctx, err)
	}
	c.bus.cfg.logger.Error("echo: "+reportText(err), "topic", c.topic, "group", c.cfg.Group, "error", err)
	return nil
}

func reportText(err error) string {
	if _, ok := errors.AsType[*LostError](err); ok {
		return "messages lost"
	}
	return "message set aside"
}

func (r *run) newLane(queue chan item) *lane {
	l := &lane{r: r, queue: queue}
	l.renew()
	return l
}

// renew gives the lane a context that is not cancelled.
func (l *lane) renew() { l.ctx, l.cancel = context.WithCancelCause(l.r.handler) }

// receiving is the goroutine of a lane that receives for itself. A handler
// that calls Goexit ends it; another one then goes on where it was.
func (l *lane) receiving() {
	if l.called {
		l.conclude()
	}
	for {
		if l.i < 0 {
			l.f.lane = l
			l.r.begun(l.f)
		}
		for l.i++; l.i < len(l.f.msgs); l.i++ {
			l.do()
		}
		l.r.ended()
		l.r.c.adapt(l.f)
		l.rs = l.r.c.retire(l.f, l.rs)
		f, err := l.r.next()
		if err != nil {
			l.r.err = err
			return
		}
		l.item = item{f, -1}
	}
}

// working is the goroutine of a lane that a dispatcher feeds.
func (l *lane) working() {
	if l.called {
		l.concludeItem()
	}
	shared, queue := l.r.shared, l.queue
	for shared != nil || queue != nil {
		var ok bool
		select {
		case l.item, ok = <-queue:
			if !ok {
				queue = nil
				continue
			}
		case l.item, ok = <-shared:
			if !ok {
				shared = nil
				continue
			}
		}
		l.f.slots[l.i].lane = l
		l.do()
		l.passed()
	}
}

func (l *lane) concludeItem() {
	l.conclude()
	l.passed()
}

// passed notes that an item is done with.
func (l *lane) passed() {
	r := l.r
	if l.f.left.Add(-1) == 0 {
		l.rs = l.r.c.retire(l.f, l.rs)
	}
	r.busy.Add(-1)
	select {
	case r.room <- struct{}{}:
	default:
	}
}

// dispatch feeds the lanes, f first, until receiving ends.
func (r *run) dispatch(f *fetch) {
	c, n := r.c, r.c.cfg.concurrency
	r.shared = make(chan item, c.cfg.MaxPending)
	r.room = make(chan struct{}, 1)
	queues := make([]chan item, n)
	for i := range queues {
		queues[i] = make(chan item, c.cfg.MaxPending)
		r.lanes.Go(r.newLane(queues[i]).working)
	}
	defer func() {
		close(r.shared)
		for _, q := range queues {
			close(q)
		}
	}()
	seed := maphash.MakeSeed()
	c.window = max(c.window, n)
	for f != nil {
		r.busy.Add(int32(len(f.msgs)))
		for i := range f.msgs {
			if key := f.msgs[i].Key; key != "" {
				queues[maphash.String(seed, key)%uint64(n)] <- item{f, i}
			} else {
				r.shared <- item{f, i}
			}
		}
		r.awaitRoom()
		c.adapt(f)
		c.window = max(c.window, n)
		f, r.err = r.next()
	}
}

// awaitRoom waits until the lanes hold less than what they can use at once.
func (r *run) awaitRoom() {
	for int(r.busy.Load()) >= max(r.c.window, 2*r.c.cfg.concurrency) {
		select {
		case <-r.room:
		case <-r.receive.Done():
			return
		}
	}
}

// do takes the message under way to its outcome.
func (l *lane) do() {
	if !l.f.move(l.i, buffered, running) {
		return // released, or its lease is lost
	}
	l.call()
	if l.err != nil || l.r.c.draining.Load() || !l.f.move(l.i, running, handled) {
		l.conclude()
	}
	l.called = false
}

// call calls the handler. If that panics or ends the goroutine, err says so;
// in the latter case another goroutine takes over the lane.
func (l *lane) call() {
	l.returned = false
	defer func() {
		l.called = true
		if l.returned {
			return
		}
		value := recover()
		l.err = &PanicError{Value: value, Stack: debug.Stack()}
		if value == nil { // Goexit: this goroutine is ending
			if l.queue != nil {
				l.r.lanes.Go(l.working)
			} else {
				l.r.lanes.Go(l.receiving)
			}
		}
	}()
	l.err = l.r.handle(l.ctx, l.f, l.i)
	l.returned = true
}

// conclude settles the message under way by what its handler returned. A
// message with a key is tried again in its lane, so that it keeps its place.
func (l *lane) conclude() {
	c := l.r.c
	m := &l.f.msgs[l.i]
	for l.err != nil && l.running() {
		wait := backoff(m.Attempt, c.cfg.backoffMin, c.cfg.backoffMax)
		c.bus.cfg.logger.Warn("echo: handler failed, message will come again", "topic", c.topic, "group", c.cfg.Group,
			"id", m.ID, "attempt", m.Attempt, "after", wait, "error", l.err)
		if m.Key == "" || !l.pause(wait) {
			l.giveBack(wait)
			break
		}
		m.Attempt++
		l.call()
	}
	l.called = false
	if c.draining.Load() {
		c.completed.Add(1)
	}
	if l.err == nil && l.f.move(l.i, running, handled) {
		return
	}
	for s := l.f.state(l.i); s == losing || s == settling; s = l.f.state(l.i) {
		runtime.Gosched() // the keeper is cancelling our context, or a goroutine the handler left settles
	}
	if l.err == nil {
		l.f.move(l.i, running, handled)
	}
	l.err = nil
	if l.ctx.Err() != nil && l.r.handler.Err() == nil {
		l.renew()
	}
}

func (l *lane) running() bool { return l.f.state(l.i) == running }

// pause waits for a back-off and reports whether the lane shall go on with its message.
func (l *lane) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return l.running()
	case <-l.ctx.Done(): // the lease is lost
	case <-l.r.receive.Done(): // no more waiting in the way of a shutdown
	}
	return false
}

// giveBack gives the message under way to its group again.
func (l *lane) giveBack(delay time.Duration) {
	c := l.r.c
	if !l.f.move(l.i, running, gone) {
		return
	}
	err := c.nacker.Nack(c.bus.settling, []transport.Receipt{l.f.msgs[l.i].Receipt()}, delay)
	if err != nil {
		c.bus.cfg.logger.Warn("echo: giving back failed, message will come again when its lease ends", "topic", c.topic, "group", c.cfg.Group,
			"id", l.f.msgs[l.i].ID, "error", err)
	} else if c.draining.Load() {
		c.givenBack.Add(1)
	}
}

// Handle pairs a topic with its handler, for [Bus.Run].
func Handle[M any](topic *Topic[M], h Handler[M], opts ...SubscribeOption) Route {
	return Route{func(ctx context.Context, b *Bus) (func(context.Context) error, func() error, error) {
		if h == nil {
			return nil, nil, fmt.Errorf("echo: handle %s: the handler is nil", topic.Name())
		}
		c, err := Subscribe(ctx, b, topic, opts...)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context) error { return c.Run(ctx, h) }, c.Close, nil
	}}
}

// Route is a topic and its handler, made by [Handle].
type Route struct {
	subscribe func(context.Context, *Bus) (run func(context.Context) error, close func() error, err error)
}

// Run subscribes to the topics of all routes and handles their messages as
// [Consumer.Run] does, so that one program serves several types. It starts when
// all subscriptions are open. When one fails the others are stopped, and Run
// returns the errors.
func (b *Bus) Run(ctx context.Context, routes ...Route) error {
	if len(routes) == 0 {
		return errors.New("echo: run: no routes")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runs := make([]func(context.Context) error, len(routes))
	for i, route := range routes {
		run, stop, err := route.subscribe(ctx, b)
		if err != nil {
			return err
		}
		defer stop()
		runs[i] = run
	}
	errs := make([]error, len(runs))
	var wg sync.WaitGroup
	for i, run := range runs {
		wg.Go(func() {
			defer cancel()
			errs[i] = run(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
