package wsstream_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// Two programs with one topic between them: the server's transport, served to
// whoever knows the password.
func Example() {
	ctx := context.Background()
	greetings := echo.NewTopic[string]("greetings")

	// The server: a bus of its own, and links to the same transport.
	memory := memstream.New()
	server := echo.New(echo.WithTransport(memory))
	handler := wsstream.NewHandler(transport.KeepOpen(memory),
		wsstream.WithAuthorizer(func(_ context.Context, _ *http.Request, token string) (*wsstream.Grant, error) {
			if token != "open sesame" {
				return nil, wsstream.ErrNoToken
			}
			return wsstream.Everything("ali baba"), nil
		}))
	s := httptest.NewServer(handler)
	defer s.Close()
	defer handler.Close()
	defer server.Close(ctx)

	// The client.
	link, err := wsstream.Dial(ctx, s.URL, wsstream.WithToken(func(context.Context) (string, error) { return "open sesame", nil }))
	if err != nil {
		fmt.Println(err)
		return
	}
	bus := echo.New(echo.WithTransport(link))
	defer bus.Close(ctx)

	consumer, err := echo.Subscribe(ctx, bus, greetings)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := echo.NewProducer(server, greetings).Publish(ctx, "hello, browser"); err != nil {
		fmt.Println(err)
		return
	}
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(m.Value)
		m.Ack(ctx)
		break
	}
	// Output: hello, browser
}
