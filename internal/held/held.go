// Package held keeps what a broadcast subscription was given and has not
// settled, for drivers whose other end knows nothing of that: it gives messages
// again when their lease ends or when they were given back.
package held

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// Messages are the unsettled messages of one subscription. Its exported fields
// are set before use. It is, for a subscription that embeds it, an Acker, a
// Nacker, a Releaser, an Extender and a Positioner.
type Messages struct {
	Leased   time.Duration // how long a delivery may stay unsettled
	Most     int           // messages unsettled at a time; 0: no bound
	MostSize int           // and their size
	Tell     func(Event, int)

	mu     sync.Mutex // guards the rest
	all    map[transport.Position]*message
	size   int
	token  uint64
	lost   *transport.LostError
	at     transport.Position
	closed bool
	woken  chan struct{} // holds a token when Take should be called again
	ended  chan struct{} // closed with the subscription
}

// Event is something to count.
type Event uint8

const (
	Received    Event = iota // given, for whatever time
	Redelivered              // given again
	Acked
	GivenBack
	Stale // settled too late
)

// message is one that was given and is not settled.
type message struct {
	transport.Message
	size int
	out  bool          // with the receiver; due is when its lease ends. Otherwise due is when it may be given again.
	due  time.Duration //
}

var began = time.Now()

// clock is monotonic, so that changes of the wall clock have no effect.
func clock() time.Duration { return time.Since(began) }

// Init makes m ready, at a place.
func (m *Messages) Init(at transport.Position) {
	m.all = make(map[transport.Position]*message)
	m.at = at
	m.woken = make(chan struct{}, 1)
	m.ended = make(chan struct{})
	if m.Tell == nil {
		m.Tell = func(Event, int) {}
	}
}

// Take fills dst with what is due again, and else with the first of spare,
// which it moves on. Without either it returns 0, how long it will be until
// something is due, and how many messages the bounds leave room for. An error
// is ErrClosed or a LostError.
func (m *Messages) Take(dst []transport.Message, spare *[]transport.Message) (n int, wait time.Duration, room int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, 0, 0, transport.ErrClosed
	}
	if e := m.lost; e != nil {
		m.lost, m.at = nil, e.Next
		return 0, 0, 0, e
	}
	now := clock()
	var due []*message
	out := 0
	wait = time.Hour
	for _, k := range m.all {
		if k.due <= now {
			due = append(due, k)
			continue
		}
		if k.out {
			out++
		}
		wait = min(wait, k.due-now)
	}
	slices.SortFunc(due, func(a, b *message) int { return a.Position.Compare(b.Position) })
	limit := len(dst)
	if m.Most > 0 {
		limit = min(limit, m.Most-out)
	}
	for _, k := range due {
		if n >= limit || !k.out && !m.fits(k.size, out+n) {
			break
		}
		m.token++
		if !k.out {
			m.size += k.size
		}
		k.Attempt++
		k.Token = m.token
		k.out, k.due = true, now+m.Leased
		dst[n] = k.Message
		n++
	}
	if n > 0 {
		m.Tell(Received, n)
		m.Tell(Redelivered, n)
		return n, 0, 0, nil
	}
	for n < min(limit, len(*spare)) {
		k := &message{Message: (*spare)[n], out: true, due: now + m.Leased}
		k.size = k.Size()
		if !m.fits(k.size, out+n) {
			break
		}
		m.token++
		k.Attempt, k.Token = 1, m.token
		m.size += k.size
		m.all[k.Position] = k
		m.at = k.Position
		dst[n] = k.Message
		n++
	}
	clear((*spare)[:n])
	*spare = (*spare)[n:]
	if n > 0 {
		m.Tell(Received, n)
		return n, 0, 0, nil
	}
	if len(*spare) > 0 || limit <= 0 {
		return 0, wait, 0, nil
	}
	return 0, wait, limit, nil
}

// fits reports whether one more message of this size may be out.
func (m *Messages) fits(size, out int) bool {
	return m.MostSize == 0 || out == 0 || m.size+size <= m.MostSize
}

// Size is that of the messages that are out.
func (m *Messages) Size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// Woken holds a token when Take should be called again.
func (m *Messages) Woken() <-chan struct{} { return m.woken }

// Ended is closed when the subscription is.
func (m *Messages) Ended() <-chan struct{} { return m.ended }

// Wake makes a token for Woken.
func (m *Messages) Wake() {
	select {
	case m.woken <- struct{}{}:
	default:
	}
}

// Lose makes the next Take tell of a loss.
func (m *Messages) Lose(e *transport.LostError) {
	m.mu.Lock()
	if m.lost != nil && m.lost.Count > 0 && e.Count > 0 {
		e.Count += m.lost.Count
	}
	m.lost = e
	m.mu.Unlock()
	m.Wake()
}

// End closes the subscription and reports whether it was open.
func (m *Messages) End() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.closed = true
	m.all = nil
	close(m.ended)
	return true
}

// Reach notes that there is nothing up to a place but what Take has returned,
// or will tell to be lost.
func (m *Messages) Reach(at transport.Position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost == nil {
		m.at = at
	}
}

// Position implements [transport.Positioner].
func (m *Messages) Position() transport.Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at
}

// Lease implements [transport.Extender].
func (m *Messages) Lease() time.Duration { return m.Leased }

// Ack implements [transport.Acker].
func (m *Messages) Ack(ctx context.Context, rs []transport.Receipt) error {
	return m.each(ctx, rs, Acked, func(k *message) {
		delete(m.all, k.Position)
		m.size -= k.size
	})
}

// Nack implements [transport.Nacker].
func (m *Messages) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	due := clock() + delay
	return m.each(ctx, rs, GivenBack, func(k *message) { m.giveBack(k, due) })
}

// Release implements [transport.Releaser].
func (m *Messages) Release(ctx context.Context, rs []transport.Receipt) error {
	due := clock()
	return m.each(ctx, rs, GivenBack, func(k *message) {
		k.Attempt--
		m.giveBack(k, due)
	})
}

func (m *Messages) giveBack(k *message, due time.Duration) {
	k.out, k.due = false, due
	m.size -= k.size
}

// Extend implements [transport.Extender].
func (m *Messages) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	until := clock() + cmp.Or(d, m.Leased)
	return m.each(ctx, rs, Received, func(k *message) { k.due = until })
}

// each applies do to the deliveries of rs that are held, and names the others.
func (m *Messages) each(ctx context.Context, rs []transport.Receipt, what Event, do func(*message)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := clock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return transport.ErrClosed
	}
	var lost []transport.Receipt
	for _, r := range rs {
		if k := m.all[r.Position]; k != nil && k.out && k.Token == r.Token && k.due > now {
			do(k)
		} else {
			lost = append(lost, r)
		}
	}
	if what != Received {
		m.Tell(what, len(rs)-len(lost))
	}
	if len(lost) > 0 {
		m.Tell(Stale, len(lost))
	}
	m.Wake()
	if lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return nil
}
