package redisstream

import (
	"sync"
	"time"
)

type groupName struct{ topic, group string }

// group is what the members of one group in this process share: when to look
// for what is due, and who is free to take it.
type group struct {
	t *Transport

	mu    sync.Mutex // guards the rest
	users int
	dirty bool          // something is due
	next  time.Duration // when to look for what others left
	at    time.Duration // when timer fires; 0 when it will not
	timer *time.Timer
	idle  []*job // reads that block
}

// A group looks for what is due at least so often.
const sweepEvery = 1040 * time.Millisecond

// join returns the group of this name, which its user leaves.
func (t *Transport) join(name groupName) *group {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[name]
	if g == nil {
		g = &group{t: t}
		t.groups[name] = g
	}
	g.users++
	return g
}

func (t *Transport) leave(name groupName, g *group) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g.users--; g.users > 0 {
		return
	}
	delete(t.groups, name)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
}

// due reports whether a member should look for what is due, and claims the
// turn for it. Otherwise j, if not nil, becomes an idle read, which lasts
// until the returned time at most.
func (g *group) due(now time.Duration, j *job) (turn bool, until time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirty || now >= g.next {
		g.dirty, g.next = false, now+sweepEvery
		return true, 0
	}
	if j != nil {
		g.idle = append(g.idle, j)
	}
	return false, g.next
}

// busy takes j out of the idle reads.
func (g *group) busy(j *job) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, o := range g.idle {
		if o == j {
			g.idle = append(g.idle[:i], g.idle[i+1:]...)
			return
		}
	}
}

// again notes that something is still due.
func (g *group) again() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirty = true
}

// poke notes that something is due and wakes a member that waits.
func (g *group) poke() {
	g.mu.Lock()
	g.dirty = true
	var j *job
	if len(g.idle) > 0 {
		j = g.idle[0]
		g.idle = append(g.idle[:0], g.idle[1:]...)
	}
	g.mu.Unlock()
	if j != nil {
		g.t.spawn(func() { j.s.reader.wakeUntil(j.done, time.Second) })
	}
}

// pokeAfter pokes after d.
func (g *group) pokeAfter(d time.Duration) {
	at := clock() + d
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at != 0 && g.at <= at {
		return
	}
	g.at = at
	if g.timer == nil {
		g.timer = time.AfterFunc(d, func() {
			g.mu.Lock()
			g.at = 0
			g.mu.Unlock()
			g.poke()
		})
	} else {
		g.timer.Reset(d)
	}
}

// spawn runs f in a goroutine that Close waits for, or not at all when the
// transport is closed.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.work.Go(f)
	return true
}
