package migrate_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
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

// gone is a transport that waits for a link that does not come.
type gone struct{ transport.Transport }

func (gone) Send(ctx context.Context, _ string, _ []transport.Message) (int, error) {
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

func TestAReplyIsNotHeldUpByTheSideThatIsGone(t *testing.T) {
	inbox := transport.InboxTopic("a")
	for _, old := range []bool{true, false} {
		mem := memstream.New()
		defer mem.Close()
		sub, err := mem.Subscribe(t.Context(), inbox, transport.Options{})
		require.NoError(t, err)
		sides := [2]transport.Transport{mem, gone{memstream.New()}}
		if old {
			slices.Reverse(sides[:])
		}
		d := migrate.Drainover(sides[0], sides[1])
		n, err := d.Send(context.Background(), inbox, []transport.Message{{ID: "m"}})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		_, err = sub.Receive(t.Context(), make([]transport.Message, 1))
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	d := migrate.Drainover(gone{memstream.New()}, gone{memstream.New()})
	_, err := d.Send(ctx, inbox, []transport.Message{{ID: "m"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
