package echo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// family is a subscription to all topics that match a pattern, also those that
// come to be while it is open: one subscription for each, whose messages go
// through it. Its tokens are its own, as those of two topics may be equal.
//
// A goroutine for each topic receives while Receive is asked, and holds what
// came until that takes it, or for a moment: then it gives it back, so that
// members of the group that have time get it.
type family struct {
	bus     *Bus
	pattern string
	opts    transport.Options
	lister  transport.Lister
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	work    sync.WaitGroup
	came    chan struct{} // holds a token when there is something to take

	mu      sync.Mutex // guards the rest
	closed  bool
	members map[string]*kin
	ready   []*kin // with messages to take, longest first
	asking  int    // calls of Receive under way
	asked   chan struct{}
	losses  []*LostError
	token   uint64
	held    map[uint64]holding
	lease   time.Duration
}

// kin is the subscription to one topic.
type kin struct {
	f     *family
	topic string
	sub   transport.Subscription
	batch []transport.Message // to be taken
	taken chan struct{}       // closed when batch is
}

// holding is a delivery in the hands of the consumer.
type holding struct {
	of *kin
	r  transport.Receipt // its own
}

const (
	kinBatch = 32          // messages of one topic that are held for the taking
	kinHold  = time.Second // for so long at most
	lookFor  = time.Second // new topics are looked for so often
)

var (
	_ transport.Acker    = (*family)(nil)
	_ transport.Nacker   = (*family)(nil)
	_ transport.Releaser = (*family)(nil)
	_ transport.Extender = (*family)(nil)
)

// subscribeFamily subscribes to all topics that match a pattern.
func subscribeFamily(ctx context.Context, b *Bus, pattern string, opts transport.Options) (*family, error) {
	lister, ok := transport.As[transport.Lister](b.transport)
	if !ok {
		return nil, fmt.Errorf("pattern %s: the transport cannot tell its topics: %w", pattern, errors.ErrUnsupported)
	}
	if from := opts.Start.From; from == transport.AfterID || from == transport.AfterPosition {
		return nil, fmt.Errorf("pattern %s: FromID names a message of one topic", pattern)
	}
	f := &family{
		bus: b, pattern: pattern, opts: opts, lister: lister, came: make(chan struct{}, 1),
		members: make(map[string]*kin), held: make(map[uint64]holding), asked: make(chan struct{}),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	if err := f.look(ctx); err != nil {
		f.Close()
		return nil, err
	}
	if opts.Start.From != transport.AtTime { // topics that are not there yet are new from their first message on
		f.opts.Start = transport.Start{From: transport.Oldest}
	}
	f.work.Go(f.watch)
	return f, nil
}

// watch looks for new topics from time to time.
func (f *family) watch() {
	tick := time.NewTicker(lookFor)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			return
		}
		if err := f.look(f.ctx); err != nil && f.ctx.Err() == nil {
			f.bus.cfg.logger.Warn("echo: looking for new topics failed, trying again", "pattern", f.pattern, "error", err)
		}
	}
}

// look subscribes to the topics that match and are not there yet.
func (f *family) look(ctx context.Context) error {
	topics, err := f.lister.Topics(ctx, f.pattern)
	if err != nil {
		return err
	}
	var errs error
	for _, topic := range topics {
		f.mu.Lock()
		_, known := f.members[topic]
		f.mu.Unlock()
		if known {
			continue
		}
		sub, err := f.bus.transport.Subscribe(ctx, topic, f.opts)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("topic %s: %w", topic, err))
			continue
		}
		k := &kin{f: f, topic: topic, sub: sub}
		f.mu.Lock()
		if f.closed {
			f.mu.Unlock()
			sub.Close()
			return ErrClosed
		}
		f.members[topic] = k
		if e, ok := transport.As[transport.Extender](sub); ok {
			f.lease = e.Lease()
		}
		f.work.Go(k.receive)
		f.mu.Unlock()
	}
	return errs
}

// receive receives the messages of one topic, and holds them for the taking.
func (k *kin) receive() {
	f := k.f
	buf := make([]transport.Message, kinBatch)
	for f.demand() {
		n, err := k.sub.Receive(f.ctx, buf)
		if lost, ok := errors.AsType[*LostError](err); ok {
			f.mu.Lock()
			f.losses = append(f.losses, lost)
			f.mu.Unlock()
			f.wake()
			continue
		}
		if err != nil {
			k.fail(err)
			return
		}
		k.offer(buf[:n])
	}
}

// fail forgets a topic whose subscription ended, so that it is opened again.
func (k *kin) fail(err error) {
	f := k.f
	if f.ctx.Err() != nil {
		return
	}
	f.bus.cfg.logger.Error("echo: a subscription of a pattern ended, subscribing again", "pattern", f.pattern, "topic", k.topic, "group", f.opts.Group, "error", err)
	k.sub.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, k.topic)
	for token, h := range f.held { // which went back
		if h.of == k {
			delete(f.held, token)
		}
	}
}

// demand waits until somebody asks for messages, and reports whether that will be.
func (f *family) demand() bool {
	for {
		f.mu.Lock()
		if f.closed || f.asking > 0 {
			defer f.mu.Unlock()
			return !f.closed
		}
		asked := f.asked
		f.mu.Unlock()
		select {
		case <-asked:
		case <-f.ctx.Done():
			return false
		}
	}
}

// offer holds messages until all are taken, or gives back those that are not in time.
func (k *kin) offer(msgs []transport.Message) {
	f := k.f
	f.mu.Lock()
	k.batch, k.taken = msgs, make(chan struct{})
	taken := k.taken
	f.ready = append(f.ready, k)
	hold := kinHold
	if f.lease > 0 {
		hold = min(hold, f.lease/4)
	}
	f.mu.Unlock()
	f.wake()
	t := time.NewTimer(hold)
	defer t.Stop()
	select {
	case <-taken:
		return
	case <-t.C:
	case <-f.ctx.Done():
	}
	f.mu.Lock()
	rest := k.batch
	k.batch = nil
	for i, o := range f.ready {
		if o == k {
			f.ready = append(f.ready[:i], f.ready[i+1:]...)
			break
		}
	}
	f.mu.Unlock()
	k.release(rest)
}

// release gives back messages that nobody took.
func (k *kin) release(msgs []transport.Message) {
	if len(msgs) == 0 {
		return
	}
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	var err error
	if r, ok := transport.As[transport.Releaser](k.sub); ok {
		err = r.Release(k.f.bus.settling, rs)
	} else if n, ok := transport.As[transport.Nacker](k.sub); ok {
		err = n.Nack(k.f.bus.settling, rs, 0)
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		k.f.bus.cfg.logger.Warn("echo: giving back failed, messages will come again when their leases end", "topic", k.topic, "group", k.f.opts.Group, "error", err)
	}
}

func (f *family) wake() {
	select {
	case f.came <- struct{}{}:
	default:
	}
}

// Receive implements [transport.Subscription].
func (f *family) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	f.ask(1)
	defer f.ask(-1)
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if n, err := f.take(dst); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-f.came:
		case <-ctx.Done():
		case <-f.ctx.Done():
			return 0, ErrClosed
		}
	}
}

// ask notes that somebody asks for messages, or does no more.
func (f *family) ask(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asking += n; n > 0 {
		close(f.asked)
		f.asked = make(chan struct{})
	}
}

// take takes what topics hold, the longest held first.
func (f *family) take(dst []transport.Message) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, ErrClosed
	}
	if len(f.losses) > 0 {
		lost := f.losses[0]
		f.losses = f.losses[1:]
		return 0, lost
	}
	for n < len(dst) && len(f.ready) > 0 && (f.opts.MaxPending == 0 || len(f.held) < f.opts.MaxPending) {
		k := f.ready[0]
		m := &dst[n]
		*m = k.batch[0]
		f.token++
		f.held[f.token] = holding{k, m.Receipt()}
		m.Token = f.token
		n++
		if k.batch = k.batch[1:]; len(k.batch) == 0 {
			f.ready = f.ready[1:]
			close(k.taken)
		}
	}
	return n, nil
}

// topicOf returns the topic of a message that is held.
func (f *family) topicOf(m *transport.Message) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h, ok := f.held[m.Token]; ok {
		return h.of.topic
	}
	return f.pattern
}

// settle does something to deliveries, topic by topic. What is done is held no
// more, unless keep.
func (f *family) settle(rs []transport.Receipt, keep bool, do func(sub transport.Subscription, rs []transport.Receipt) error) error {
	byKin := map[*kin][]transport.Receipt{}
	back := map[holding]transport.Receipt{} // ours, by theirs
	var lost []transport.Receipt
	f.mu.Lock()
	for _, r := range rs {
		h, ok := f.held[r.Token]
		if !ok {
			lost = append(lost, r)
			continue
		}
		byKin[h.of] = append(byKin[h.of], h.r)
		back[h] = r
	}
	f.mu.Unlock()
	var errs error
	for k, theirs := range byKin {
		err := do(k.sub, theirs)
		late, _ := errors.AsType[*transport.LeaseError](err)
		if err != nil && late == nil {
			errs = errors.Join(errs, fmt.Errorf("topic %s: %w", k.topic, err))
			continue
		}
		f.mu.Lock()
		for _, r := range theirs {
			own := back[holding{k, r}]
			gone := late != nil && late.Has(r)
			if gone {
				lost = append(lost, own)
			}
			if gone || !keep {
				delete(f.held, own.Token)
			}
		}
		f.mu.Unlock()
	}
	f.wake() // there may be room again
	if errs == nil && lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return errs
}

// Ack implements [transport.Acker].
func (f *family) Ack(ctx context.Context, rs []transport.Receipt) error {
	return f.settle(rs, false, func(sub transport.Subscription, rs []transport.Receipt) error {
		a, ok := transport.As[transport.Acker](sub)
		if !ok {
			return errors.ErrUnsupported
		}
		return a.Ack(ctx, rs)
	})
}

// Nack implements [transport.Nacker].
func (f *family) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return f.settle(rs, false, func(sub transport.Subscription, rs []transport.Receipt) error {
		n, ok := transport.As[transport.Nacker](sub)
		if !ok {
			return errors.ErrUnsupported
		}
		return n.Nack(ctx, rs, delay)
	})
}

// Release implements [transport.Releaser].
func (f *family) Release(ctx context.Context, rs []transport.Receipt) error {
	return f.settle(rs, false, func(sub transport.Subscription, rs []transport.Receipt) error {
		if r, ok := transport.As[transport.Releaser](sub); ok {
			return r.Release(ctx, rs)
		}
		if n, ok := transport.As[transport.Nacker](sub); ok {
			return n.Nack(ctx, rs, 0)
		}
		return errors.ErrUnsupported
	})
}

// Lease implements [transport.Extender].
func (f *family) Lease() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease > 0 {
		return f.lease
	}
	return max(f.opts.Lease, time.Second) // before there is a topic
}

// Extend implements [transport.Extender].
func (f *family) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	return f.settle(rs, true, func(sub transport.Subscription, rs []transport.Receipt) error {
		if e, ok := transport.As[transport.Extender](sub); ok {
			return e.Extend(ctx, rs, d)
		}
		return nil // it has no leases
	})
}

// Move implements [transport.Mover].
func (f *family) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	return f.settle([]transport.Receipt{r}, false, func(sub transport.Subscription, rs []transport.Receipt) error {
		mover, ok := transport.As[transport.Mover](sub)
		if !ok {
			return errors.ErrUnsupported
		}
		return mover.Move(ctx, topic, m, rs[0])
	})
}

// Close implements [transport.Subscription].
func (f *family) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.work.Wait() // what was held for the taking went back
	var err error
	for _, k := range f.members {
		err = errors.Join(err, k.sub.Close())
	}
	return err
}
