package wsstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"
)

// HandlerOption is an option of [NewHandler].
type HandlerOption interface{ handler(*serverConfig) }

// DialOption is an option of [Dial].
type DialOption interface{ dial(*clientConfig) }

// Option is an option of both.
type Option interface {
	HandlerOption
	DialOption
}

type handlerOption func(*serverConfig)

func (f handlerOption) handler(c *serverConfig) { f(c) }

type dialOption func(*clientConfig)

func (f dialOption) dial(c *clientConfig) { f(c) }

type loggerOption struct{ l *slog.Logger }

func (o loggerOption) handler(c *serverConfig) { c.logger = o.orNone() }
func (o loggerOption) dial(c *clientConfig)    { c.logger = o.orNone() }

func (o loggerOption) orNone() *slog.Logger {
	if o.l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.l
}

// WithLogger sets who is told of what deserves attention. By default nobody is.
func WithLogger(l *slog.Logger) Option { return loggerOption{l} }

// WithOrigins allows pages of these origins, scheme://host[:port], besides the
// handler's own. Default ports may be left out; there are no patterns.
func WithOrigins(origins ...string) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.origins = append(c.origins, origins...) })
}

// WithInsecureAnyOrigin lets pages of every origin open links with the cookies
// that their browser has for this host. Only what Authorizer asks for beside
// cookies stands against hostile pages then.
func WithInsecureAnyOrigin() HandlerOption {
	return handlerOption(func(c *serverConfig) { c.anyOrigin = true })
}

// WithAuthorizer says who clients are and what they may do. Without it, all are
// anonymous: they may read every topic, and neither publish nor join groups,
// see [WithAnonymous].
func WithAuthorizer(a Authorizer) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		if c.authorize = a; a == nil { // which would let everybody read
			c.errs = append(c.errs, errors.New("WithAuthorizer: nil"))
		}
	})
}

// WithAnonymous says what clients may do where there is no Authorizer; nil: they
// are not let in.
func WithAnonymous(g *Grant) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.anonymous = g })
}

// WithInsecureQueryToken also takes tokens from a parameter of the URL. URLs are
// written to logs by servers and proxies, and tokens with them.
func WithInsecureQueryToken(parameter string) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.queryToken = parameter })
}

// WithMaxMessage bounds a WebSocket message that a client sends, in bytes, and
// so the messages it publishes; the default is 2 MiB.
func WithMaxMessage(bytes int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxMessage", bytes, 1024, &c.maxMessage) })
}

// WithMaxLinks bounds the links that are open at a time; by default memory does.
func WithMaxLinks(n int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxLinks", n, 1, &c.maxLinks) })
}

// WithMaxLinksPerSubject bounds the links that one [Grant.Subject] has open at a
// time; by default there is no bound. A link that takes over the session of
// another counts as that one. Anonymous clients have no subject.
func WithMaxLinksPerSubject(n int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxLinksPerSubject", n, 1, &c.maxSubject) })
}

// WithMaxLinksPerAddress bounds the links from one address of IPv4, or 64 bits
// of IPv6, those included that have not said hello; by default there is no
// bound. Requests from proxies, which are given as the networks that they are
// in, count as from where the X-Forwarded-For header says, as far as proxies
// wrote it; that of others is not looked at.
func WithMaxLinksPerAddress(n int, proxies ...netip.Prefix) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		c.bound("WithMaxLinksPerAddress", n, 1, &c.maxPlace)
		c.proxies = proxies
	})
}

// WithMaxTopics bounds the topics that are read for clients at a time; the
// default is 4,096. Over Redis each takes a connection.
func WithMaxTopics(n int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxTopics", n, 1, &c.maxTopics) })
}

// WithMaxPublish bounds the messages of a link that are being published at a
// time; the default is 1,024.
func WithMaxPublish(n int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxPublish", n, 1, &c.maxPublish) })
}

// WithMaxDelay bounds for how long clients may have a message delayed; the
// default is 30 days. One that is to come later is refused.
func WithMaxDelay(d time.Duration) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.positive("WithMaxDelay", d, &c.maxDelay) })
}

// WithMaxSubscriptions bounds the subscriptions of a link; the default is 128.
func WithMaxSubscriptions(n int) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.bound("WithMaxSubscriptions", n, 1, &c.maxSubs) })
}

// WithHeartbeat sets after how long without a sign of life a client is asked
// for one, and how much later its link is given up; 25 s and 10 s by default.
func WithHeartbeat(ping, pong time.Duration) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		c.positive("WithHeartbeat", ping, &c.ping)
		c.positive("WithHeartbeat", pong, &c.pong)
	})
}

// WithRate bounds the frames that a link may send, on average and at once. One
// that sends more is not read from until it may again, so it slows down. By
// default a link is as fast as the server takes what it sends.
func WithRate(perSecond, burst int) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		c.bound("WithRate", perSecond, 1, &c.rate)
		c.bound("WithRate", burst, 1, &c.burst)
	})
}

// WithHold sets how long what a client holds of groups is kept for it when its
// link breaks, before others get it; 10 s by default.
func WithHold(d time.Duration) HandlerOption {
	return handlerOption(func(c *serverConfig) { c.positive("WithHold", d, &c.hold) })
}

// WithRing bounds what is kept of each topic that clients read, to serve all of
// them, and those that reconnect, from one reading: 65,536 messages and 4 MiB by
// default. Who is farther behind is served by a reading of his own.
func WithRing(messages, bytes int) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		c.bound("WithRing", messages, 1, &c.ringMessages)
		c.bound("WithRing", bytes, 1, &c.ringBytes)
	})
}

func (c *serverConfig) bound(option string, n, least int, to *int) {
	if n < least {
		c.errs = append(c.errs, fmt.Errorf("%s: %d is less than %d", option, n, least))
		return
	}
	*to = n
}

func (c *serverConfig) positive(option string, d time.Duration, to *time.Duration) {
	if d <= 0 {
		c.errs = append(c.errs, fmt.Errorf("%s: %v is not positive", option, d))
		return
	}
	*to = d
}

// WithToken sends a token with each connect. f is called before each, and when
// the server says that the token is about to expire.
func WithToken(f TokenFunc) DialOption {
	return dialOption(func(c *clientConfig) { c.token = f })
}

// WithHTTPClient sets what makes the connections, such as one with a proxy or a
// certificate. It must not have a timeout.
func WithHTTPClient(hc *http.Client) DialOption {
	return dialOption(func(c *clientConfig) { c.http = hc })
}

// WithHeader adds headers to the request that opens a link.
func WithHeader(h http.Header) DialOption {
	return dialOption(func(c *clientConfig) { c.header = h })
}

// WithJSON speaks the JSON form of the protocol, which is easier to look at and
// slower.
func WithJSON() DialOption {
	return dialOption(func(c *clientConfig) { c.protocol = protocolJSON })
}

// WithBackoff sets how long to wait between attempts to connect: a random time
// up to first, that doubles up to last; 250 ms and 20 s by default.
func WithBackoff(first, last time.Duration) DialOption {
	return dialOption(func(c *clientConfig) {
		if first <= 0 || last < first {
			c.errs = append(c.errs, fmt.Errorf("WithBackoff(%v, %v): want 0 < first ≤ last", first, last))
			return
		}
		c.first, c.last = first, last
	})
}

// WithState is told when the link goes up and down, one state after another and
// in order. The transport does not wait for f, which may close it.
func WithState(f func(State)) DialOption {
	return dialOption(func(c *clientConfig) { c.state = f })
}
