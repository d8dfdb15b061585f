package migrate

import (
	"sync"

	"github.com/echobus/echo/transport"
)

// side is one of the two transports of a [Draining].
type side uint8

const (
	fromOld side = iota
	fromNew
)

// marked is the bit of Hi that positions of the new transport have.
const marked = 1 << 63

func mark(p transport.Position) transport.Position {
	p.Hi |= marked
	return p
}

// sideOf returns whose a position is, and what it is there.
func sideOf(p transport.Position) (side, transport.Position) {
	if p.Hi&marked == 0 {
		return fromOld, p
	}
	p.Hi &^= marked
	return fromNew, p
}

// given knows which side gave a message, so that the other one does not. Members
// of a group share it.
type given struct {
	learning chan struct{} // holds a token while somebody learns
	learned  bool          // what the old transport keeps; guarded by learning

	mu  sync.Mutex // guards the rest
	ids [2]ids
}

func newGiven(most int) *given {
	return &given{learning: make(chan struct{}, 1), ids: [2]ids{{most: most}, {most: min(most, recent)}}}
}

// recent is how many IDs of new are remembered, for what comes to old too late.
const recent = 1 << 14

// claim reports whether a message is for this side to give: the other has not.
// It also returns how many IDs of old were forgotten to remember this one.
func (g *given) claim(id string, by side) (ours bool, forgotten int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ids[1-by].has(id) {
		return false, 0
	}
	forgotten = g.ids[by].add(id)
	if by == fromNew {
		forgotten = 0 // as it must be, sooner or later
	}
	return true, forgotten
}

// ids is a set of the IDs that were added last.
type ids struct {
	most int
	set  map[string]struct{}
	ring []string
	next int // the place in a full ring to use again
}

func (s *ids) has(id string) bool {
	_, ok := s.set[id]
	return ok
}

// add reports how many IDs were forgotten: one if the set was full.
func (s *ids) add(id string) (forgotten int) {
	if s.has(id) {
		return 0
	}
	if s.set == nil {
		s.set = make(map[string]struct{})
	}
	s.set[id] = struct{}{}
	if len(s.ring) < s.most {
		s.ring = append(s.ring, id)
		return 0
	}
	delete(s.set, s.ring[s.next])
	s.ring[s.next] = id
	s.next = (s.next + 1) % s.most
	return 1
}
