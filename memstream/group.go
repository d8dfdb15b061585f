package memstream

import (
	"time"

	"github.com/echobus/echo/transport"
)

// group is a place in a topic and the deliveries made on the way there. Its
// topic's lock guards it.
type group struct {
	topic *topic
	name  string // empty for a broadcast subscription's

	lost    uint64 // messages dropped before they were given, not yet reported
	flight  window
	parked  map[uint64]*parkedMessage // unsettled messages that left the window
	bytes   int                       // size of what is parked
	pending int                       // unsettled messages, parked or not
	ready   queue                     // to deliver again now
	delayed queue                     // to deliver again later

	waiting []*subscription // in Receive, longest first
	timer   *time.Timer
	timerAt time.Duration // when timer fires; 0 when it will not
}

// parkedMessage is an unsettled delivery with its message, which the log need
// not keep for it any more.
type parkedMessage struct {
	delivery
	msg transport.Message
}

// A window longer than this that is mostly settled parks what is not.
const longWindow = 1024

// available reports whether Receive has something to return.
func (g *group) available() bool {
	return len(g.ready) > 0 || g.lost > 0 || g.flight.next < g.topic.log.next && !g.overfull()
}

// overfull reports whether the group keeps as many unsettled messages outside
// the log as the log may hold.
func (g *group) overfull() bool {
	cfg := g.topic.cfg
	return len(g.parked) >= cfg.maxMessages || g.bytes >= cfg.maxBytes
}

// skip moves over a message the group was not given and now never will be.
func (g *group) skip() {
	*g.flight.push() = delivery{}
	g.flight.compact()
	g.lost++
	g.topic.stats.Lost++
}

// park takes message i, which the log still holds, into the group's own keeping.
func (g *group) park(i uint64) {
	d := g.flight.at(i)
	if d.state != settled {
		m, _ := g.topic.log.at(i)
		if g.parked == nil {
			g.parked = make(map[uint64]*parkedMessage)
		}
		g.parked[i] = &parkedMessage{*d, *m}
		g.bytes += int(d.size)
		*d = delivery{}
	}
	g.flight.compact()
}

// find returns the delivery of message i, or nil when it is settled.
func (g *group) find(i uint64) *delivery {
	if i >= g.flight.low && i < g.flight.next {
		if d := g.flight.at(i); d.state != settled {
			return d
		}
	}
	if p := g.parked[i]; p != nil {
		return &p.delivery
	}
	return nil
}

// message returns the message of an unsettled delivery.
func (g *group) message(i uint64) *transport.Message {
	if p := g.parked[i]; p != nil {
		return &p.msg
	}
	m, _ := g.topic.log.at(i)
	return m
}

// settle marks message i done.
func (g *group) settle(i uint64, d *delivery) {
	g.pending--
	d.state, d.holder = settled, nil
	if g.parked != nil {
		if p := g.parked[i]; p != nil {
			g.bytes -= int(d.size)
			delete(g.parked, i)
		}
	}
}

// giveBack makes message i deliverable again after delay.
func (g *group) giveBack(i uint64, d *delivery, delay, now time.Duration) {
	d.holder.drop(d)
	d.holder = nil
	if delay <= 0 {
		d.state = ready
		g.ready.push(0, i)
		return
	}
	d.state = delayed
	g.delayed.push(now+delay, i)
	g.arm(now+delay, now)
}

// tidy shortens the window after messages were settled.
func (g *group) tidy() {
	g.flight.compact()
	for g.flight.len() > longWindow && g.flight.len() > 4*g.pending {
		g.park(g.flight.low)
	}
}

// wake wakes up to n subscriptions that wait for messages.
func (g *group) wake(n int) {
	n = min(n, len(g.waiting))
	for _, s := range g.waiting[:n] {
		s.idle = false
		s.wake()
	}
	g.topic.idle -= n
	rest := copy(g.waiting, g.waiting[n:])
	clear(g.waiting[rest:])
	g.waiting = g.waiting[:rest]
}

func (g *group) wakeAll() { g.wake(len(g.waiting)) }

// pass wakes the next subscription when one leaves something behind.
func (g *group) pass() {
	if len(g.waiting) > 0 && g.available() {
		g.wake(1)
	}
}

// unwait takes s out of those that wait and reports whether it was among them.
func (g *group) unwait(s *subscription) bool {
	if !s.idle {
		return false
	}
	s.idle = false
	g.topic.idle--
	for k, w := range g.waiting {
		if w == s {
			g.waiting = append(g.waiting[:k], g.waiting[k+1:]...)
			break
		}
	}
	return true
}

// arm makes sure that tick runs at the latest at a time on the clock.
func (g *group) arm(at, now time.Duration) {
	if g.timerAt != 0 && g.timerAt <= at {
		return
	}
	g.timerAt = at
	if g.timer == nil {
		g.timer = time.AfterFunc(at-now, g.tick)
	} else {
		g.timer.Reset(at - now)
	}
}

func (g *group) stop() {
	if g.timer != nil {
		g.timer.Stop()
	}
	g.timerAt = 0
}

// tick makes deliverable what is due: delayed messages, and those whose lease ended.
func (g *group) tick() {
	t := g.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || g.timerAt == 0 {
		return
	}
	now := clock()
	g.timerAt = 0
	n := len(g.ready)
	for len(g.delayed) > 0 && g.delayed[0].at <= now {
		i := g.delayed.pop()
		g.find(i).state = ready
		g.ready.push(0, i)
	}
	if len(g.delayed) > 0 {
		g.arm(g.delayed[0].at, now)
	}
	if next := g.expire(now); next != 0 {
		g.arm(next, now)
	}
	g.wake(len(g.ready) - n)
}

// expire gives back what was held beyond its lease and returns when the next
// lease ends, or 0.
func (g *group) expire(now time.Duration) (next time.Duration) {
	g.eachFlying(func(i uint64, d *delivery) {
		if d.deadline <= now {
			g.topic.stats.Lapsed++
			g.giveBack(i, d, 0, now)
		} else if next == 0 || d.deadline < next {
			next = d.deadline
		}
	})
	return next
}

func (g *group) eachFlying(do func(uint64, *delivery)) {
	for i, p := range g.parked {
		if p.state == flying {
			do(i, &p.delivery)
		}
	}
	for i := g.flight.low; i < g.flight.next; i++ {
		if d := g.flight.at(i); d.state == flying {
			do(i, d)
		}
	}
}
