package echo_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// Whoever writes to the topic of dead letters may not know our headers.
func TestDeadLetterWithoutHeadersIsSentHome(t *testing.T) {
	tr := memstream.New()
	bus := echo.New(echo.WithTransport(tr))
	defer bus.Close(t.Context())
	_, err := tr.Send(t.Context(), "t.dead", []transport.Message{{ID: "m-1"}})
	require.NoError(t, err)
	done, err := echo.Redrive(t.Context(), bus, echo.NewTopic[string]("t"), nil, 0)
	require.NoError(t, err)
	require.Equal(t, 1, done.Sent)
}
