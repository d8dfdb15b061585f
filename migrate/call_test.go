package migrate_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
)

// Who asks is on a Tee, who answers on a Drainover.
func TestCallsAreAnsweredDuringAMove(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	asks := echo.New(echo.WithTransport(migrate.Tee(old, new)))
	answers := echo.New(echo.WithTransport(migrate.Drainover(old, new, migrate.WithQuiet(time.Minute))))
	s := echo.NewService[int, int]("sq")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- echo.Respond(ctx, answers, s, func(ctx context.Context, m echo.Message[int]) (int, error) {
			return m.Value * m.Value, nil
		})
	}()
	v, err := echo.Call(ctx, asks, s, 7)
	cancel()
	<-done
	asks.Close(context.Background())
	answers.Close(context.Background())
	require.NoError(t, err)
	require.Equal(t, 49, v)
}
