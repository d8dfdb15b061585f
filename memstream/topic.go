package memstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// topic is a log and the groups that read it. A broadcast subscription is a
// group of one without a name that ends with it.
type topic struct {
	of    *Transport
	name  string
	inbox bool // it is for replies
	cfg   *config
	tail  atomic.Uint64 // log.next, for those who look without the lock

	// What is guarded by mu and seldom used keeps it on another cache line
	// than tail, at which they look often.
	named  map[string]*group
	groups []*group // all, named or not
	stats  Stats

	mu      mutex // guards the rest, too
	log     log
	later   later
	once    once
	senders int           // waiting for room
	space   chan struct{} // made for the first sender that waits; holds a token when one may find room
	idle    int           // subscriptions waiting in Receive, over all groups
	age     *time.Timer
	closed  bool
}

// maxInbox bounds the messages of a topic for replies.
const maxInbox = 1 << 14

func newTopic(name string, of *Transport) *topic {
	t := &topic{of: of, name: name, cfg: &of.cfg}
	if t.inbox = transport.IsInbox(name); t.inbox {
		own := of.cfg
		own.maxMessages, own.full = min(own.maxMessages, maxInbox), DropOldest
		t.cfg = &own
	}
	t.log.first, t.log.next = 1, 1 // so that the zero Position is before every message
	return t
}

// at is the position of a message by its number.
func (t *topic) at(number uint64) transport.Position {
	return transport.Position{Hi: t.cfg.life, Lo: number}
}

// send appends msgs one after another, waiting for room if that is the policy.
func (t *topic) send(ctx context.Context, msgs []transport.Message) (int, error) {
	err := ctx.Err()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for {
		var k int
		k, err = t.appendAll(msgs[n:])
		n += k
		if t.wake(k); err == nil {
			return n, nil
		}
		switch {
		case err == errLaterFull && t.cfg.full != Block:
			t.stats.Rejected += uint64(len(msgs) - n)
			err = fmt.Errorf("%w: topic %s holds %d of them, %d bytes", err, t.name, len(t.later.queue), t.later.bytes)
		case err == transport.ErrFull || err == errLaterFull:
			if t.cfg.full == Reject {
				t.stats.Rejected += uint64(len(msgs) - n)
				err = fmt.Errorf("%w: topic %s holds %d messages, %d bytes", err, t.name, t.log.len(), t.log.bytes())
			} else if err = t.awaitRoom(ctx); err == nil {
				continue
			}
		}
		return n, fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
}

// appendAll appends until a message has no room and says how many it appended.
func (t *topic) appendAll(msgs []transport.Message) (int, error) {
	if t.closed {
		return 0, transport.ErrClosed
	}
	for i := range msgs {
		m := &msgs[i]
		if m.Value != nil && !t.cfg.values {
			return i, fmt.Errorf("message %s carries a value by reference: %w without WithValues", m.ID, errors.ErrUnsupported)
		}
		if m.Terms != nil && t.inbox {
			return i, noTerms(m, t.name)
		}
		size := m.Size()
		if size > t.cfg.maxBytes {
			return i, fmt.Errorf("%w: message %s has %d bytes, the topic keeps at most %d", transport.ErrTooLarge, m.ID, size, t.cfg.maxBytes)
		}
		if m.Terms != nil {
			kept, err := t.heed(m, size)
			if err != nil {
				return i, err
			}
			if kept {
				continue
			}
		}
		if !t.makeRoom(size) {
			return i, transport.ErrFull
		}
		m.Position = t.at(t.log.next)
		t.append(m, size)
		if terms := m.Terms; terms != nil && terms.Once != "" {
			t.note(terms.Once, terms.Window)
		}
	}
	t.tail.Store(t.log.next)
	return len(msgs), nil
}

func noTerms(m *transport.Message, topic string) error {
	return fmt.Errorf("message %s of topic %s is to be delayed or stored once: %w", m.ID, topic, errors.ErrUnsupported)
}

// heed does what the terms of a message say, and reports whether there is
// nothing to append: it is there already, or will be later.
func (t *topic) heed(m *transport.Message, size int) (kept bool, err error) {
	terms := m.Terms
	m.Position = transport.Position{}
	if terms.Once != "" && t.seen(terms.Once) {
		t.stats.Duplicates++
		return true, nil
	}
	if terms.Due.IsZero() {
		return false, nil
	}
	delay := time.Until(terms.Due)
	if delay <= 0 {
		return false, nil
	}
	if err := t.postpone(m, size, delay); err != nil {
		return false, err
	}
	if terms.Once != "" {
		t.note(terms.Once, terms.Window)
	}
	return true, nil
}

// makeRoom drops what may go, and reports whether there is room then.
func (t *topic) makeRoom(size int) bool {
	for !t.fits(size) {
		if !t.evict() {
			return false
		}
	}
	return true
}

// append appends a message for which there is room.
func (t *topic) append(m *transport.Message, size int) {
	if m.Time.IsZero() || m.Terms != nil {
		own := *m
		own.Terms = nil
		if own.Time.IsZero() {
			own.Time = time.Now().UTC()
		}
		m = &own
	}
	m.Position = t.at(t.log.next)
	t.log.append(m, size)
	t.stats.Stored++
	if t.cfg.maxAge > 0 && t.age == nil {
		t.age = time.AfterFunc(t.cfg.maxAge, t.expire)
	}
}

func (t *topic) fits(size int) bool {
	return t.log.len() < t.cfg.maxMessages && t.log.bytes()+size <= t.cfg.maxBytes
}

// evict drops the oldest message if everybody was given it, or if it may be lost.
//
// Where senders may wait, it does not drop a message that a group was given a
// moment ago: that will be settled soon, and the group need not take it into
// its own keeping.
func (t *topic) evict() bool {
	oldest := t.log.first
	if t.cfg.full != DropOldest {
		for _, g := range t.groups {
			if g.next <= oldest || t.cfg.full == Block && g.holdsYoung(oldest) {
				return false
			}
		}
	}
	t.dropOldest()
	return true
}

// dropOldest drops the oldest message. Groups that were not given it lose it;
// those that hold it unsettled keep a copy.
func (t *topic) dropOldest() {
	oldest := t.log.first
	for _, g := range t.groups {
		if g.next <= oldest {
			g.skip()
		} else {
			g.keep(oldest)
		}
	}
	t.log.drop()
}

// awaitRoom releases the lock until there may be room.
func (t *topic) awaitRoom(ctx context.Context) error {
	t.senders++
	if t.space == nil {
		t.space = make(chan struct{}, 1)
	}
	space := t.space
	t.mu.Unlock()
	again := time.NewTimer(young) // what is young now will not be for long
	defer again.Stop()
	var err error
	select {
	case <-space:
	case <-again.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	t.mu.Lock()
	if t.senders--; t.closed {
		err = transport.ErrClosed
	}
	if err != nil {
		t.offerRoom() // the token may have been meant for us
		return fmt.Errorf("waiting for room in topic %s: %w", t.name, err)
	}
	return nil
}

// offerRoom lets one waiting sender look whether there is room. It, or its
// successor, offers again what it leaves.
func (t *topic) offerRoom() {
	if t.senders == 0 {
		return
	}
	select {
	case t.space <- struct{}{}:
	default:
	}
}

// wake wakes waiting subscriptions for n messages just appended and passes
// remaining room on.
func (t *topic) wake(n int) {
	if n == 0 {
		return
	}
	if t.idle > 0 {
		for _, g := range t.groups {
			g.wake(n)
		}
	}
	if t.senders > 0 {
		t.offerRoom()
	}
}

// expire drops messages that became too old and sets the timer for the next one.
func (t *topic) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.age = nil
	if t.closed {
		return
	}
	for now := time.Now(); t.log.len() > 0; {
		oldest := t.log.at(t.log.first)
		if left := t.cfg.maxAge - now.Sub(oldest.Time); left > 0 {
			t.age = time.AfterFunc(left, t.expire)
			break
		}
		t.dropOldest()
	}
	for _, g := range t.groups {
		g.wake(1) // to learn of a loss
	}
	t.offerRoom()
}

func (t *topic) subscribe(opts transport.Options) (*subscription, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, transport.ErrClosed
	}
	g := t.named[opts.Group]
	if opts.Group == "" || g == nil {
		next, lost, err := t.startAt(opts)
		if err != nil {
			return nil, err
		}
		g = t.newGroup(opts.Group, next, lost)
		g.foreign = t.foreign(opts.Start)
	}
	lease := opts.Lease
	if lease == 0 {
		lease = t.cfg.lease
	}
	s := &subscription{group: g, maxPending: opts.MaxPending, maxBytes: opts.MaxPendingBytes, lease: lease, woken: make(chan struct{}, 1)}
	return s, nil
}

func (t *topic) newGroup(name string, next, lost uint64) *group {
	g := &group{topic: t, name: name, next: next, lost: lost}
	t.groups = append(t.groups, g)
	if name != "" {
		if t.named == nil {
			t.named = make(map[string]*group)
		}
		t.named[name] = g
	}
	return g
}

// startAt returns the number of the first message of a new group and how many
// that it asked for are gone.
func (t *topic) startAt(opts transport.Options) (next, lost uint64, err error) {
	from := opts.Start.From
	if from == transport.Default {
		from = transport.Oldest
		if opts.Group == "" {
			from = transport.Newest
		}
	}
	first, end := t.log.first, t.log.next
	switch from {
	case transport.Oldest:
		return first, 0, nil
	case transport.Newest:
		return end, 0, nil
	case transport.AfterPosition:
		next = min(opts.Start.Position.Lo+1, end)
		if opts.Start.Position.Hi != t.cfg.life { // before everything, or foreign
			return first, first - 1, nil
		}
		if next < first {
			return first, first - next, nil
		}
		return next, 0, nil
	case transport.AtTime:
		for i := first; i < end; i++ {
			if m := t.log.at(i); !m.Time.Before(opts.Start.Time) {
				return i, 0, nil
			}
		}
		return end, 0, nil
	case transport.AfterID:
		for i := end; i > first; i-- {
			if m := t.log.at(i - 1); m.ID == opts.Start.ID {
				return i, 0, nil
			}
		}
		return 0, 0, fmt.Errorf("%w: topic %s keeps no message with ID %q to start after", transport.ErrNotFound, t.name, opts.Start.ID)
	}
	return 0, 0, fmt.Errorf("start %d: no such kind", from)
}

// foreign reports whether start is a position in another log, such as this
// topic's in an earlier process.
func (t *topic) foreign(start transport.Start) bool {
	p := start.Position
	return start.From == transport.AfterPosition && p != (transport.Position{}) && p.Hi != t.cfg.life
}

// remove forgets a group, which must be a broadcast subscription's.
func (t *topic) remove(g *group) {
	g.stop()
	for i, h := range t.groups {
		if h == g {
			last := len(t.groups) - 1
			t.groups[i] = t.groups[last]
			t.groups[last] = nil
			t.groups = t.groups[:last]
			break
		}
	}
	t.offerRoom()
}

func (t *topic) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.offerRoom()
	if t.age != nil {
		t.age.Stop()
	}
	if t.later.timer != nil {
		t.later.timer.Stop()
	}
	t.later.queue, t.once = nil, once{}
	for _, g := range t.groups {
		g.stop()
		g.wakeAll()
	}
	t.groups, t.named, t.log = nil, nil, log{first: t.log.next, next: t.log.next}
}
