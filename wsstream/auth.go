package wsstream

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/echobus/echo/transport"
)

// Authorizer says who a client is and what it may do. token is what the client
// sent in its Authorization header, as an entry of Sec-WebSocket-Protocol, or
// in its first frame; it is empty if it sent none. r is the request that opened
// the link, with cookies and other headers, without a body; it came from an
// allowed origin. It is called again when the client sends a fresh token on the
// open link.
//
// An error refuses the client; what it says goes to the log and not to the
// client. One that wraps [ErrNoToken] tells the client that it needs a token.
type Authorizer func(ctx context.Context, r *http.Request, token string) (*Grant, error)

// ErrNoToken says that a client must send a token.
var ErrNoToken = errors.New("no token")

// Grant is what a client may do. A nil function allows nothing. The functions
// are called for each subscription and again when it is resumed, and for each
// publish; they must be quick, and safe for concurrent use. One that panics
// allows nothing.
type Grant struct {
	// Subject is who the client is: what Kick goes by, and whose sessions it may
	// resume. Empty for anonymous clients.
	Subject string
	// Expires is when the grant ends, zero for never. A link is closed then
	// unless a fresh token came.
	Expires time.Time
	// Subscribe says whether the client may read a topic: all of it if group is
	// empty, or as a member of a group, which takes messages from other members.
	Subscribe func(topic, group string) bool
	// Publish says whether the client may publish to a topic.
	Publish func(topic string) bool
}

// Everything is a grant to do everything, for programs that are trusted.
func Everything(subject string) *Grant {
	return &Grant{
		Subject:   subject,
		Subscribe: func(string, string) bool { return true },
		Publish:   func(string) bool { return true },
	}
}

// maySubscribe reports whether a client may read a topic.
func (h *Handler) maySubscribe(g *Grant, topic, group string) bool {
	if transport.IsInbox(topic) {
		return group == "" && g.some()
	}
	return topic != h.cfg.kicks && g.Subscribe != nil && h.asks(func() bool { return g.Subscribe(topic, group) })
}

// mayPublish reports whether a client may publish to a topic.
func (h *Handler) mayPublish(g *Grant, topic string) bool {
	if transport.IsInbox(topic) {
		return g.some()
	}
	return topic != h.cfg.kicks && g.Publish != nil && h.asks(func() bool { return g.Publish(topic) })
}

// some reports whether a client may do anything at all. Such a one may ask, and
// answer: it receives replies in a topic whose name nobody can guess, and whoever
// knows that name was asked.
func (g *Grant) some() bool { return g.Subscribe != nil || g.Publish != nil }

// asks asks the application. Where it is asked, a panic would end the process,
// and not just a request.
func (h *Handler) asks(f func() bool) (may bool) {
	defer func() {
		if p := recover(); p != nil {
			h.panicked(p)
			may = false
		}
	}()
	return f()
}

func (h *Handler) panicked(p any) {
	h.cfg.logger.Error("wsstream: a function of the application panicked", "panic", p, "stack", string(debug.Stack()))
}

func (g *Grant) expired(now time.Time) bool { return !g.Expires.IsZero() && !now.Before(g.Expires) }

// ttl is how long a grant lasts, in milliseconds, 0 for ever.
func (g *Grant) ttl(now time.Time) uint64 {
	if g.Expires.IsZero() {
		return 0
	}
	return max(1, milliseconds(g.Expires.Sub(now)))
}

// authorize asks who a client is.
func (h *Handler) authorize(ctx context.Context, r *http.Request, token string) (g *Grant, code Code) {
	if h.cfg.authorize == nil {
		if h.cfg.anonymous == nil {
			return nil, CodeNoToken
		}
		return h.cfg.anonymous, 0
	}
	defer func() {
		if p := recover(); p != nil {
			h.panicked(p)
			g, code = nil, CodeInternal
		}
	}()
	g, err := h.cfg.authorize(ctx, r, token)
	switch {
	case errors.Is(err, ErrNoToken):
		return nil, CodeNoToken
	case err != nil || g == nil:
		h.cfg.logger.Warn("wsstream: a client was refused", "error", err)
		return nil, CodeBadToken
	case g.expired(time.Now()):
		return nil, CodeExpired
	}
	return g, 0
}
