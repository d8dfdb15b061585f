package wsstream

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/echobus/echo/transport"
)

// Handler is the server half: an [http.Handler] that serves the topics of a
// transport to WebSocket clients. It is safe for concurrent use.
type Handler struct {
	t        transport.Transport
	id       string // among the handlers over a transport
	cfg      serverConfig
	err      error
	ctx      context.Context // of what is done behind, until Close
	cancel   context.CancelFunc
	work     sync.WaitGroup
	window   window
	turns    turns // of subscriptions that read on their own
	looks    turns // for messages that are sent again
	inspects turns // for questions
	inboxes  int   // of hubs, those of topics for replies; mu guards it
	count    counters

	mu       sync.Mutex // guards the rest
	conns    map[*conn]struct{}
	opening  int // upgraded, before their hello
	sessions map[string]*session
	hubs     map[string]*hub
	places   tally[netip.Prefix] // of links, those included that are opening
	subjects tally[string]       // of links
	kicks    int
	draining bool
	closed   bool
	sweeping bool
}

// NewHandler returns a handler that serves t. It does not close t, and does no
// I/O before the first request. A wrong option makes every request fail;
// [Handler.Err] tells.
func NewHandler(t transport.Transport, opts ...HandlerOption) *Handler {
	h := &Handler{
		t: t, id: random(), cfg: serverDefaults(),
		conns: make(map[*conn]struct{}), sessions: make(map[string]*session), hubs: make(map[string]*hub),
	}
	for _, o := range opts {
		o.handler(&h.cfg)
	}
	h.err = h.cfg.check()
	h.places.most, h.subjects.most = h.cfg.maxPlace, h.cfg.maxSubject
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.window.init(h.cfg.window)
	h.turns.free = make(chan struct{}, h.cfg.readers)
	h.looks.free = make(chan struct{}, h.cfg.readers)
	h.inspects.free = make(chan struct{}, h.cfg.readers)
	return h
}

// Err returns what is wrong with the options given to NewHandler, or nil.
func (h *Handler) Err() error { return h.err }

// ServeHTTP upgrades a request to a WebSocket link and returns; the link goes
// on until it ends or [Handler.Close].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		h.cfg.logger.Error("wsstream: the handler has wrong options", "error", h.err)
		return
	}
	if !h.originAllowed(r) {
		http.Error(w, "this origin is not allowed", http.StatusForbidden)
		return
	}
	protocol, token, err := offered(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if token == "" && h.cfg.queryToken != "" {
		token = r.URL.Query().Get(h.cfg.queryToken)
	}
	place, ok := h.enter(w, r)
	if !ok {
		return
	}
	hj := &hijacker{ResponseWriter: w, stall: h.cfg.stall}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       []string{protocol},
		InsecureSkipVerify: true, // of the origin, which was looked at
		CompressionMode:    websocket.CompressionDisabled,
	})
	if err != nil { // and the response is written
		h.leave(place)
		return
	}
	ws.SetReadLimit(int64(h.cfg.helloBytes))
	c := newConn(h, ws, hj.link, codecOf(protocol))
	c.token, c.place = token, place
	c.request = r.Clone(context.WithoutCancel(r.Context()))
	c.request.Body = nil
	hj.link.SetReadDeadline(time.Now().Add(h.cfg.hello))
	if !h.spawn(c.serve) {
		ws.CloseNow()
		h.leave(place)
	}
}

// offered returns the sub-protocol to speak, and the token that was offered
// beside it or in a header.
func offered(r *http.Request) (protocol, token string, err error) {
	tokens := 0
	for _, v := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(v, ",") {
			p = strings.TrimSpace(p)
			switch {
			case protocol == "" && codecOf(p) != nil:
				protocol = p
			case strings.HasPrefix(p, bearerPrefix):
				b, err := base64.RawURLEncoding.DecodeString(p[len(bearerPrefix):])
				if err != nil {
					return "", "", errors.New("the token in Sec-WebSocket-Protocol is not base64url without padding")
				}
				token = string(b)
				tokens++
			}
		}
	}
	if protocol == "" {
		return "", "", fmt.Errorf("offer the WebSocket sub-protocol %s or %s", protocolJSON, protocolBinary)
	}
	if a := r.Header.Get("Authorization"); a != "" {
		scheme, t, _ := strings.Cut(a, " ")
		if strings.EqualFold(scheme, "Bearer") {
			token = strings.TrimSpace(t)
			tokens++
		}
	}
	if tokens > 1 {
		return "", "", errors.New("more than one token")
	}
	return protocol, token, nil
}

// originAllowed reports whether the page that asks may. Programs send no
// origin; that they may is not a matter of origins.
func (h *Handler) originAllowed(r *http.Request) bool {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 || h.cfg.anyOrigin {
		return true
	}
	if len(origins) > 1 {
		return false
	}
	o, err := normalOrigin(origins[0])
	if err != nil {
		return false
	}
	if slices.Contains(h.cfg.origins, o) {
		return true
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	same, err := normalOrigin(scheme + "://" + r.Host)
	return err == nil && h.cfg.sameOrigin && o == same
}

// normalOrigin returns scheme, host and port in the one form that is compared.
func normalOrigin(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", err
	}
	port := u.Port()
	switch scheme := strings.ToLower(u.Scheme); {
	case u.Host == "" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("origin %q is not scheme://host[:port]", s)
	case scheme == "http":
		port = orElse(port, "80")
	case scheme == "https":
		port = orElse(port, "443")
	case port == "":
		return "", fmt.Errorf("origin %q has no port", s)
	}
	return strings.ToLower(u.Scheme) + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// enter counts a link that has yet to say hello, and from where it comes, if
// there may be one more. If not, it answers the request.
func (h *Handler) enter(w http.ResponseWriter, r *http.Request) (netip.Prefix, bool) {
	var place netip.Prefix
	if h.cfg.maxPlace > 0 {
		place = address(r, h.cfg.proxies)
	}
	if !h.admit(place) {
		h.count.refused.Add(1)
		w.Header().Set("Retry-After", fmt.Sprint(1+mrand.IntN(10)))
		http.Error(w, "no more links now", http.StatusServiceUnavailable)
		return place, false
	}
	return place, true
}

func (h *Handler) admit(place netip.Prefix) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.draining || len(h.conns)+h.opening >= h.cfg.maxLinks || h.opening >= h.cfg.maxOpening || !h.places.add(place) {
		return false
	}
	h.opening++
	if !h.sweeping {
		h.sweeping = true
		h.work.Go(h.sweep)
		if h.cfg.kicks != "" {
			h.work.Go(h.follow)
		}
	}
	return true
}

// leave forgets a link that was let in and came to nothing.
func (h *Handler) leave(place netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opening--
	h.places.remove(place)
}

// gone forgets a link that had said hello.
func (h *Handler) gone(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
	h.places.remove(c.place)
	if c.counted {
		h.subjects.remove(c.subject)
	}
}

// opened takes a link into use that said hello, unless there may be no more of
// its subject, or somebody was kicked since it was asked who the client is.
// Either way it is no longer one that is opening.
// old is the link whose session it took.
func (h *Handler) opened(c *conn, kicks int, old *conn) (Code, websocket.StatusCode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opening--
	switch {
	case h.closed || h.draining:
		return CodeShuttingDown, closeDrain
	case h.kicks != kicks:
		return CodeOverloaded, closeOverloaded // and is asked again on its next link
	case c.subject == "":
	case old != nil && old.counted:
		old.counted, c.counted = false, true
	case !h.subjects.add(c.subject):
		return CodeTooMany, closeOverloaded
	default:
		c.counted = true
	}
	h.conns[c] = struct{}{}
	h.count.opened.Add(1)
	return 0, 0
}

// spawn runs f in a goroutine that Close waits for, unless the handler is closed.
func (h *Handler) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.work.Go(f)
	return true
}

// begin makes Close wait for a Done of work, unless the handler is closed.
func (h *Handler) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.work.Add(1)
	}
	return !h.closed
}

// behind runs f in a goroutine that Close waits for, or here if it is closing.
func (h *Handler) behind(f func()) {
	if !h.spawn(f) {
		f()
	}
}

// sweep sees, once a second or more often, to what is due for links, sessions and hubs.
func (h *Handler) sweep() {
	tick := time.NewTicker(max(10*time.Millisecond, min(time.Second, h.cfg.ping/4, h.cfg.pong/4, h.cfg.hold)))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-h.ctx.Done():
			return
		}
		now := time.Now()
		h.mu.Lock()
		conns := make([]*conn, 0, len(h.conns))
		for c := range h.conns {
			conns = append(conns, c)
		}
		sessions := make([]*session, 0, len(h.sessions))
		for _, s := range h.sessions {
			sessions = append(sessions, s)
		}
		var idle []*hub
		for name, b := range h.hubs {
			if b.idle(now) {
				h.removeHub(name)
				idle = append(idle, b)
			}
		}
		h.mu.Unlock()
		for _, c := range conns {
			c.sweep(now)
		}
		for _, s := range sessions {
			if s.expired(now) {
				h.forget(s)
				h.behind(s.end)
			} else {
				s.prune(now)
			}
		}
		for _, b := range idle {
			h.behind(b.close)
		}
	}
}

// session finds the one that a client wants to resume, and takes it out of
// its former link. The client must know its secret and be the same subject.
func (h *Handler) resume(secret, subject string) *session {
	id, key, _ := strings.Cut(secret, ".")
	h.mu.Lock()
	s := h.sessions[id]
	h.mu.Unlock()
	if s == nil || subtle.ConstantTimeCompare([]byte(s.key), []byte(key)) == 0 || s.subject != subject {
		return nil
	}
	return s
}

// newSession makes a session of a link, with a secret of its own.
func (h *Handler) newSession(subject string, c *conn) *session {
	s := &session{h: h, id: random(), key: random(), subject: subject, c: c, groups: make(map[uint64]*groupSub)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[s.id] = s
	return s
}

func random() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// forget removes a session that was ended.
func (h *Handler) forget(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[s.id] == s {
		delete(h.sessions, s.id)
	}
}

// closing reports whether Close was called.
func (h *Handler) closing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// links is how many links are open now.
func (h *Handler) links() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

// kicked is how often somebody was kicked.
func (h *Handler) kicked() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.kicks
}

// Kick closes the links of clients for which match returns true, and ends
// their sessions, so that they cannot go on without authenticating again. It
// returns how many links it closed. Links that are just being opened are asked
// to come again.
func (h *Handler) Kick(match func(subject string) bool) int {
	h.mu.Lock()
	h.kicks++
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	sessions := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		sessions = append(sessions, s)
	}
	h.mu.Unlock()
	n := 0
	for _, c := range conns {
		if match(c.subject) {
			c.close(closeRevoked, "revoked")
			n++
		}
	}
	for _, s := range sessions {
		if match(s.subject) {
			h.forget(s)
			h.behind(s.end)
		}
	}
	return n
}

// Drain refuses new clients, and asks all that are here to go elsewhere, each
// at a random moment within window; links that are still there then it closes.
// Streams of events, which cannot go by themselves, it closes at random moments.
// It returns when no link is left or ctx ends. Close is to follow.
func (h *Handler) Drain(ctx context.Context, window time.Duration) error {
	h.mu.Lock()
	h.draining = true
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	for _, c := range conns {
		c.out.send(frame{Type: frameDrain, Within: milliseconds(window)})
		at := window
		if c.stream {
			at = time.Duration(mrand.Int64N(max(1, int64(window))))
		}
		h.spawn(func() {
			t := time.NewTimer(at)
			defer t.Stop()
			select {
			case <-t.C:
			case <-c.done:
			case <-h.ctx.Done():
			}
			c.close(closeDrain, "going away")
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for h.links() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// Close closes every link and subscription, gives back what groups held, and
// waits until that is done. It does not close the transport.
func (h *Handler) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		h.work.Wait()
		return nil
	}
	h.closed = true
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	for _, c := range conns {
		c.close(closeDrain, "going away")
	}
	h.mu.Lock()
	sessions, hubs := h.sessions, h.hubs
	h.sessions, h.hubs, h.inboxes = map[string]*session{}, map[string]*hub{}, 0
	h.mu.Unlock()
	var closing sync.WaitGroup
	for _, s := range sessions {
		closing.Go(s.end)
	}
	for _, b := range hubs {
		closing.Go(b.close)
	}
	closing.Wait()
	h.cancel()
	h.work.Wait()
	return nil
}

// serverConfig is what options set.
type serverConfig struct {
	logger     *slog.Logger
	origins    []string
	sameOrigin bool
	anyOrigin  bool
	authorize  Authorizer
	anonymous  *Grant
	queryToken string
	kicks      string // the topic

	maxMessage, helloBytes, maxFrames int
	maxSubs, maxPublish, maxHeld      int
	maxDelay                          time.Duration
	maxLinks, maxOpening              int
	maxPlace, maxSubject, maxTopics   int
	proxies                           []netip.Prefix
	rate, burst                       int // frames a second, 0 for any; and at once
	hello, message, stall, ping, pong time.Duration
	hold, linger, sendFor             time.Duration
	window, ringMessages, ringBytes   int
	readers                           int
	errs                              []error
}

func serverDefaults() serverConfig {
	return serverConfig{
		logger: slog.New(slog.DiscardHandler), sameOrigin: true,
		anonymous:  &Grant{Subscribe: func(_, group string) bool { return group == "" }},
		maxMessage: 2 << 20, helloBytes: 16 << 10, maxFrames: 1024,
		maxSubs: 128, maxPublish: 1024, maxHeld: 1 << 16, maxDelay: 30 * 24 * time.Hour,
		maxLinks: math.MaxInt, maxOpening: 1024, maxTopics: 4096,
		hello: 5 * time.Second, message: 10 * time.Second, stall: 4 * time.Second, ping: 25 * time.Second, pong: 10 * time.Second,
		hold: 10 * time.Second, linger: 30 * time.Second, sendFor: 10 * time.Second,
		window: 1 << 16, ringMessages: 1 << 16, ringBytes: 4 << 20,
		readers: 32,
	}
}

func (c *serverConfig) check() error {
	for i, o := range c.origins {
		n, err := normalOrigin(o)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("WithOrigins: %w", err))
			continue
		}
		c.origins[i] = n
	}
	if err := errors.Join(c.errs...); err != nil {
		return fmt.Errorf("wsstream: %w", err)
	}
	return nil
}

// What a client may do wrong: mistakes weigh more than being refused.
const (
	mistake     = 16
	refusal     = 1
	mistakeMost = 256
)

// closeGrace is how long a client may take to answer a close frame.
const closeGrace = 2 * time.Second
