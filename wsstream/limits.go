package wsstream

import (
	"net/http"
	"net/netip"
	"strings"
)

// address says where a request comes from, as limits count it: an address of
// IPv4, or the 64 bits of IPv6 that one customer has. What a request says of
// others that it came through counts as far as trusted proxies say it. A
// request from no address, as through a Unix socket, is a proxy's if there are any.
func address(r *http.Request, proxies []netip.Prefix) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	from := at.Addr().Unmap()
	if err == nil && !trusted(from, proxies) || len(proxies) == 0 {
		return customer(from)
	}
	said := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(said) - 1; i >= 0; i-- {
		a, err := forwarded(strings.TrimSpace(said[i]))
		if err != nil {
			break
		}
		if from = a; !trusted(a, proxies) {
			break
		}
	}
	return customer(from)
}

// forwarded parses an entry of X-Forwarded-For, which some proxies give a port.
func forwarded(s string) (netip.Addr, error) {
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().Unmap(), nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap(), err
}

func trusted(a netip.Addr, proxies []netip.Prefix) bool {
	for _, p := range proxies {
		if p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

func customer(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// tally counts links by what they have in common, up to a bound; 0 is none.
type tally[K comparable] struct {
	most int
	of   map[K]int
}

// add counts one more, unless there are so many already.
func (t *tally[K]) add(k K) bool {
	if t.most == 0 {
		return true
	}
	if t.of[k] >= t.most {
		return false
	}
	if t.of == nil {
		t.of = make(map[K]int)
	}
	t.of[k]++
	return true
}

func (t *tally[K]) remove(k K) {
	if t.most == 0 {
		return
	}
	if t.of[k]--; t.of[k] <= 0 {
		delete(t.of, k)
	}
}

// load is how many messages there are, and their size.
type load struct{ messages, bytes int }

func (l *load) add(n, bytes int) { l.messages, l.bytes = l.messages+n, l.bytes+bytes }
