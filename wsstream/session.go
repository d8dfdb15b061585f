package wsstream

import (
	"sync"
	"time"
)

// session is what outlives a link: the group subscriptions of a client, with
// what it holds, for as long as the handler holds them.
type session struct {
	h       *Handler
	id, key string
	subject string

	mu     sync.Mutex // guards the rest
	c      *conn      // nil while there is no link
	groups map[uint64]*groupSub
	until  time.Time // when it ends unless a link comes
	over   bool
}

// attach gives a session to a link, and takes it from its former one, which it
// returns. It reports false if the session has ended.
func (s *session) attach(c *conn) (old *conn, ok bool) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return nil, false
	}
	old = s.c
	s.c = c
	groups := make([]*groupSub, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	s.mu.Unlock()
	for _, g := range groups {
		g.pause(old)
	}
	if old != nil {
		old.close(closeReplaced, "resumed by another link")
	}
	return old, true
}

// detach takes a session from a link that ended, and reports whether it is of
// no more use.
func (s *session) detach(c *conn) bool {
	s.mu.Lock()
	if s.c != c {
		s.mu.Unlock()
		return false
	}
	s.c = nil
	s.until = time.Now().Add(s.h.cfg.hold)
	s.over = s.over || len(s.groups) == 0
	over := s.over
	groups := make([]*groupSub, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	s.mu.Unlock()
	for _, g := range groups {
		g.pause(c)
	}
	return over
}

// retire notes that nobody will come back for a session, if c has it.
func (s *session) retire(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == c {
		s.over = true
	}
}

// expired ends a session that no link came for in time, and reports whether it did.
func (s *session) expired(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil && !s.until.IsZero() && now.After(s.until) {
		s.over = true
		return true
	}
	return false
}

// prune ends subscriptions that the link which took the session over did not
// take up, and forgets deliveries whose leases ended long ago.
func (s *session) prune(now time.Time) {
	s.mu.Lock()
	linked := s.c != nil
	var forgotten, kept []*groupSub
	for sid, g := range s.groups {
		if linked && g.forgotten(now) {
			delete(s.groups, sid)
			forgotten = append(forgotten, g)
		} else {
			kept = append(kept, g)
		}
	}
	s.mu.Unlock()
	for _, g := range forgotten {
		s.h.behind(g.close)
	}
	for _, g := range kept {
		g.prune(now)
	}
}

// end gives back what the session holds.
func (s *session) end() {
	s.mu.Lock()
	s.over = true
	groups := s.groups
	s.groups = map[uint64]*groupSub{}
	s.mu.Unlock()
	var closing sync.WaitGroup
	for _, g := range groups {
		closing.Go(g.close)
	}
	closing.Wait()
}

// groupOf returns a subscription, if the session is the link's.
func (s *session) groupOf(c *conn, sid uint64) *groupSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != c {
		return nil
	}
	return s.groups[sid]
}

func (s *session) all() []*groupSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*groupSub, 0, len(s.groups))
	for _, g := range s.groups {
		all = append(all, g)
	}
	return all
}

// resume gives a subscription to a link that has the session, if there is one
// of this number that is what f asks for. One that is not ends.
func (s *session) resume(c *conn, f *frame) bool {
	s.mu.Lock()
	g := s.groups[f.Sid]
	if s.c != c || g == nil {
		s.mu.Unlock()
		return false
	}
	if g.topic == f.Topic && g.name == f.Group {
		g.resume(c, f)
		s.mu.Unlock()
		return true
	}
	delete(s.groups, f.Sid)
	s.mu.Unlock()
	s.h.behind(g.close)
	return false
}

// put adds a subscription, if the link still has the session.
func (s *session) put(c *conn, g *groupSub) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.c != c {
		return false
	}
	s.groups[g.sid] = g
	return true
}

// take takes a subscription out of the session, if that is the link's.
func (s *session) take(c *conn, sid uint64) *groupSub {
	s.mu.Lock()
	g := s.groups[sid]
	if s.c != c || g == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.groups, sid)
	s.mu.Unlock()
	g.pause(c) // nothing more comes of it
	return g
}

// drop ends a subscription, if the session is the link's.
func (s *session) drop(c *conn, sid uint64) {
	if g := s.take(c, sid); g != nil {
		s.h.behind(g.close)
	}
}

// remove takes a subscription out of the session and reports whether it was there.
func (s *session) remove(g *groupSub) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups[g.sid] != g {
		return false
	}
	delete(s.groups, g.sid)
	return true
}
