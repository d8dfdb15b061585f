package echo_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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

// What dies while a Redrive is under way does not end it: others may yet give
// back what died before.
func TestRedriveAwaitsWhatOthersHoldThoughMoreDies(t *testing.T) {
	tr := memstream.New()
	bus := echo.New(echo.WithTransport(tr))
	defer bus.Close(t.Context())
	die := func(ids ...string) {
		for _, id := range ids {
			_, err := tr.Send(context.Background(), "t.dead", []transport.Message{{ID: id, Type: "text/plain"}})
			require.NoError(t, err)
		}
	}
	die("m-1", "m-2")
	other, err := tr.Subscribe(t.Context(), "t.dead", transport.Options{Group: transport.RedriveGroup})
	require.NoError(t, err)
	_, err = other.Receive(t.Context(), make([]transport.Message, 2))
	require.NoError(t, err)
	die("m-3")
	done, err := echo.Redrive(t.Context(), bus, echo.NewTopic[string]("t"), func(m echo.Message[echo.DeadLetter[string]]) bool {
		if m.ID == "m-3" {
			die("m-4", "m-5")
			time.AfterFunc(50*time.Millisecond, func() { other.Close() })
		}
		return true
	}, 0)
	require.NoError(t, err)
	assert.Equal(t, 3, done.Sent)
	i, err := tr.Inspect(t.Context(), "t.dead")
	require.NoError(t, err)
	assert.EqualValues(t, 2, i.Group(transport.RedriveGroup).Pending+i.Group(transport.RedriveGroup).Lag, "for the next time")
}
