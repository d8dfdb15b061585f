package echo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// family is a subscription to all topics that match a pattern, also those that
// come to be while it is open: a kin for each, whose messages go through it. Its
// tokens are its own, as those of two topics may be equal.
//
// What ends the subscription to one topic ends the family: only its user knows
// whether to go on without.
type family struct {
	bus      *Bus
	pattern  string
	opts     transport.Options
	lister   transport.Lister
	moverFor func(topic string, sub transport.Subscription) (transport.Mover, error)
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	settling context.Context        // what was not taken goes back until then, a moment later
	numbered atomic.Pointer[[]*kin] // by their numbers
	work     sync.WaitGroup
	came     chan struct{} // holds a token when there may be something to take

	mu     sync.Mutex // guards the rest
	closed bool
	kin    map[string]*kin // by topic
	ready  []*kin          // with messages to take: those that were passed by, then longest first
	owed   []*kin          // that were passed by and hold nothing, longest first
	turn   time.Duration   // until when the first one of these is waited for
	asking bool            // Receive is under way
	wanted int             // messages that the last one asks for
	asks   int             // how often one did
	asked  chan struct{}   // closed when the next one does
	losses []*LostError    // to be told
	err    error           // final
	token  uint64          // the last one, without the number of a kin
	held   map[uint64]holding
	bytes  int           // their size
	check  time.Duration // when to look whose lease has ended
	lease  time.Duration // the shortest, 0 before there is a topic
}

// holding is a delivery in the hands of the consumer.
type holding struct {
	of    *kin
	r     transport.Receipt // its own
	size  int
	until time.Duration // the end of its lease: from then on it takes no room
}

// lookFor is how often new topics are looked for, and how long one that is found
// may take to subscribe to.
const lookFor = time.Second

// A token has the number of its kin above these bits.
const kinShift = 40

// settleFor is how long what was not taken has to go back after Close.
const settleFor = 100 * time.Millisecond

var (
	_ transport.Acker    = (*family)(nil)
	_ transport.Nacker   = (*family)(nil)
	_ transport.Releaser = (*family)(nil)
	_ transport.Extender = (*family)(nil)
)

// subscribeFamily subscribes to all topics that match a pattern. moverFor says
// whether the dead letters of a topic have a place, or why the topic cannot be
// subscribed to.
func subscribeFamily(ctx context.Context, b *Bus, pattern string, opts transport.Options,
	moverFor func(topic string, sub transport.Subscription) (transport.Mover, error)) (*family, error) {
	lister, ok := transport.As[transport.Lister](b.transport)
	if !ok {
		return nil, fmt.Errorf("pattern %s: the transport cannot tell its topics: %w", pattern, errors.ErrUnsupported)
	}
	f := &family{
		bus: b, pattern: pattern, opts: opts, lister: lister, moverFor: moverFor, came: make(chan struct{}, 1),
		kin: make(map[string]*kin), held: make(map[uint64]holding), check: forever, asked: make(chan struct{}),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	settling, cancel := context.WithCancel(b.settling)
	f.settling = settling
	context.AfterFunc(f.ctx, func() { time.AfterFunc(settleFor, cancel) })
	if opts.Group != "" && opts.Start.From == transport.Newest && f.established(ctx) {
		f.opts.Start = transport.Start{From: transport.Oldest}
	}
	if err := f.look(ctx, forever); err != nil {
		f.Close()
		return nil, err
	}
	if opts.Start.From != transport.AtTime { // topics that are not there yet are new from their first message on
		f.opts.Start = transport.Start{From: transport.Oldest}
	}
	f.work.Go(f.watch)
	return f, nil
}

// established reports whether the group has one of the topics, so that those it
// has not came to be since.
func (f *family) established(ctx context.Context) bool {
	inspector, ok := transport.As[transport.Inspector](f.bus.transport)
	if !ok {
		return false
	}
	topics, _ := f.lister.Topics(ctx, f.pattern) // who looks next finds out why not
	for _, topic := range topics {
		info, err := inspector.Inspect(ctx, topic)
		if err != nil {
			continue
		}
		for _, g := range info.Groups {
			if g.Name == f.opts.Group {
				return true
			}
		}
	}
	return false
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
		if err := f.look(f.ctx, lookFor); errors.Is(err, ErrClosed) {
			f.fail(ErrClosed)
		} else if err != nil && f.ctx.Err() == nil {
			f.bus.cfg.logger.Warn("echo: looking for new topics failed, trying again", "pattern", f.pattern, "error", err)
		}
	}
}

// look subscribes to the topics that match and are not there yet, each for so
// long at most.
func (f *family) look(ctx context.Context, most time.Duration) error {
	topics, err := f.lister.Topics(ctx, f.pattern)
	if err != nil {
		return err
	}
	var errs error
	for _, topic := range topics {
		f.mu.Lock()
		_, known := f.kin[topic]
		f.mu.Unlock()
		if known {
			continue
		}
		one, cancel := context.WithTimeout(ctx, most)
		k, err := f.openKin(one, topic)
		cancel()
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("topic %s: %w", topic, err))
			continue
		}
		f.mu.Lock()
		if f.closed {
			f.mu.Unlock()
			k.sub.Close()
			return ErrClosed
		}
		f.number(k)
		f.kin[topic] = k
		if f.lease == 0 || k.lease > 0 && k.lease < f.lease {
			f.lease = k.lease
		}
		f.work.Go(k.receive)
		f.mu.Unlock()
	}
	return errs
}

// number gives a kin its number. The caller holds mu.
func (f *family) number(k *kin) {
	var all []*kin
	if before := f.numbered.Load(); before != nil {
		all = *before
	}
	k.number = uint64(len(all))
	all = append(all[:len(all):len(all)], k)
	f.numbered.Store(&all)
}

// demand waits until somebody asks for messages, or did since the kin last knew,
// and returns for how many; 0 if nobody will. One that is slow to hear of it has
// messages for the next time, and so a turn.
func (f *family) demand(k *kin) int {
	for {
		f.mu.Lock()
		asked, wanted := f.asked, 0
		if f.asking || f.asks != k.asks {
			k.asks, wanted = f.asks, f.wanted
		}
		f.mu.Unlock()
		if f.ctx.Err() != nil {
			return 0
		}
		if wanted > 0 {
			return wanted
		}
		select {
		case <-asked:
		case <-f.ctx.Done():
			return 0
		}
	}
}

// lose notes what Receive shall tell of.
func (f *family) lose(lost *LostError) {
	f.mu.Lock()
	f.losses = append(f.losses, lost)
	f.mu.Unlock()
	f.wake()
}

// fail notes what Receive ends with from now on.
func (f *family) fail(err error) {
	f.mu.Lock()
	if f.err == nil {
		f.err = err
	}
	f.mu.Unlock()
	f.cancel()
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
	f.ask(len(dst))
	defer f.ask(0)
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, full, err := f.take(dst)
		if n > 0 || err != nil {
			return n, err
		}
		f.await(ctx, full)
	}
}

// await waits for something to take, which a lease that ends makes room for.
func (f *family) await(ctx context.Context, room time.Duration) {
	var ended <-chan time.Time
	if room < forever {
		t := time.NewTimer(room - clock())
		defer t.Stop()
		ended = t.C
	}
	select {
	case <-f.came:
	case <-ended:
	case <-ctx.Done():
	case <-f.ctx.Done():
	}
}

// ask notes for how many messages somebody asks.
func (f *family) ask(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asking = n > 0; f.asking {
		f.wanted = n
		f.asks++
		f.turn = clock() + kinTurn
		close(f.asked)
		f.asked = make(chan struct{})
	}
}

// queue makes a kin ready. The caller holds mu.
func (f *family) queue(k *kin) {
	if i := slices.Index(f.owed, k); i >= 0 {
		f.owed = slices.Delete(f.owed, i, i+1)
	}
	f.ready = insertByTurn(f.ready, k)
}

// insertByTurn puts a kin before those whose turn is later.
func insertByTurn(ks []*kin, k *kin) []*kin {
	i := slices.IndexFunc(ks, func(other *kin) bool { return other.passed > k.passed })
	if i < 0 {
		i = len(ks)
	}
	return slices.Insert(ks, i, k)
}

// take takes what topics hold, the longest held first. If there is no room, or
// somebody is owed a turn, it tells when to look again.
func (f *family) take(dst []transport.Message) (n int, room time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, 0, f.err
	}
	if len(f.losses) > 0 {
		lost := f.losses[0]
		f.losses = f.losses[1:]
		return 0, 0, lost
	}
	f.expire()
	if len(f.owed) > 0 && len(f.ready) > 0 && f.owed[0].passed < f.ready[0].passed {
		if clock() < f.turn {
			return 0, f.turn, nil
		}
		f.owed[0].passed = forever // it has nothing any more
		f.owed = f.owed[1:]
	}
	for n < len(dst) && len(f.ready) > 0 {
		k := f.ready[0]
		m := &k.batch[0]
		if !f.fits(m.Size()) {
			return n, f.check, nil
		}
		f.token++
		token := k.number<<kinShift | f.token
		f.hold(token, holding{k, m.Receipt(), m.Size(), k.until})
		dst[n] = *m
		dst[n].Token = token
		k.passed = forever
		n++
		if k.batch = k.batch[1:]; len(k.batch) == 0 {
			f.ready = f.ready[1:]
			close(k.taken)
		}
	}
	return n, forever, nil
}

// fits reports whether there is room for a message.
func (f *family) fits(size int) bool {
	return len(f.held) == 0 ||
		(f.opts.MaxPending == 0 || len(f.held) < f.opts.MaxPending) &&
			(f.opts.MaxPendingBytes == 0 || f.bytes+size <= f.opts.MaxPendingBytes)
}

// hold notes a delivery, or another end of its lease.
func (f *family) hold(token uint64, h holding) {
	f.bytes += h.size - f.held[token].size
	f.held[token] = h
	f.check = min(f.check, h.until)
}

// drop forgets a delivery.
func (f *family) drop(token uint64) {
	f.bytes -= f.held[token].size
	delete(f.held, token)
}

// expire forgets deliveries whose leases have ended.
func (f *family) expire() {
	now := clock()
	if now < f.check {
		return
	}
	f.check = forever
	for token, h := range f.held {
		if h.until <= now {
			f.drop(token)
		} else {
			f.check = min(f.check, h.until)
		}
	}
	f.check = max(f.check, now+minPace) // as it is work
}

// topicOf returns the topic of a message, and whether its dead letters have one.
func (f *family) topicOf(m *transport.Message) (topic string, dead bool) {
	k := (*f.numbered.Load())[m.Token>>kinShift]
	return k.topic, k.dead
}

// settle does something to deliveries, topic by topic, and notes of each that it
// is done. If some were lost and others failed, its error says both.
func (f *family) settle(rs []transport.Receipt, do func(k *kin, rs []transport.Receipt) error, note func(token uint64)) error {
	type part struct{ ours, theirs []transport.Receipt }
	parts := map[*kin]*part{}
	late := &transport.LeaseError{}
	f.mu.Lock()
	for _, r := range rs {
		h, ok := f.held[r.Token]
		if !ok {
			late.Lost = append(late.Lost, r)
			continue
		}
		p := parts[h.of]
		if p == nil {
			p = &part{}
			parts[h.of] = p
		}
		p.ours, p.theirs = append(p.ours, r), append(p.theirs, h.r)
	}
	f.mu.Unlock()
	var errs []error
	for k, p := range parts {
		err := do(k, p.theirs)
		lost, _ := errors.AsType[*transport.LeaseError](err)
		if err != nil && lost == nil {
			errs = append(errs, fmt.Errorf("topic %s: %w", k.topic, err))
			continue
		}
		f.mu.Lock()
		for i, r := range p.ours {
			if lost != nil && lost.Has(p.theirs[i]) {
				late.Lost = append(late.Lost, r)
				f.drop(r.Token)
			} else if _, ok := f.held[r.Token]; ok {
				note(r.Token)
			}
		}
		f.mu.Unlock()
	}
	f.wake() // there may be room again
	switch {
	case late.Lost == nil:
		return errors.Join(errs...)
	case errs == nil:
		return late
	}
	return errors.Join(append(errs, late)...)
}

// Ack implements [transport.Acker].
func (f *family) Ack(ctx context.Context, rs []transport.Receipt) error {
	return f.settle(rs, func(k *kin, rs []transport.Receipt) error {
		a, ok := transport.As[transport.Acker](k.sub)
		if !ok {
			return errors.ErrUnsupported
		}
		return a.Ack(ctx, rs)
	}, f.drop)
}

// Nack implements [transport.Nacker].
func (f *family) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return f.settle(rs, func(k *kin, rs []transport.Receipt) error {
		n, ok := transport.As[transport.Nacker](k.sub)
		if !ok {
			return errors.ErrUnsupported
		}
		if delay > 0 {
			return n.Nack(ctx, rs, delay)
		}
		defer k.recall(ctx, false)()
		return n.Nack(ctx, rs, 0)
	}, f.drop)
}

// Release implements [transport.Releaser].
func (f *family) Release(ctx context.Context, rs []transport.Receipt) error {
	return f.settle(rs, func(k *kin, rs []transport.Receipt) error {
		defer k.recall(ctx, false)()
		return release(ctx, k.sub, rs)
	}, f.drop)
}

// Lease implements [transport.Extender]. Before there is a topic it is what was
// asked for.
func (f *family) Lease() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lease > 0 {
		return f.lease
	}
	return f.opts.Lease
}

// Extend implements [transport.Extender].
func (f *family) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	return f.settle(rs, func(k *kin, rs []transport.Receipt) error {
		if e, ok := transport.As[transport.Extender](k.sub); ok {
			return e.Extend(ctx, rs, d)
		}
		return nil // it has no leases
	}, func(token uint64) {
		h := f.held[token]
		if h.of.lease > 0 {
			if h.until = clock() + d; d == 0 {
				h.until += h.of.lease
			}
			f.hold(token, h)
		}
	})
}

// Move is as that of a [transport.Mover], for messages whose topic has dead letters.
func (f *family) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	return f.settle([]transport.Receipt{r}, func(k *kin, rs []transport.Receipt) error {
		mover, ok := transport.As[transport.Mover](k.sub)
		if !ok {
			return errors.ErrUnsupported
		}
		return mover.Move(ctx, topic, m, rs[0])
	}, f.drop)
}

// Close implements [transport.Subscription].
func (f *family) Close() error {
	f.mu.Lock()
	closed := f.closed
	f.closed, f.err = true, ErrClosed
	f.mu.Unlock()
	if closed {
		return nil
	}
	f.cancel()
	f.work.Wait() // what was held for the taking went back
	errs := make([]error, len(f.kin))
	var closing sync.WaitGroup
	for i, k := range slices.Collect(maps.Values(f.kin)) {
		closing.Go(func() { errs[i] = k.sub.Close() })
	}
	closing.Wait()
	return errors.Join(errs...)
}
