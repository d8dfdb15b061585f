package wsstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/echobus/echo/transport"
)

// Events returns a handler that serves topics as server-sent events, to read
// only, where a network lets no WebSocket through. It belongs to h: the same
// rights, limits, positions and Close.
//
// A request names its topic and, if it wants, its start, as [the protocol] does:
//
//	GET /events?topic=prices&from=oldest
//	GET /events?topic=prices&from=pos&pos=1789-42
//
// Each message is an event "message" whose data is the JSON form of a msg frame
// and whose id is its position; a browser that reconnects sends that as
// Last-Event-ID, and goes on after it. A loss is an event "gap". Before the
// stream ends for a reason there is an event "end" with a code.
//
// [the protocol]: https://github.com/echobus/echo/blob/main/docs/websocket-protocol.md
func (h *Handler) Events() http.Handler { return http.HandlerFunc(h.serveEvents) }

func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	if h.err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET")
		http.Error(w, "events are read with GET", http.StatusMethodNotAllowed)
		return
	}
	if !h.originAllowed(r) {
		http.Error(w, "this origin is not allowed", http.StatusForbidden)
		return
	}
	f, err := eventsRequest(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	place, ok := h.enter(w, r)
	if !ok {
		return
	}
	kicks := h.kicked()
	ctx, cancel := context.WithTimeout(r.Context(), h.cfg.hello)
	g, code := h.authorize(ctx, r, h.tokenOf(r))
	cancel()
	if g == nil || !h.maySubscribe(g, f.Topic, "") {
		h.leave(place)
		h.count.refused.Add(1)
		status := http.StatusUnauthorized
		if g != nil {
			status, code = http.StatusForbidden, CodeForbidden
		}
		http.Error(w, code.String(), status)
		return
	}
	c := &conn{h: h, stream: true, grant: g, subject: g.Subject, place: place}
	c.session = &session{h: h, subject: g.Subject, groups: map[uint64]*groupSub{}}
	ended, end := context.WithCancel(r.Context())
	defer end()
	c.cut = end
	c.part = func(websocket.StatusCode, string) { end() }
	rc := http.NewResponseController(w)
	c.init(eventsCodec{}, func(b []byte) error {
		if err := rc.SetWriteDeadline(time.Now().Add(h.cfg.stall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := w.Write(b[headroom:]); err != nil {
			return err
		}
		return rc.Flush()
	})
	if o := r.Header.Get("Origin"); o != "" {
		w.Header().Set("Access-Control-Allow-Origin", o)
		w.Header().Add("Vary", "Origin")
		if !h.cfg.anyOrigin {
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // or nginx keeps events back
	if !h.begin() {
		h.leave(place)
		http.Error(w, "going away", http.StatusServiceUnavailable)
		return
	}
	defer h.work.Done()
	if code, status := h.opened(c, kicks, nil); status != 0 {
		h.gone(c)
		w.Header().Set("Retry-After", "5")
		http.Error(w, code.String(), http.StatusServiceUnavailable)
		return
	}
	defer c.out.stop() // nothing may be written when this call has returned
	defer c.end()
	if !c.subscribe(f) {
		return
	}
	<-ended.Done()
}

// tokenOf returns the token of a request that is no WebSocket's.
func (h *Handler) tokenOf(r *http.Request) string {
	_, token, err := offered(r)
	if token == "" && h.cfg.queryToken != "" {
		token = r.URL.Query().Get(h.cfg.queryToken)
	}
	_ = err // that no sub-protocol is offered
	return token
}

// eventsRequest is the subscription that a request asks for.
func eventsRequest(r *http.Request) (*frame, error) {
	q := r.URL.Query()
	f := &frame{Type: frameSub, Sid: 1, Topic: q.Get("topic"), ID: q.Get("id")}
	if err := transport.CheckName("topic", f.Topic); err != nil {
		return nil, err
	}
	if err := f.From.UnmarshalText([]byte(q.Get("from"))); err != nil {
		return nil, err
	}
	pos := q.Get("pos")
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		f.From, pos = from(transport.AfterPosition), last
	}
	if f.From == from(transport.AfterPosition) {
		if err := f.Pos.UnmarshalText([]byte(pos)); err != nil {
			return nil, err
		}
	}
	if f.From == from(transport.AtTime) {
		t, err := time.Parse(time.RFC3339Nano, q.Get("time"))
		if err != nil {
			return nil, fmt.Errorf("time %q is not as of RFC 3339", q.Get("time"))
		}
		f.Time = t
	}
	return f, nil
}

// eventsCodec writes frames as server-sent events. Nothing is read.
type eventsCodec struct{}

func (eventsCodec) number() int { return 2 }

func (eventsCodec) append(b []byte, f *frame) []byte {
	switch f.Type {
	case frameMsg:
		b = append(b, "id: "...)
		b = append(b, f.Pos.String()...)
		b = append(b, "\ndata: "...)
	case frameGap:
		b = append(b, "event: gap\nid: "...)
		b = append(b, f.Pos.String()...)
		b = append(b, "\ndata: "...)
	case frameSubOK: // so that a browser knows where it began
		b = append(b, "event: open\nid: "...)
		b = append(b, f.Pos.String()...)
		b = append(b, "\ndata: "...)
	case frameErr, frameSubEnd:
		b = append(b, "event: end\ndata: "...)
	case frameDrain:
		return append(strconv.AppendUint(append(b, "retry: "...), f.Within/2, 10), "\n\n"...)
	case framePing:
		return append(b, ":\n\n"...)
	default:
		return b
	}
	return append(jsonCodec{}.append(b, f), '\n') // after the newline of its own
}

func (eventsCodec) next([]byte, *frame) ([]byte, error) {
	return nil, errors.ErrUnsupported
}
