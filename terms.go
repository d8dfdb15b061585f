package echo

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// The headers of a message's terms.
const (
	headExpires = "echo-expires" // when its time to live is over, in milliseconds since 1970
	headOnce    = "echo-once"    // its idempotency key
)

// WithDelay has the message delivered no sooner than after d, which is counted
// by whatever stores it. It takes its place among the others when it is due.
// A transport that cannot delay refuses it, with [errors.ErrUnsupported].
func WithDelay(d time.Duration) PublishOption {
	return publishOption(func(c *publishConfig) {
		if d < 0 {
			c.fail(fmt.Errorf("WithDelay(%v): the delay is negative", d))
		}
		c.schedule("WithDelay", func(now time.Time) time.Time { return now.Add(d) })
	})
}

// WithTime is WithDelay until t. A time that has passed is no delay.
func WithTime(t time.Time) PublishOption {
	return publishOption(func(c *publishConfig) {
		c.schedule("WithTime", func(time.Time) time.Time { return t })
	})
}

// WithTTL has the message expire when it was not handled d after it was
// published, or was due. It is not handled then, but dropped and counted, or
// made a dead letter where a consumer asks for that [WithDeadExpired]. Clocks
// of producers and consumers are compared, so d should be long against what
// they differ by.
func WithTTL(d time.Duration) PublishOption {
	return publishOption(func(c *publishConfig) {
		if c.ttl = d; d <= 0 {
			c.fail(fmt.Errorf("WithTTL(%v): a time to live is positive", d))
		}
	})
}

// WithIdempotencyKey names what the message is about to do, in place of its ID,
// for [WithDedup]: two messages of one key do it once.
func WithIdempotencyKey(key string) PublishOption {
	return publishOption(func(c *publishConfig) {
		if c.once = key; key == "" {
			c.fail(errors.New("WithIdempotencyKey: the key is empty"))
		} else if err := checkID(key); err != nil {
			c.fail(fmt.Errorf("WithIdempotencyKey: of the key: %w", err))
		}
	})
}

// WithDeadExpired makes messages whose time to live is over dead letters. By
// default they are dropped, and counted by [Consumer.Stats].
func WithDeadExpired() SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) { c.deadExpired = true })
}

// WithDedup handles a message once within a window, which begins with its
// first one: messages are the same that have the same [WithIdempotencyKey], or
// without one the same ID.
//
// Given to [NewTopic] it works where messages are published: the transport
// stores one, and publishing others succeeds without effect. It refuses what it
// cannot deduplicate, with [errors.ErrUnsupported]. This makes it safe to
// publish again after [ErrPublishUnknown].
//
// Given to [Subscribe] it works where messages are handled: what this consumer
// has handled it does not handle again, but acknowledges and counts. It
// remembers 65,536 messages, or half as many: when more are handled within a
// window, the oldest half is forgotten, and that is counted, too. Other members of the group, and
// this one after a restart, know nothing of it: it makes repetitions rare, and
// handlers that must not repeat anything need a store of their own.
func WithDedup(window time.Duration) interface {
	TopicOption
	SubscribeOption
} {
	return dedupOption(window)
}

type dedupOption time.Duration

func (o dedupOption) err() error {
	if o <= 0 {
		return fmt.Errorf("WithDedup(%v): a window is positive", time.Duration(o))
	}
	return nil
}

func (o dedupOption) applyTopic(c *topicConfig) {
	c.dedup = time.Duration(o)
	if err := o.err(); err != nil {
		c.err = err
	}
}

func (o dedupOption) applySubscribe(c *subscribeConfig) {
	c.dedup = time.Duration(o)
	c.fail(o.err())
}

// schedule notes when the message is due.
func (c *publishConfig) schedule(option string, due func(now time.Time) time.Time) {
	if c.dueName != "" && c.dueName != option {
		c.fail(fmt.Errorf("%s contradicts %s: a message is due once", option, c.dueName))
	}
	c.dueName, c.due = option, due
}

// terms fills in what the message asks for besides being stored.
func (p *Producer[M]) terms(m *transport.Message, cfg *publishConfig, now time.Time) error {
	window := p.topic.cfg.dedup
	if cfg == nil {
		if window > 0 {
			m.Terms = &transport.Terms{Once: m.ID, Window: window}
		}
		return nil
	}
	var due time.Time
	if cfg.due != nil {
		if !p.bus.delays {
			return fmt.Errorf("%s: the transport does not delay messages: %w", cfg.dueName, errors.ErrUnsupported)
		}
		if due = cfg.due(now); !due.After(now) {
			due = time.Time{}
		}
	}
	if !due.IsZero() || window > 0 {
		m.Terms = &transport.Terms{Due: due}
	}
	if window > 0 {
		m.Terms.Once, m.Terms.Window = m.ID, window
		if cfg.once != "" {
			m.Terms.Once = cfg.once
		}
	}
	if cfg.once != "" {
		setHeader(m, headOnce, cfg.once)
	}
	if cfg.reply != "" {
		setHeader(m, headReply, cfg.caller())
	}
	if at := cfg.expires(now, due); !at.IsZero() {
		setHeader(m, headExpires, strconv.FormatInt(at.Add(time.Millisecond-1).UnixMilli(), 10)) // rounded up
	}
	return nil
}

// caller names who waits for the reply.
func (c *publishConfig) caller() string {
	return string(strconv.AppendUint(append(append(make([]byte, 0, 64), c.reply...), ' '), c.call, 10))
}

// expires is when the message is not to be handled any more, zero for never.
func (c *publishConfig) expires(now, due time.Time) (at time.Time) {
	if c.ttl > 0 {
		at = now
		if !due.IsZero() {
			at = due
		}
		at = at.Add(c.ttl)
	}
	if !c.until.IsZero() && (at.IsZero() || c.until.Before(at)) {
		at = c.until
	}
	return at
}

func setHeader(m *transport.Message, name, value string) {
	if m.Header == nil {
		m.Header = make(map[string]string, 1)
	}
	m.Header[name] = value
}

// expired reports whether a message's time to live is over.
func expired(m *transport.Message, now time.Time) bool {
	text, ok := m.Header[headExpires]
	if !ok {
		return false
	}
	at, err := strconv.ParseInt(text, 10, 64)
	return err == nil && now.UnixMilli() >= at
}

// memory is what a consumer remembers of the messages it handled within the
// last window, in two halves that take turns. Names are kept as hashes of 128
// bits, so that they cost the garbage collector nothing.
type memory struct {
	window time.Duration
	seeds  [2]maphash.Seed

	mu    sync.Mutex        // guards the rest
	busy  map[hash]struct{} // being handled
	now   half
	past  half
	since time.Duration // when now began
	lost  uint64        // forgotten before their time
}

type hash [2]uint64

const maxRemembered = 1 << 16

// half is one half of a memory: a hash table with open addressing, at most half
// full, where a message takes one cache line. Most messages are new: a bit for
// each that is known, by part of its hash, answers for them without the table,
// which is too large for the processor's caches.
type half struct {
	slots []remembered // as many as a power of two, nil before the first
	n     int          // that are taken
	bits  []uint64     // 16 for each that is remembered at most
}

type remembered struct {
	name hash          // zero if the slot is free
	at   time.Duration // when it was handled
}

const halfBits = 16 * maxRemembered / 2

func bitOf(name hash) (word, bit uint64) {
	n := (name[1] >> 1) % halfBits
	return n / 64, 1 << (n % 64)
}

// slot returns where a name is, or would be.
func (f *half) slot(name hash) *remembered {
	for i := name[0]; ; i++ {
		s := &f.slots[i%uint64(len(f.slots))]
		if s.name == name || s.name == (hash{}) {
			return s
		}
	}
}

func (f *half) find(name hash) (at time.Duration, ok bool) {
	if f.n == 0 {
		return 0, false
	}
	if word, bit := bitOf(name); f.bits[word]&bit == 0 {
		return 0, false
	}
	s := f.slot(name)
	return s.at, s.name == name
}

func (f *half) put(name hash, at time.Duration) {
	if f.bits == nil {
		f.bits = make([]uint64, halfBits/64)
	}
	if 2*f.n >= len(f.slots) {
		f.grow()
	}
	word, bit := bitOf(name)
	f.bits[word] |= bit
	s := f.slot(name)
	if s.name != name {
		f.n++
	}
	*s = remembered{name, at}
}

func (f *half) grow() {
	old := f.slots
	f.slots = make([]remembered, max(64, 2*len(old)))
	for _, r := range old {
		if r.name != (hash{}) {
			*f.slot(r.name) = r
		}
	}
}

// clear forgets everything, and keeps the memory for it.
func (f *half) clear() {
	clear(f.slots)
	clear(f.bits)
	f.n = 0
}

func newMemory(window time.Duration) *memory {
	return &memory{
		window: window,
		seeds:  [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		busy:   make(map[hash]struct{}),
		since:  clock(),
	}
}

func (d *memory) hash(name string) hash {
	return hash{maphash.String(d.seeds[0], name), maphash.String(d.seeds[1], name) | 1} // which is not zero
}

// nameOf is by what the memory knows a message again: of a pattern, in its topic.
func (c *consumer) nameOf(m *transport.Message) hash {
	name, ok := m.Header[headOnce]
	if !ok {
		name = m.ID
	}
	if c.family != nil {
		name = c.topicOf(m) + "\x00" + name
	}
	return c.memory.hash(name)
}

// handled reports whether a message was. The caller holds mu.
func (d *memory) handled(name hash, now time.Duration) bool {
	d.turn(now)
	at, ok := d.now.find(name)
	if !ok {
		at, ok = d.past.find(name)
	}
	return ok && clock()-at < d.window
}

// begin reports whether a message was handled, or is being handled; otherwise
// it is from now on, if others might ask meanwhile. now is when the message was
// received: what takes its time need not look at the clock.
func (d *memory) begin(h hash, now time.Duration, others bool) (handled, busy bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handled(h, now) {
		return true, false
	}
	if len(d.busy) > 0 {
		_, busy = d.busy[h]
	}
	if others && !busy {
		d.busy[h] = struct{}{}
	}
	return false, busy
}

// hold notes that a message is being handled until end.
func (d *memory) hold(h hash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy[h] = struct{}{}
}

// knows reports whether a message was handled.
func (d *memory) knows(h hash) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.handled(h, clock())
}

// end notes what became of a message, whose window begins at now.
func (d *memory) end(h hash, now time.Duration, handled bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.busy) > 0 {
		delete(d.busy, h)
	}
	if handled {
		d.now.put(h, now)
	}
}

// turn forgets the older half when it is time. The caller holds mu.
func (d *memory) turn(now time.Duration) {
	old := now-d.since >= d.window
	if !old && d.now.n < maxRemembered/2 {
		return
	}
	if !old {
		for i := range d.past.slots {
			if r := &d.past.slots[i]; r.name != (hash{}) && now-r.at < d.window {
				d.lost++
			}
		}
	}
	if old && now-d.since >= 2*d.window {
		d.past = half{} // a burst long ago is no reason to keep so much memory
	}
	d.now, d.past, d.since = d.past, d.now, now
	d.now.clear()
}
