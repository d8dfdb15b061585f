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

	next    uint64 // the first message not given to the group
	lost    uint64 // messages dropped before they were given, not yet reported
	foreign bool   // it was to begin after a position in another log: nobody knows what was lost
	flight  flight // first deliveries under way
	parked  map[uint64]*parked
	bytes   int   // size of what is parked
	ready   queue // parked, to be delivered again now
	delayed queue // parked, to be delivered again later

	waiting []*subscription // in Receive, longest first
	timer   *time.Timer
	timerAt time.Duration // when timer fires; 0 when it will not
}

// parked is an unsettled message that is not in the flight: it was given back,
// delivered again, or outlived its place in the log. The group keeps it.
type parked struct {
	msg      transport.Message
	size     int
	attempt  int
	token    uint64        // of the last delivery
	holder   *subscription // nil unless it is under way
	deadline time.Duration
}

const firstToken = 1

// available reports whether Receive has something to return.
func (g *group) available() bool {
	return len(g.ready) > 0 || g.lost > 0 || g.foreign || g.next < g.topic.log.next && !g.overfull()
}

// overfull reports whether the group keeps as many messages outside the log as
// the log may hold.
func (g *group) overfull() bool {
	cfg := g.topic.cfg
	return len(g.parked) >= cfg.maxMessages || g.bytes >= cfg.maxBytes
}

// skip moves over the next message, which is lost to the group.
func (g *group) skip() {
	g.next++
	g.lost++
	g.topic.stats.Lost++
}

// park takes message i out of the flight, where run k holds it, into the
// group's own keeping. Its delivery goes on.
func (g *group) park(k int, i uint64) *parked {
	r := g.flight[k]
	log := &g.topic.log
	p := &parked{msg: *log.at(i), size: log.size(i, i+1), attempt: 1, token: firstToken, holder: r.holder, deadline: r.deadline}
	g.flight.cut(k, i, i+1)
	if g.parked == nil {
		g.parked = make(map[uint64]*parked)
	}
	g.parked[i] = p
	g.bytes += p.size
	return p
}

// keep is called before message i leaves the log.
func (g *group) keep(i uint64) {
	if len(g.flight) > 0 && g.flight[0].first == i {
		g.park(0, i)
	}
}

// A first delivery is young for this long.
const young = 10 * time.Millisecond

// holdsYoung reports whether message i was given to the group a moment ago and
// is not settled.
func (g *group) holdsYoung(i uint64) bool {
	if len(g.flight) == 0 || g.flight[0].first != i {
		return false
	}
	r := &g.flight[0]
	return clock() < r.deadline-r.holder.lease+young
}

// settle marks messages a to b-1 of run k done.
func (g *group) settle(k int, a, b uint64) {
	g.flight[k].holder.drop(int(b-a), g.topic.log.size(a, b))
	g.flight.cut(k, a, b)
}

// settleParked marks a parked message done.
func (g *group) settleParked(i uint64, p *parked) {
	p.holder.drop(1, p.size)
	g.bytes -= p.size
	delete(g.parked, i)
}

// giveBack makes a parked message deliverable again after delay.
func (g *group) giveBack(i uint64, p *parked, delay, now time.Duration) {
	p.holder.drop(1, p.size)
	p.holder = nil
	if delay <= 0 {
		g.ready.push(0, i)
		return
	}
	g.delayed.push(after(now, delay), i)
	g.arm(after(now, delay), now)
}

// giveBackRun parks the messages of run k and makes them deliverable again.
func (g *group) giveBackRun(k int, now time.Duration) {
	for r := g.flight[k]; r.first < r.end; r.end-- {
		g.giveBack(r.end-1, g.park(k, r.end-1), 0, now)
	}
}

// limit keeps the flight short.
func (g *group) limit() {
	for len(g.flight) > maxRuns {
		for r := g.flight[0]; r.first < r.end; r.end-- {
			g.park(0, r.end-1)
		}
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
		g.ready.push(0, g.delayed.pop())
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
	lapsed := func(deadline time.Duration) bool {
		if deadline <= now {
			return true
		}
		if next == 0 || deadline < next {
			next = deadline
		}
		return false
	}
	n := len(g.ready)
	for i, p := range g.parked {
		if p.holder != nil && lapsed(p.deadline) {
			g.giveBack(i, p, 0, now)
		}
	}
	for k := len(g.flight) - 1; k >= 0; k-- {
		if lapsed(g.flight[k].deadline) {
			g.giveBackRun(k, now)
		}
	}
	g.topic.stats.Lapsed += uint64(len(g.ready) - n)
	return next
}

// leave gives back what s holds.
func (g *group) leave(s *subscription, now time.Duration) {
	for i, p := range g.parked {
		if p.holder == s {
			g.giveBack(i, p, 0, now)
		}
	}
	for k := len(g.flight) - 1; k >= 0; k-- {
		if g.flight[k].holder == s {
			g.giveBackRun(k, now)
		}
	}
}
