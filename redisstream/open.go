package redisstream

import (
	"context"
	"time"

	"github.com/echobus/echo/transport"
)

func init() {
	transport.Register(openURL, "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
}

// openURL opens a transport for a URL as for [Dial]. Of its parameters, prefix,
// name and lease are options of New, and the others go-redis'.
func openURL(ctx context.Context, rawURL string) (transport.Transport, error) {
	var opts []Option
	rest, err := transport.Params(rawURL, true, map[string]func(string) error{
		"prefix": func(v string) error { opts = append(opts, WithPrefix(v)); return nil },
		"name":   func(v string) error { opts = append(opts, WithName(v)); return nil },
		"lease": func(v string) error {
			d, err := time.ParseDuration(v)
			opts = append(opts, WithLease(d))
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	t, err := Open(ctx, rest, opts...)
	if err != nil { // or it would be a *Transport that is nil
		return nil, err
	}
	return t, nil
}
