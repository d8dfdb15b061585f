package echo_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type order struct {
	ID       string
	Quantity int
	Total    float64
	Customer string
}

var orders = echo.NewTopic[order]("orders")

// newBus returns a bus that the test closes.
func newBus(t testing.TB, opts ...echo.BusOption) *echo.Bus {
	bus := echo.New(opts...)
	t.Cleanup(func() { bus.Close(context.Background()) })
	return bus
}

func subscribe[M any](t testing.TB, bus *echo.Bus, topic *echo.Topic[M], opts ...echo.SubscribeOption) *echo.Consumer[M] {
	t.Helper()
	c, err := echo.Subscribe(context.Background(), bus, topic, opts...)
	require.NoError(t, err)
	return c
}

func publish[M any](t testing.TB, bus *echo.Bus, topic *echo.Topic[M], vs ...M) {
	t.Helper()
	require.NoError(t, echo.NewProducer(bus, topic).PublishBatch(context.Background(), vs))
}

// take receives n messages and leaves them unsettled.
func take[M any](t testing.TB, c *echo.Consumer[M], n int) []echo.Message[M] {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var msgs []echo.Message[M]
	for m, err := range c.Messages(ctx) {
		require.NoError(t, err)
		if msgs = append(msgs, m); len(msgs) == n {
			return msgs
		}
	}
	require.Failf(t, "too few messages", "got %d, want %d", len(msgs), n)
	return nil
}

func values[M any](msgs []echo.Message[M]) []M {
	vs := make([]M, len(msgs))
	for i, m := range msgs {
		vs[i] = m.Value
	}
	return vs
}

// running runs a handler until the test ends.
func running[M any](t testing.TB, c *echo.Consumer[M], h echo.Handler[M]) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- c.Run(context.Background(), h) }()
	t.Cleanup(func() {
		c.Close()
		require.NoError(t, <-done)
	})
}

// shared returns two buses over one transport in memory, as two processes
// would share a broker.
func shared(t testing.TB, opts ...memstream.Option) (one, two *echo.Bus) {
	mem := memstream.New(opts...)
	t.Cleanup(func() { mem.Close() })
	return newBus(t, echo.WithTransport(transport.KeepOpen(mem))), newBus(t, echo.WithTransport(transport.KeepOpen(mem)))
}

// hooked is a transport with functions that are called before something is done,
// which is not done if they return an error. None of them need be there.
type hooked struct {
	transport.Transport
	subscribed func()
	ack        func(ctx context.Context, rs []transport.Receipt) error
	release    func(rs []transport.Receipt)
	closed     func()
}

func (h *hooked) Unwrap() transport.Transport { return h.Transport }

func (h *hooked) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	s, err := h.Transport.Subscribe(ctx, topic, o)
	if h.subscribed != nil {
		h.subscribed()
	}
	return hookedSub{s, h}, err
}

type hookedSub struct {
	transport.Subscription
	h *hooked
}

func (s hookedSub) Unwrap() transport.Subscription { return s.Subscription }

func (s hookedSub) Ack(ctx context.Context, rs []transport.Receipt) error {
	if s.h.ack != nil {
		if err := s.h.ack(ctx, rs); err != nil {
			return err
		}
	}
	return s.Subscription.(transport.Acker).Ack(ctx, rs)
}

func (s hookedSub) Release(ctx context.Context, rs []transport.Receipt) error {
	if s.h.release != nil {
		s.h.release(rs)
	}
	return s.Subscription.(transport.Releaser).Release(ctx, rs)
}

func (s hookedSub) Close() error {
	if s.h.closed != nil {
		s.h.closed()
	}
	return s.Subscription.Close()
}
