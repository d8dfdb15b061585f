package echo

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/echobus/echo/transport"
)

// Limits bound what a message may be, in bytes where nothing else is said.
// They are checked when it is published and again, before decoding, when it
// arrives. A zero field means its default.
type Limits struct {
	Payload     int // encoded value; default 1 MiB
	Key         int // default 1 KiB
	Headers     int // number of headers; default 64
	HeaderName  int // each; default 128
	HeaderValue int // each; default 4 KiB
	HeaderTotal int // names and values together; default 16 KiB
}

const maxID = 128

// WithLimits sets the limits of a bus.
func WithLimits(l Limits) BusOption {
	return busOption(func(c *busConfig) {
		for _, f := range []struct {
			name string
			v    int
			to   *int
		}{
			{"Payload", l.Payload, &c.limits.Payload},
			{"Key", l.Key, &c.limits.Key},
			{"Headers", l.Headers, &c.limits.Headers},
			{"HeaderName", l.HeaderName, &c.limits.HeaderName},
			{"HeaderValue", l.HeaderValue, &c.limits.HeaderValue},
			{"HeaderTotal", l.HeaderTotal, &c.limits.HeaderTotal},
		} {
			switch {
			case f.v < 0:
				c.fail(fmt.Errorf("WithLimits: %s is negative: %d", f.name, f.v))
			case f.v > 0:
				*f.to = f.v
			}
		}
		if l := &c.limits; l.HeaderTotal < l.HeaderValue {
			c.fail(fmt.Errorf("WithLimits: HeaderValue %d exceeds HeaderTotal %d", l.HeaderValue, l.HeaderTotal))
		}
	})
}

func defaultLimits() Limits {
	return Limits{Payload: 1 << 20, Key: 1 << 10, Headers: 64, HeaderName: 128, HeaderValue: 4 << 10, HeaderTotal: 16 << 10}
}

// check returns what of m, its ID apart, is over a limit or not allowed at all.
func (l *Limits) check(m *transport.Message) error {
	if len(m.Data) > l.Payload {
		return tooLarge("payload", len(m.Data), l.Payload)
	}
	if len(m.Key) > l.Key {
		return tooLarge("key", len(m.Key), l.Key)
	}
	if !utf8.ValidString(m.Key) {
		return fmt.Errorf("key %.40q is not UTF-8", m.Key)
	}
	if m.Header == nil {
		return nil
	}
	return l.checkHeader(m.Header)
}

// What echo itself adds to a message does not count, up to this.
const (
	maxOwn        = 4 << 10
	maxOwnHeaders = 16
	maxOwnName    = 64
)

func (l *Limits) checkHeader(header map[string]string) error {
	if n := len(header); n > l.Headers {
		own := 0
		for name := range header {
			if strings.HasPrefix(name, reserved) {
				own++
			}
		}
		if n -= min(own, maxOwnHeaders); n > l.Headers {
			return fmt.Errorf("%w: %d headers, the limit is %d", ErrTooLarge, n, l.Headers)
		}
	}
	total, own := 0, 0
	for name, value := range header {
		if strings.HasPrefix(name, reserved) && len(name) <= maxOwnName && len(value) <= maxOwn && isToken(name) && isText(value) {
			own += len(name) + len(value)
			total += len(name) + len(value)
			continue
		}
		switch {
		case len(name) > l.HeaderName:
			return tooLarge("header name", len(name), l.HeaderName)
		case !isToken(name):
			return fmt.Errorf("header name %q is not a token of letters, digits and !#$%%&'*+-.^_`|~", name)
		case len(value) > l.HeaderValue:
			return tooLarge("header "+name, len(value), l.HeaderValue)
		case !isText(value):
			return fmt.Errorf("header %s: value %.40q is not UTF-8 without control characters", name, value)
		}
		total += len(name) + len(value)
	}
	if total -= min(own, maxOwn); total > l.HeaderTotal {
		return tooLarge("headers", total, l.HeaderTotal)
	}
	return nil
}

func tooLarge(what string, got, limit int) error {
	return fmt.Errorf("%w: %s of %d bytes, the limit is %d", ErrTooLarge, what, got, limit)
}

func checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("message ID is empty")
	case len(id) > maxID:
		return tooLarge("message ID", len(id), maxID)
	case !isText(id):
		return fmt.Errorf("message ID %q is not UTF-8 without control characters", id)
	}
	return nil
}

// isToken reports whether s is a token as RFC 9110, section 5.6.2, defines it
// for the names of headers.
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenByte[s[i]] {
			return false
		}
	}
	return s != ""
}

var tokenByte = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = true
	}
	return t
}()

func isText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}
