package wsstream

import (
	"fmt"
	"maps"
)

// Dump tells what groups are up to.
func (h *Handler) Dump() (s string) {
	h.mu.Lock()
	sessions := maps.Clone(h.sessions)
	h.mu.Unlock()
	for id, x := range sessions {
		x.mu.Lock()
		s += fmt.Sprintf("session %s: link %t, over %t\n", id, x.c != nil, x.over)
		for sid, g := range x.groups {
			g.mu.Lock()
			s += fmt.Sprintf("  %d %s/%s: link %t, credit %d, bytes %d, once %t, n %d, waits %d, held %d, ops %d, returns %d, busy %t\n",
				sid, g.topic, g.name, g.c != nil, g.credit, g.bytes, g.once, g.n, len(g.waits), len(g.held), len(g.ops), g.returns, g.busy)
			g.mu.Unlock()
		}
		x.mu.Unlock()
	}
	return s
}

// Dump tells what subscriptions are up to.
func (t *Transport) Dump() (s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s = fmt.Sprintf("client: link %t, %d calls, %d under way\n", t.link != nil, len(t.calls), t.under)
	for _, c := range t.order {
		s += fmt.Sprintf("  call %d +%d: got %d, %v\n", c.rid, c.count, c.got, c.frames[0].Type)
	}
	for sid, x := range t.subs {
		if m, ok := x.(*member); ok {
			m.mu.Lock()
			s += fmt.Sprintf("  %d: gen %d, seen %d, came %d, asked %d, backs %d, waiting %t, known %t\n", sid, m.gen, m.seen, len(m.came), m.asked, m.backs, m.waiting, m.known)
			m.mu.Unlock()
		}
	}
	return s
}

// Address is where a request comes from, as limits count it.
var Address = address
