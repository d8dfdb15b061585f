package echotel

import (
	"cmp"
	"strings"
	"unicode/utf8"

	"github.com/echobus/echo"
)

// withDefaults fills in what the limits of headers are when nobody says.
func withDefaults(l echo.Limits) echo.Limits {
	l.Headers = cmp.Or(l.Headers, 64)
	l.HeaderName = cmp.Or(l.HeaderName, 128)
	l.HeaderValue = cmp.Or(l.HeaderValue, 4<<10)
	l.HeaderTotal = cmp.Or(l.HeaderTotal, 16<<10)
	return l
}

// room is how much may be added to a header.
type room struct{ headers, bytes int }

func (t *Telemetry) room(header map[string]string) room {
	r := room{t.limits.Headers - len(header), t.limits.HeaderTotal}
	for name, value := range header {
		r.bytes -= len(name) + len(value)
	}
	return r
}

// take reports whether there is room for f, and takes it.
func (r *room) take(f field) bool {
	n := len(f.name) + len(f.value)
	if r.headers < 1 || r.bytes < n {
		return false
	}
	r.headers--
	r.bytes -= n
	return true
}

// valid reports whether f may be a header by itself. What W3C's propagators
// write always may, but for its length.
func (t *Telemetry) valid(f field) bool {
	return len(f.name) <= t.limits.HeaderName && len(f.value) <= t.limits.HeaderValue && isToken(f.name) && isText(f.value)
}

// isToken reports whether s is a token as RFC 9110, section 5.6.2, defines it.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && !('0' <= c && c <= '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

func isText(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return utf8.ValidString(s)
}
