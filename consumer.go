package echo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// consumer is what a Consumer is without its type: a subscription, the
// messages fetched from it, and the keeper that looks after them.
//
// While fetches are active, the keeper, a timer, acknowledges from time to time
// what was handled, extends the leases of what waits or runs, and learns which
// are lost.
type consumer struct {
	bus      *Bus
	topic    string
	family   *family // of topics, if topic is a pattern
	letters  bool    // the topic is one of dead letters
	cfg      *subscribeConfig
	sub      transport.Subscription
	acker    transport.Acker
	nacker   transport.Nacker
	extender transport.Extender // nil: messages have no lease
	mover    transport.Mover    // nil: there are no dead letters, or those of a family
	memory   *memory            // of WithDedup, nil without it

	using     atomic.Bool                   // Run, Messages or Batches is under way
	stopping  atomic.Bool                   // nothing more is received
	asleep    atomic.Bool                   // the keeper takes its time
	paused    atomic.Pointer[chan struct{}] // closed by resume; nil: not paused
	pauses    atomic.Uint32                 // how often it was
	releasing atomic.Int32                  // releases under way
	returning sync.RWMutex                  // read-held while messages that were not begun go back, before others are begun or received
	window    int                           // messages to fetch at once; the receiver's
	inHand    atomic.Int32                  // unsettled messages that a loop has yielded
	acking    sync.Mutex                    // held while an ackSoon is under way; guards spareAck
	spareAck  []transport.Receipt
	settles   sync.Mutex // held while messages are acknowledged or go back that no lane sees to

	count counts

	draining                               atomic.Bool // counting for the account
	completed, acked, givenBack, abandoned atomic.Int64

	mu     sync.Mutex // guards the rest
	active []*fetch   // with messages that the keeper looks after
	spare  []*fetch
	keeper *time.Timer
	pace   time.Duration // until the keeper's next turn
	use    *use          // the Run, Messages or Batches under way
	armed  bool          // the keeper will have a turn
	closed bool

	done      chan struct{} // of Done, nil if nobody asked
	later     int           // messages that handlers left to be settled
	allParted chan struct{} // closed when there are none of these, if somebody waits for it

	laterNames map[*slot]hash // of those, if the consumer has a memory: by what it knows them

	unlimited bool // the drain timeout does not apply
}

// use is one Run, or one loop over Messages or Batches.
type use struct {
	c       *consumer
	receive context.Context // ends when receiving shall stop
	halt    context.CancelFunc
	handler context.Context // ends when handlers shall give up
	cancel  context.CancelCauseFunc
	drain   *time.Timer
	done    chan struct{} // closed at the end, if somebody waits for it
	handles bool          // Run: what runs is kept and settled by its result
	over    bool
}

const (
	minPace   = 5 * time.Millisecond // handled messages wait so long for their ack at most
	fastFetch = 2 * time.Millisecond // a fetch done sooner may be twice as large
	slowFetch = 20 * time.Millisecond
	spareMost = 4 // fetches that are kept to be used again
)

var start = time.Now()

// clock is monotonic time.
func clock() time.Duration { return time.Since(start) }

func newConsumer(ctx context.Context, b *Bus, topic string, cfg *subscribeConfig) (*consumer, error) {
	c := &consumer{bus: b, topic: topic, cfg: cfg, window: 1}
	if cfg.dedup > 0 {
		c.memory = newMemory(cfg.dedup)
	}
	if err := b.add(c); err != nil {
		return nil, err
	}
	if err := c.open(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// open subscribes, and finds out what the subscription can.
func (c *consumer) open(ctx context.Context) error {
	_, c.letters = transport.CutDead(c.topic)
	switch {
	case c.letters && c.cfg.Group == redriveGroup:
		return fmt.Errorf("WithGroup(%q): of the dead letters, this group is Redrive's", redriveGroup)
	case c.letters && c.cfg.retry.Attempts > 0:
		return errors.New("WithRetry: dead letters have no dead letters, so Attempts has no meaning for them")
	case c.letters && c.cfg.deadExpired:
		return errors.New("WithDeadExpired: dead letters have no dead letters, and do not expire")
	case c.cfg.Group == "" && c.cfg.deadExpired:
		return errors.New("WithDeadExpired: only a group has dead letters, and WithGroup is missing")
	}
	sub, err := c.subscribe(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.sub = sub
	closed := c.closed
	c.mu.Unlock()
	if closed { // with the bus, before there was anything to close
		sub.Close()
		return ErrClosed
	}
	var ok bool
	if c.acker, ok = transport.As[transport.Acker](sub); ok {
		c.nacker, ok = transport.As[transport.Nacker](sub)
	}
	if !ok {
		return fmt.Errorf("the transport cannot acknowledge and give back messages: %w", errors.ErrUnsupported)
	}
	if c.extender, ok = transport.As[transport.Extender](sub); !ok && c.cfg.Lease > 0 {
		return fmt.Errorf("WithLease: the transport has no leases: %w", errors.ErrUnsupported)
	}
	return nil
}

func (c *consumer) subscribe(ctx context.Context) (transport.Subscription, error) {
	if transport.IsPattern(c.topic) {
		if from := c.cfg.Start.From; from == transport.AfterID || from == transport.AfterPosition {
			return nil, fmt.Errorf("pattern %s: FromID names a message of one topic", c.topic)
		}
		f, err := subscribeFamily(ctx, c.bus, c.topic, c.cfg.Options, c.moverFor)
		if err != nil {
			return nil, err
		}
		c.family = f
		return f, nil
	}
	sub, err := c.bus.transport.Subscribe(ctx, c.topic, c.cfg.Options)
	if err != nil {
		return nil, err
	}
	if c.mover, err = c.moverFor(c.topic, sub); err != nil {
		sub.Close()
		return nil, err
	}
	return sub, nil
}

// moverFor returns what puts messages of a topic among its dead letters, nil if
// it has none. That is an error if they are asked for.
func (c *consumer) moverFor(topic string, sub transport.Subscription) (transport.Mover, error) {
	if c.letters || c.cfg.Group == "" { // what a broadcast gives up is given up here alone
		return nil, nil
	}
	mover, ok := transport.As[transport.Mover](sub)
	err := transport.CheckName("topic", transport.DeadTopic(topic))
	asked := ""
	switch {
	case c.cfg.deadExpired:
		asked = "WithDeadExpired"
	case c.cfg.retry.Attempts > 0:
		asked = "Attempts of WithRetry"
	}
	switch {
	case ok && err == nil:
		return mover, nil
	case asked == "":
		return nil, nil
	case !ok:
		return nil, fmt.Errorf("%s: the transport has no dead letters: %w", asked, errors.ErrUnsupported)
	}
	return nil, fmt.Errorf("%s: of the dead letters: %w", asked, err)
}

// home returns the topic of a message, before it is settled, and what puts it
// among the dead letters of that, nil if it has none.
func (c *consumer) home(m *transport.Message) (topic string, mover transport.Mover) {
	if c.family == nil {
		return c.topic, c.mover
	}
	topic, dead := c.family.topicOf(m)
	if !dead {
		return topic, nil
	}
	return topic, c.family
}

// topicOf returns the topic of a message, before it is settled.
func (c *consumer) topicOf(m *transport.Message) string {
	topic, _ := c.home(m)
	return topic
}

// lease is how long a message may stay unsettled; 0: for ever.
func (c *consumer) lease() time.Duration {
	if c.extender == nil {
		return 0
	}
	return c.extender.Lease()
}

// begin starts a use of the consumer, which has one at a time.
func (c *consumer) begin(ctx context.Context, handles bool) (*use, error) {
	if c.stopping.Load() {
		return nil, ErrClosed
	}
	if !c.using.CompareAndSwap(false, true) {
		return nil, errors.New("the consumer is in use by another Run, Messages or Batches")
	}
	u := &use{c: c, handles: handles}
	u.receive, u.halt = context.WithCancel(ctx)
	c.mu.Lock()
	c.use = u
	stopping := c.stopping.Load() // by a stop that did not see u
	c.mu.Unlock()
	if stopping {
		u.halt()
	}
	return u, nil
}

// prepare makes what handlers need. It waits for the first message, so that an
// idle consumer is small.
func (u *use) prepare() {
	u.c.mu.Lock()
	u.handler, u.cancel = context.WithCancelCause(context.WithoutCancel(u.receive))
	u.c.mu.Unlock()
	context.AfterFunc(u.receive, func() {
		u.limit()
		u.c.release()
	})
}

// end ends a use: what was fetched and not started goes back.
func (u *use) end() {
	c := u.c
	u.halt()
	c.release()
	c.flush()
	c.acking.Lock() // when the last one is done
	c.spareAck = nil
	c.acking.Unlock()
	c.mu.Lock()
	c.use, c.active = nil, nil
	if u.drain != nil {
		u.drain.Stop()
	}
	if u.done != nil {
		close(u.done)
	}
	u.over = true
	c.mu.Unlock()
	u.giveUp(nil)
	c.using.Store(false)
}

// stop makes the consumer receive no more. What it had fetched and not started
// goes back; handlers under way go on.
func (c *consumer) stop() {
	if c.stopping.Swap(true) {
		return
	}
	c.draining.Store(true)
	c.tellDone()
	c.mu.Lock()
	u := c.use
	c.mu.Unlock()
	if u != nil {
		u.halt()
		u.limit()
	}
	c.release()
}

// limit gives the handlers under way the drain timeout to finish.
func (u *use) limit() {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	if !u.c.unlimited && u.drain == nil && u.c.use == u {
		u.drain = time.AfterFunc(u.c.cfg.drain, func() {
			u.giveUp(fmt.Errorf("not finished %v after the consumer was stopped", u.c.cfg.drain))
		})
	}
}

// unlimit takes the limit away.
func (c *consumer) unlimit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unlimited = true
	if c.use != nil && c.use.drain != nil {
		c.use.drain.Stop()
	}
}

// giveUp cancels the handlers' contexts.
func (u *use) giveUp(cause error) {
	u.c.mu.Lock()
	cancel := u.cancel
	u.c.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// finished returns a channel that is closed when the use is over.
func (u *use) finished() <-chan struct{} {
	u.c.mu.Lock()
	defer u.c.mu.Unlock()
	if u.done == nil {
		u.done = make(chan struct{})
		if u.over {
			close(u.done)
		}
	}
	return u.done
}

// finish waits until the stopped consumer's use is over or ctx ends; then it
// gives up on the handlers, and reports how many there are.
func (c *consumer) finish(ctx context.Context) (running int) {
	c.mu.Lock()
	u := c.use
	c.mu.Unlock()
	if u != nil {
		done := u.finished()
		select {
		case <-done:
		case <-ctx.Done():
			if running = max(c.running(), int(c.inHand.Load())); running > 0 {
				break
			}
			select { // which takes a moment, or hangs
			case <-done:
			case <-c.bus.settling.Done():
			}
		}
		select {
		case <-done:
			running = 0
		default:
			u.giveUp(ErrClosed)
			c.abandoned.Store(int64(running))
			return running
		}
	}
	c.abandoned.Store(int64(c.inHand.Load()))
	c.close()
	return 0
}

// running counts the handlers under way.
func (c *consumer) running() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.active {
		n += f.running()
	}
	return n
}

func (c *consumer) tally(a *Account) {
	a.Completed += int(c.completed.Load())
	a.Acknowledged += int(c.acked.Load())
	a.GivenBack += int(c.givenBack.Load())
	a.Abandoned += int(c.abandoned.Load())
}

// close ends the subscription.
func (c *consumer) close() error {
	c.stop()
	c.mu.Lock()
	closed, sub := c.closed, c.sub
	c.closed = true
	if c.keeper != nil {
		c.keeper.Stop()
	}
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.bus.remove(c)
	if sub == nil {
		return nil
	}
	c.settles.Lock() // what is being acknowledged or given back is not to go with the subscription
	defer c.settles.Unlock()
	return sub.Close()
}

// receive fetches the next messages. The keeper looks after them until they
// are retired.
func (c *consumer) receive(ctx context.Context, most int) (*fetch, error) {
	size := min(c.window, most)
	f := c.unused(size)
	pauses := c.pauses.Load()
	n, err := c.take(ctx, f.buf[:size])
	if err != nil {
		c.mu.Lock()
		c.spare = append(c.spare, f)
		c.mu.Unlock()
		return nil, err
	}
	f = c.compact(f, n)
	f.begin(n, clock(), c.byHand())
	c.mu.Lock()
	c.active = append(c.active, f)
	c.arm()
	c.mu.Unlock()
	if c.stopping.Load() || c.pauses.Load() != pauses {
		c.release()
	}
	return f, nil
}

// compact moves n messages into a fetch of their size, if they are few for the one
// they are in, and others are kept by their handlers: so may be these, and with
// them all of the fetch.
func (c *consumer) compact(f *fetch, n int) *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.later == 0 || 4*n > len(f.buf) {
		return f
	}
	small := newFetch(c, n)
	copy(small.buf, f.buf[:n])
	clear(f.buf[:n])
	if len(c.spare) < spareMost {
		c.spare = append(c.spare, f)
	}
	return small
}

// byHand reports whether a loop, and not Run, is under way.
func (c *consumer) byHand() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use != nil && !c.use.handles
}

// take receives messages. While the consumer is paused it waits, and then until
// what the pause gave back has gone: or others would come before that.
func (c *consumer) take(ctx context.Context, dst []transport.Message) (int, error) {
	for p := c.paused.Load(); p != nil; p = c.paused.Load() {
		select {
		case <-*p:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	c.awaitReturns()
	return c.sub.Receive(ctx, dst)
}

// beginReturns keeps lanes from beginning, and the receiver from receiving, what
// comes after what goes back until endReturns.
func (c *consumer) beginReturns() {
	c.releasing.Add(1)
	c.returning.RLock()
}

func (c *consumer) endReturns() {
	c.returning.RUnlock()
	c.releasing.Add(-1)
}

// awaitReturns waits until what goes back has gone.
func (c *consumer) awaitReturns() {
	c.returning.Lock()
	defer c.returning.Unlock()
}

// untake gives back what was received and not begun.
func (c *consumer) untake(msgs []transport.Message) {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	c.giveBack(rs)
}

// keptAt is when the leases of a fetch were last extended.
func (c *consumer) keptAt(f *fetch) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.kept
}

// pause stops receiving until resume. What was fetched and not begun goes back.
func (c *consumer) pause() {
	resumed := make(chan struct{})
	c.beginReturns() // a lane that sees the pause gives back a line, and must not begin what came after it
	if c.paused.CompareAndSwap(nil, &resumed) {
		c.pauses.Add(1)
		c.releaseAll()
	}
	c.endReturns()
	c.awaitReturns() // those of another pause, and lanes that did not see this one
}

func (c *consumer) resume() {
	if p := c.paused.Swap(nil); p != nil {
		close(*p)
	}
}

// unused returns a fetch with room for size messages.
func (c *consumer) unused(size int) *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.spare) > 0 {
		last := len(c.spare) - 1
		f := c.spare[last]
		c.spare = c.spare[:last]
		if len(f.buf) >= size {
			return f
		}
	}
	return newFetch(c, size)
}

// adapt chooses how much to fetch next from how long the last fetch took.
func (c *consumer) adapt(f *fetch) {
	switch took := clock() - f.since; {
	case took < fastFetch && len(f.msgs) >= c.window:
		c.window = min(2*c.window, c.cfg.MaxPending)
	case took > slowFetch:
		c.window = max(c.window/2, 1)
	}
}

// retire ends the keeper's care for a fetch whose messages are all concluded,
// acknowledges what was handled, and keeps the fetch for a later receive if
// nobody will look at it again. rs is memory to use.
func (c *consumer) retire(f *fetch, rs []transport.Receipt) []transport.Receipt {
	c.mu.Lock()
	i := slices.Index(c.active, f)
	reusable := false
	if f.parked = f.later > 0; f.parked { // the keeper goes on with it
		rs = f.receipts(rs[:0], handled)
	} else {
		if i >= 0 {
			c.active = slices.Delete(c.active, i, i+1)
		}
		rs, reusable = f.finished(rs[:0])
	}
	c.mu.Unlock()
	if len(rs) > 0 {
		rs = c.ackSoon(rs)
	}
	if i >= 0 && reusable {
		clear(f.msgs)
		c.mu.Lock()
		if len(c.spare) < spareMost {
			c.spare = append(c.spare, f)
		}
		c.mu.Unlock()
	}
	return rs
}

// has reports whether a message is in a state.
func (c *consumer) has(state uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.some(state)
}

// some is has. The caller holds mu.
func (c *consumer) some(state uint32) bool {
	for _, f := range c.active {
		for i := range f.msgs {
			if f.state(i) == state {
				return true
			}
		}
	}
	return false
}

// release gives back what was fetched and not started.
func (c *consumer) release() {
	if c.has(buffered) {
		c.beginReturns()
		defer c.endReturns()
		c.releaseAll()
	}
}

// releaseAll is release, between beginReturns and endReturns.
func (c *consumer) releaseAll() {
	c.settles.Lock()
	defer c.settles.Unlock()
	var rs []transport.Receipt
	c.mu.Lock()
	for _, f := range c.active {
		rs = f.receipts(rs, buffered)
	}
	c.mu.Unlock()
	c.giveBack(rs)
}

// giveBack gives back what nobody began to handle.
func (c *consumer) giveBack(rs []transport.Receipt) {
	if len(rs) == 0 {
		return
	}
	err := release(c.bus.settling, c.sub, rs)
	late := failed(len(rs), err)
	if err != nil {
		c.bus.cfg.logger.Warn("echo: giving back failed, messages will come again when their leases end", "topic", c.topic, "group", c.cfg.Group, "messages", late, "error", err)
	}
	if c.draining.Load() {
		c.givenBack.Add(int64(len(rs) - late))
	}
}

// closing reports whether err only says that receiving was stopped.
func (u *use) closing(err error) bool {
	return u.receive.Err() != nil || u.c.stopping.Load() && errors.Is(err, ErrClosed)
}
