package echo

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"
	"sync/atomic"
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

	shared chan item     // messages without key
	busy   atomic.Int32  // messages that lanes were given and that are not done with, nor in lines
	room   chan struct{} // holds a token when busy went down
}

// item is a message on its way to a lane.
type item struct {
	f *fetch
	i int
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
	f, err := u.next(u.receive)
	if err == nil {
		u.prepare()
		err = u.work(f, make())
	}
	fatal := err != nil && !u.closing(err)
	u.awaitLater()
	u.end()
	if fatal {
		return errors.Join(err, c.close())
	}
	return c.close()
}

// work handles messages, f first, and returns why receiving ended.
func (u *use) work(f *fetch, h handling) error {
	r := &run{use: u, handling: h}
	if u.c.cfg.concurrency == 1 {
		l := r.newLane(nil)
		l.begin(f)
		r.lanes.Go(l.work)
	} else {
		r.dispatch(f)
	}
	r.lanes.Wait()
	return r.err
}

// next fetches messages and deals with losses.
func (u *use) next(ctx context.Context) (*fetch, error) {
	for {
		f, err := u.c.receive(ctx, u.c.cfg.MaxPending)
		e, ok := errors.AsType[*LostError](err)
		if !ok {
			return f, err
		}
		if err := u.c.report(context.WithoutCancel(u.receive), e); err != nil {
			return nil, err
		}
	}
}

// report tells of a loss.
func (c *consumer) report(ctx context.Context, err error) (end error) {
	if c.cfg.onError != nil {
		defer func() {
			if p := recover(); p != nil {
				end = &PanicError{Value: p, Stack: debug.Stack()}
			}
		}()
		return c.cfg.onError(ctx, err)
	}
	c.bus.cfg.logger.Error("echo: messages lost", "topic", c.topic, "group", c.cfg.Group, "error", err)
	return nil
}

// reasonOf is why a message that could not be decoded is a dead letter.
func reasonOf(err error) string {
	if _, ok := errors.AsType[*upcastError](err); ok {
		return ReasonUpcast
	}
	return ReasonUndecodable
}

// undecoded is the outcome of a message that cannot be decoded.
func (c *consumer) undecoded(ctx context.Context, err error) error {
	if c.cfg.onError != nil {
		if again := c.cfg.onError(ctx, err); again != nil {
			return again
		}
	}
	return &rejection{reasonOf(err), err}
}

// dispatch feeds the lanes, f first, until receiving ends.
func (r *run) dispatch(f *fetch) {
	c, n := r.c, r.c.cfg.concurrency
	r.shared = make(chan item, c.cfg.MaxPending)
	r.room = make(chan struct{}, 1)
	queues := make([]*queue, n)
	for i := range queues {
		queues[i] = &queue{came: make(chan struct{}, 1)}
		r.lanes.Go(r.newLane(queues[i]).work)
	}
	defer func() {
		close(r.shared)
		for _, q := range queues {
			q.close()
		}
	}()
	seed := maphash.MakeSeed()
	c.window = max(c.window, n)
	for f != nil {
		r.busy.Add(int32(len(f.msgs)))
		for i := range f.msgs {
			if key := f.msgs[i].Key; key != "" {
				queues[maphash.String(seed, key)%uint64(n)].put(item{f, i})
			} else {
				r.shared <- item{f, i}
			}
		}
		r.awaitRoom()
		c.adapt(f)
		c.window = max(c.window, n)
		f, r.err = r.next(r.receive)
	}
}

// queue is what a dispatcher gives to one lane, which is bounded by what it
// gives to all.
type queue struct {
	came chan struct{} // holds a token when something came

	mu     sync.Mutex // guards the rest
	items  []item
	closed bool
}

func (q *queue) put(it item) {
	q.mu.Lock()
	q.items = append(q.items, it)
	q.mu.Unlock()
	q.wake()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.came <- struct{}{}:
	default:
	}
}

// take takes what is there, and reports whether nothing more will come. spare is
// memory to use.
func (q *queue) take(spare []item) (items []item, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	items, q.items = q.items, spare[:0]
	return items, q.closed
}

// unload notes that the lanes have one message less to handle.
func (r *run) unload() {
	r.busy.Add(-1)
	select {
	case r.room <- struct{}{}:
	default:
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
