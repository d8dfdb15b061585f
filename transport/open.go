package transport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// OpenFunc opens a transport for a URL, within ctx. Its errors do not show what
// is secret in the URL.
type OpenFunc func(ctx context.Context, url string) (Transport, error)

var drivers = struct {
	sync.RWMutex
	byScheme map[string]OpenFunc
}{byScheme: map[string]OpenFunc{}}

// Register makes a driver available to [Open] under the schemes of its URLs. A
// driver calls it from its init function. It panics if a scheme is taken.
func Register(open OpenFunc, schemes ...string) {
	drivers.Lock()
	defer drivers.Unlock()
	for _, scheme := range schemes {
		if open == nil || drivers.byScheme[scheme] != nil {
			panic(fmt.Sprintf("transport: Register: scheme %q is taken, or the function is nil", scheme))
		}
		drivers.byScheme[scheme] = open
	}
}

// Open opens a transport for a URL such as redis://localhost:6379, whose driver
// the program imports.
func Open(ctx context.Context, rawURL string) (Transport, error) {
	scheme, _, ok := strings.Cut(rawURL, "://")
	if !ok {
		return nil, errors.New("transport: a URL begins with a scheme, as in mem:// or redis://localhost:6379")
	}
	drivers.RLock()
	open := drivers.byScheme[strings.ToLower(scheme)]
	known := slices.Sorted(maps.Keys(drivers.byScheme))
	drivers.RUnlock()
	if open == nil {
		return nil, fmt.Errorf("transport: no driver for %.20s:// is imported; there are %s", scheme, strings.Join(known, ", "))
	}
	t, err := open(ctx, rawURL)
	if err != nil {
		return nil, fmt.Errorf("transport: open %s://…: %w", scheme, err)
	}
	return t, nil
}

// Params are the parameters of a URL that a driver takes for itself: each is
// handed to the function of its name. Other parameters are errors that name
// them, unless rest is true: then the URL that is returned has them alone.
func Params(rawURL string, rest bool, own map[string]func(value string) error) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", errors.New("the URL cannot be read") // err shows it, with all that is secret in it
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", errors.New("the parameters of the URL cannot be read")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		set := own[name]
		if set == nil && rest {
			continue
		}
		if set == nil {
			return "", fmt.Errorf("the URL has a parameter %.40q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(own)), ", "))
		}
		if len(query[name]) > 1 {
			return "", fmt.Errorf("the URL has the parameter %s %d times", name, len(query[name]))
		}
		if err := set(query.Get(name)); err != nil {
			return "", fmt.Errorf("parameter %s of the URL: %w", name, err)
		}
		delete(query, name)
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}
