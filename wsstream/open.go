package wsstream

import (
	"context"
	"errors"
	"net/url"

	"github.com/echobus/echo/transport"
)

func init() { transport.Register(openURL, "ws", "wss") }

// openURL dials a URL. A password in it is the token, which goes with the hello
// and not over the URL; the parameter json=1 asks for the form of JSON, and the
// others are the server's.
func openURL(ctx context.Context, rawURL string) (transport.Transport, error) {
	var opts []DialOption
	rest, err := transport.Params(rawURL, true, map[string]func(string) error{
		"json": func(v string) error {
			if v != "1" {
				return errors.New("want 1, or no such parameter")
			}
			opts = append(opts, WithJSON())
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(rest)
	if err != nil {
		return nil, errors.New("the URL cannot be read")
	}
	if token, ok := u.User.Password(); ok {
		opts = append(opts, WithToken(func(context.Context) (string, error) { return token, nil }))
	}
	u.User = nil
	t, err := Dial(ctx, u.String(), opts...)
	if err != nil {
		return nil, err
	}
	return t, nil
}
