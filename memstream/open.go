package memstream

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/echobus/echo/transport"
)

func init() { transport.Register(open, "mem") }

// open opens a transport for mem://. The parameters messages, bytes, age, full
// (block, reject, drop-oldest) and lease are the options of New.
func open(_ context.Context, rawURL string) (transport.Transport, error) {
	if u, err := url.Parse(rawURL); err != nil || u.Host != "" || u.Path != "" {
		return nil, errors.New("want mem:// and perhaps parameters: a transport in memory has no address")
	}
	var opts []Option
	number := func(option func(int) Option) func(string) error {
		return func(value string) error {
			n, err := strconv.Atoi(value)
			opts = append(opts, option(n))
			return err
		}
	}
	span := func(option func(time.Duration) Option) func(string) error {
		return func(value string) error {
			d, err := time.ParseDuration(value)
			opts = append(opts, option(d))
			return err
		}
	}
	_, err := transport.Params(rawURL, false, map[string]func(string) error{
		"messages": number(WithMaxMessages),
		"bytes":    number(WithMaxBytes),
		"age":      span(WithMaxAge),
		"lease":    span(WithLease),
		"full": func(value string) error {
			full, ok := map[string]Full{"block": Block, "reject": Reject, "drop-oldest": DropOldest}[value]
			if !ok {
				return fmt.Errorf("%q is none of block, reject and drop-oldest", value)
			}
			opts = append(opts, WithFull(full))
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	t := New(opts...)
	return t, t.Err()
}
