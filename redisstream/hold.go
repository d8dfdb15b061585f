package redisstream

import (
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// clock is time as the package measures it: since a moment at start, so that
// changes of the wall clock have no effect.
var start = time.Now()

func clock() time.Duration { return time.Since(start) }

// hold is what a subscription was given and has not settled.
type hold struct {
	maxMessages, maxBytes int // 0: no bound

	mu     sync.Mutex // guards the rest
	held   map[transport.Position]delivery
	bytes  int
	token  uint64
	over   bool          // what came last did not fit: nothing is asked for until there is room
	closed bool          //
	room   chan struct{} // holds a token when something was settled
	ended  chan struct{} // closed with the subscription
}

// delivery is an unsettled message.
type delivery struct {
	token    uint64
	deadline time.Duration // when its lease ends
	since    time.Duration // when that was last agreed with the server
	size     int
	attempt  int
	tried    bool // an acknowledgement failed, and may have been done
}

func (h *hold) init(o transport.Options) {
	h.maxMessages, h.maxBytes = o.MaxPending, o.MaxPendingBytes
	h.held = make(map[transport.Position]delivery)
	h.room = make(chan struct{}, 1)
	h.ended = make(chan struct{})
}

// space is how many messages of about size may be asked for, at most n. If
// none, wait is how long it will be until a lease ends. expired tells that there
// is room because one did, and its message is due.
func (h *hold) space(n, size int) (room int, wait time.Duration, expired bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room = h.left(n, size); room > 0 {
		return room, 0, false
	}
	now := clock() - leeway
	wait = time.Hour
	for p, d := range h.held {
		if d.deadline <= now { // it is not held any more, whether or not somebody else has it
			delete(h.held, p)
			h.bytes -= d.size
			h.over = false
			expired = true
		} else {
			wait = min(wait, d.deadline-now)
		}
	}
	return h.left(n, size), wait, expired
}

// leeway is how much later than here a lease may end at the server.
const leeway = 5 * time.Millisecond

// left is space. The caller holds mu.
func (h *hold) left(n, size int) int {
	if h.over && len(h.held) > 0 {
		return 0
	}
	if h.maxMessages > 0 {
		n = min(n, h.maxMessages-len(h.held))
	}
	if h.maxBytes > 0 && len(h.held) > 0 {
		if h.bytes >= h.maxBytes {
			return 0
		}
		n = min(n, max(1, (h.maxBytes-h.bytes)/max(size, 1)))
	} else if h.maxBytes > 0 {
		n = min(n, max(1, h.maxBytes/max(size, 1)))
	}
	return max(n, 0)
}

// take notes deliveries and reports how many, from the first, were within the bounds.
func (h *hold) take(msgs []transport.Message, now, deadline time.Duration) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range msgs {
		m := &msgs[i]
		size := m.Size()
		old, again := h.held[m.Position] // its lease ended unnoticed
		if again {
			h.bytes -= old.size
			delete(h.held, m.Position)
		}
		if h.maxBytes > 0 && len(h.held) > 0 && h.bytes+size > h.maxBytes {
			h.over = true
			return i
		}
		h.token++
		m.Token = h.token
		h.bytes += size
		h.held[m.Position] = delivery{token: h.token, deadline: deadline, since: now, size: size, attempt: m.Attempt}
	}
	return len(msgs)
}

// settling is a set of deliveries under settlement.
type settling struct {
	rs     []transport.Receipt // held
	ds     []delivery          // what rs were
	lost   []transport.Receipt // not held
	tried  bool                // some may have been acknowledged before
	unsure bool                // some were agreed with the server too long ago to rely on it
}

var settlings = sync.Pool{New: func() any { return new(settling) }}

// free lets s be used again. Nobody refers to it.
func (s *settling) free() {
	*s = settling{rs: s.rs[:0], ds: s.ds[:0]}
	settlings.Put(s)
}

// settle takes deliveries out. Those no longer held are named in lost.
func (h *hold) settle(rs []transport.Receipt, lease, now time.Duration) *settling {
	s := settlings.Get().(*settling)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rs {
		d, ok := h.held[r.Position]
		if !ok || d.token != r.Token {
			s.lost = append(s.lost, r)
			continue
		}
		if d.deadline <= now {
			s.lost = append(s.lost, r)
		} else {
			s.unsure = s.unsure || now-d.since > lease/2
			s.tried = s.tried || d.tried
			s.rs = append(s.rs, r)
			s.ds = append(s.ds, d)
		}
		delete(h.held, r.Position)
		h.bytes -= d.size
	}
	h.settled()
	return s
}

// settled notes that there is room. The caller holds mu.
func (h *hold) settled() {
	h.over = false
	select {
	case h.room <- struct{}{}:
	default:
	}
}

// restore puts deliveries back that could not be settled, as far as is known.
func (h *hold) restore(s *settling) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, r := range s.rs {
		if _, ok := h.held[r.Position]; !ok {
			s.ds[i].tried = true
			h.held[r.Position] = s.ds[i]
			h.bytes += s.ds[i].size
		}
	}
}

// holding returns the receipts that are held, and the others.
func (h *hold) holding(rs []transport.Receipt, now time.Duration) (held, lost []transport.Receipt) {
	held = make([]transport.Receipt, 0, len(rs))
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rs {
		if d, ok := h.held[r.Position]; ok && d.token == r.Token && d.deadline > now {
			held = append(held, r)
		} else {
			lost = append(lost, r)
		}
	}
	return held, lost
}

// extend notes new deadlines.
func (h *hold) extend(rs []transport.Receipt, now, deadline time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rs {
		if d, ok := h.held[r.Position]; ok && d.token == r.Token {
			d.since, d.deadline = now, deadline
			h.held[r.Position] = d
		}
	}
}

// drop takes deliveries out that are lost.
func (h *hold) drop(rs []transport.Receipt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range rs {
		if d, ok := h.held[r.Position]; ok && d.token == r.Token {
			delete(h.held, r.Position)
			h.bytes -= d.size
		}
	}
	h.settled()
}

// close marks the subscription closed and reports whether it was open.
func (h *hold) close() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.closed = true
	close(h.ended)
	return true
}

func leaseError(lost []transport.Receipt) error {
	if len(lost) == 0 {
		return nil
	}
	return &transport.LeaseError{Lost: lost}
}
