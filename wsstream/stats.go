package wsstream

import "sync/atomic"

// HandlerStats is what happened at a [Handler] since it was made. All but Links,
// Sessions and Topics are counts.
type HandlerStats struct {
	Links    int // open now
	Sessions int // of clients that are here, or held for them
	Topics   int // read for clients

	Opened     uint64 // links that said hello
	Refused    uint64 // requests and links that were not let in
	Published  uint64 // messages stored for clients
	Duplicates uint64 // messages sent again that were stored before
	Delivered  uint64 // messages written to links
	Resumed    uint64 // links that took up a session
	Errors     uint64 // requests that were answered with an error
	Lost       uint64 // messages that subscriptions were told are lost, where their number is known
}

type counters struct {
	opened, refused, published, duplicates, delivered, resumed, errors, lost atomic.Uint64
}

// Stats returns what happened until now. It is safe for concurrent use.
func (h *Handler) Stats() HandlerStats {
	h.mu.Lock()
	links, sessions, topics := len(h.conns), len(h.sessions), len(h.hubs)
	h.mu.Unlock()
	c := &h.count
	return HandlerStats{
		Links: links, Sessions: sessions, Topics: topics,
		Opened: c.opened.Load(), Refused: c.refused.Load(), Published: c.published.Load(), Duplicates: c.duplicates.Load(),
		Delivered: c.delivered.Load(), Resumed: c.resumed.Load(), Errors: c.errors.Load(), Lost: c.lost.Load(),
	}
}
