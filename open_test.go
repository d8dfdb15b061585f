package echo_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/memstream"
	_ "github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

func TestAURLSwapsTheTransport(t *testing.T) {
	redis := redistest.Start(t)
	mem := memstream.New()
	h := wsstream.NewHandler(mem, wsstream.WithAuthorizer(func(_ context.Context, _ *http.Request, token string) (*wsstream.Grant, error) {
		if token != "let me in" {
			return nil, wsstream.ErrNoToken
		}
		return wsstream.Everything("me"), nil
	}))
	s := httptest.NewServer(h)
	t.Cleanup(func() { h.Close(); s.Close(); mem.Close() })
	ws := strings.Replace(s.URL, "http://", "ws://:let%20me%20in@", 1)
	for _, url := range []string{
		"mem://", "mem://?messages=10&bytes=1000&age=1m&lease=5s&full=reject",
		"redis://" + redis.Options().Addr + "/0?prefix=shop&name=one&lease=5s&pool_size=3",
		ws, ws + "?json=1",
	} {
		bus, err := echo.Open(t.Context(), url)
		require.NoError(t, err, url)
		topic := echo.NewTopic[string]("t")
		c := subscribe(t, bus, topic)
		publish(t, bus, topic, "hello")
		assert.Equal(t, "hello", take(t, c, 1)[0].Value)
		_, err = bus.Close(t.Context())
		require.NoError(t, err)
	}
}

func TestAURLThatCannotBeOpenedIsAnErrorThatSaysWhyAndNoSecret(t *testing.T) {
	for rawURL, want := range map[string]string{
		"":                                       "a URL begins with a scheme",
		"kafka://host":                           "no driver for kafka:// is imported; there are mem, ",
		"mem://host":                             "a transport in memory has no address",
		"mem://?mesages=1":                       `parameter "mesages"; there are age, bytes, full, lease, messages`,
		"mem://?messages=x":                      "parameter messages of the URL",
		"mem://?messages=0":                      "WithMaxMessages(0)",
		"mem://?full=explode":                    `"explode" is none of block, reject and drop-oldest`,
		"mem://?age=1m&age=2m":                   "parameter age 2 times",
		"redis://u:secret@127.0.0.1:1/0?lease=x": "parameter lease of the URL",
		"redis://u:secret@127.0.0.1:1/0?prefix=:": `WithPrefix(":")`,
		"ws://:secret@127.0.0.1:1/%zz":            "the URL cannot be read",
		"ws://:secret@127.0.0.1:1/?json=2":        "want 1",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := echo.Open(ctx, rawURL)
		cancel()
		assert.ErrorContains(t, err, want, rawURL)
		assert.NotContains(t, err.Error(), "secret")
	}
	_, err := echo.Open(t.Context(), "mem://", echo.WithTransport(memstream.New()))
	assert.ErrorContains(t, err, "WithTransport is given twice")
	assert.Panics(t, func() { transport.Register(nil, "nil") })
}
