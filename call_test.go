package echo_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

var squares = echo.NewService[int, int]("squares")

func responding(t *testing.T, bus *echo.Bus, f func(context.Context, echo.Message[int]) (int, error), opts ...echo.SubscribeOption) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- echo.Respond(ctx, bus, squares, f, opts...) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
}

// An inbox keeps the replies to all calls that may be under way, though they
// come at once; further calls wait for their turn.
func TestMoreCallsThanAnInboxKeepsAreAnswered(t *testing.T) {
	bus := echo.New()
	defer bus.Close(context.Background())
	const n = 25_000
	var came atomic.Int32
	all := make(chan struct{})
	responding(t, bus, func(_ context.Context, m echo.Message[int]) (int, error) {
		if came.Add(1) == 5000 {
			close(all)
		}
		<-all // so that they come at once
		return m.Value * m.Value, nil
	}, echo.WithConcurrency(5000), echo.WithPrefetch(10_000, 0))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			got, err := echo.Call(ctx, bus, squares, i)
			assert.NoError(t, err)
			assert.Equal(t, i*i, got)
		})
	}
	calls.Wait()
}

func TestWhoWaitsForItsTurnToCallGivesUpWithItsContext(t *testing.T) {
	bus := echo.New()
	defer bus.Close(context.Background())
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	for i := range 10_000 {
		calls.Go(func() { echo.Call(ctx, bus, squares, i) })
	}
	assert.Eventually(t, func() bool {
		soon, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := echo.Call(soon, bus, squares, 1)
		return errors.Is(err, echo.ErrNotPublished) && errors.Is(err, context.DeadlineExceeded)
	}, 20*time.Second, time.Millisecond)
	cancel()
	calls.Wait()
}

func TestARejectedRequestIsAnsweredWhateverIsInTheError(t *testing.T) {
	bus := echo.New()
	defer bus.Close(context.Background())
	responding(t, bus, func(context.Context, echo.Message[int]) (int, error) {
		return 0, echo.Reject(echo.RetryAfter(time.Hour, errors.New("no")))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := echo.Call(ctx, bus, squares, 1)
	e, ok := errors.AsType[*echo.CallError](err)
	require.True(t, ok, err)
	require.Equal(t, "unknown", e.Code)
}

// unreachable is a transport that takes no replies and waits for a link, as it says.
type unreachable struct {
	transport.Transport
	waits chan struct{}
}

func (u unreachable) Unwrap() transport.Transport { return u.Transport }

func (u unreachable) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if !transport.IsInbox(topic) {
		return u.Transport.Send(ctx, topic, msgs)
	}
	close(u.waits)
	<-ctx.Done()
	return 0, context.Cause(ctx)
}

func TestAReplyThatFindsNoLinkEndsWithTheBus(t *testing.T) {
	mem := memstream.New()
	u := unreachable{mem, make(chan struct{})}
	bus := echo.New(echo.WithTransport(u))
	answered := make(chan error, 1)
	go func() {
		answered <- echo.Respond(context.Background(), bus, squares, func(_ context.Context, m echo.Message[int]) (int, error) { return m.Value, nil })
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := echo.Call(ctx, bus, squares, 1)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	<-u.waits
	begin := time.Now()
	bus.Close(ctx)
	<-answered
	assert.Less(t, time.Since(begin), 5*time.Second)
}
