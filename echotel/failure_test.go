package echotel_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// errDeclined is an error with a type of its own.
type errDeclined struct{}

func (errDeclined) Error() string { return "card declined" }

func TestEveryAttemptHasASpanThatSaysHowItEnded(t *testing.T) {
	for name, c := range map[string]struct {
		fails func(ctx context.Context) error
		kind  string // error.type
		says  string
	}{
		"an error":               {func(context.Context) error { return errDeclined{} }, "github.com/echobus/echo/echotel_test.errDeclined", "card declined"},
		"a wrapped error":        {func(context.Context) error { return fmt.Errorf("charge: %w", errDeclined{}) }, "github.com/echobus/echo/echotel_test.errDeclined", "charge: card declined"},
		"a time-out":             {func(context.Context) error { return context.DeadlineExceeded }, "deadline_exceeded", "context deadline exceeded"},
		"a full topic":           {func(context.Context) error { return fmt.Errorf("publish: %w", echo.ErrFull) }, "full", "publish: topic full"},
		"a panic":                {func(context.Context) error { panic("oops") }, "panic", "panic: oops"},
		"a panic with an error":  {func(context.Context) error { panic(errDeclined{}) }, "panic", "panic: card declined"},
		"a run-time error":       {func(context.Context) error { return errors.New(strings.Fields("")[0]) }, "panic", "panic: runtime error: index out of range [0] with length 0"},
		"the end of a goroutine": {func(context.Context) error { runtime.Goexit(); return nil }, "goexit", "runtime.Goexit was called"},
	} {
		for _, key := range []string{"", "k"} { // given back, and tried again in place
			t.Run(name+" "+key, func(t *testing.T) {
				w := watch(t)
				bus := w.bus()
				handle(t, bus, orders, 3, func(ctx context.Context, m echo.Message[order]) error {
					if m.Attempt < 3 {
						return c.fails(ctx)
					}
					return nil
				}, func() {
					require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder, echo.WithKey(key)))
				})
				attempts := w.named("process orders")
				require.Len(t, attempts, 3)
				for i, s := range attempts {
					assert.Equal(t, int64(i+1), attrs(s)["messaging.echo.message.delivery_attempt"])
					assert.Equal(t, linked(attempts[0]), linked(s))
				}
				for _, s := range attempts[:2] {
					assert.Equal(t, sdktrace.Status{Code: codes.Error, Description: c.says}, s.Status())
					assert.Equal(t, c.kind, attrs(s)["error.type"])
					require.Len(t, s.Events(), 1)
					assert.Equal(t, "exception", s.Events()[0].Name)
					assert.Equal(t, c.says, values(s.Events()[0].Attributes)["exception.message"])
				}
				assert.Equal(t, codes.Unset, attempts[2].Status().Code)
				w.allEnded()

				counts := map[any]int64{}
				for _, p := range w.points("messaging.client.consumed.messages") {
					counts[p.attrs["error.type"]] = p.value
				}
				assert.Equal(t, map[any]int64{c.kind: 2, nil: 1}, counts)
			})
		}
	}
}

func TestPanicGoesOnWithItsValueAndStack(t *testing.T) {
	w := watch(t)
	var seen *echo.PanicError
	outer := func(next echo.Handler[any]) echo.Handler[any] {
		return func(ctx context.Context, m echo.Message[any]) error {
			defer func() {
				if v := recover(); v != nil {
					stack := make([]byte, 64<<10)
					seen = &echo.PanicError{Value: v, Stack: stack[:runtime.Stack(stack, false)]}
				}
			}()
			return next(ctx, m)
		}
	}
	bus := echo.New(append([]echo.BusOption{echo.WithMiddleware(outer)}, w.Options()...)...)
	defer bus.Close(t.Context())
	handle(t, bus, orders, 1, func(context.Context, echo.Message[order]) error { explode(); return nil }, func() {
		require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
	})
	require.NotNil(t, seen)
	assert.Equal(t, "oops", seen.Value)
	assert.Contains(t, string(seen.Stack), "echotel_test.explode", "the place of the panic")
	event := values(w.only("process orders").Events()[0].Attributes)
	assert.Contains(t, event["exception.stacktrace"], "echotel_test.explode")
	assert.False(t, strings.Contains(event["exception.message"].(string), "goroutine"), "no stack in the message")
}

func explode() { panic("oops") }

// sender is a transport in memory with a Send of its own.
type sender struct {
	transport.Transport
	send func(ctx context.Context, msgs []transport.Message) (int, error)
}

func (s *sender) Send(ctx context.Context, _ string, msgs []transport.Message) (int, error) {
	return s.send(ctx, msgs)
}

func TestOutcomeOfAPublishIsTold(t *testing.T) {
	lost := errors.New("connection reset")
	for name, c := range map[string]struct {
		n      int
		err    error
		counts map[string]int64
		kind   any
		status codes.Code
	}{
		"stored":                    {3, nil, map[string]int64{"stored": 3}, nil, codes.Unset},
		"refused":                   {0, fmt.Errorf("%w: %w", echo.ErrNotPublished, echo.ErrFull), map[string]int64{"refused": 3}, "full", codes.Error},
		"refused in part":           {2, fmt.Errorf("%w: %w", echo.ErrNotPublished, echo.ErrFull), map[string]int64{"stored": 2, "refused": 1}, "full", codes.Error},
		"unknown":                   {1, lost, map[string]int64{"stored": 1, "unknown": 2}, "*errors.errorString", codes.Error},
		"short without a reason":    {1, nil, map[string]int64{"stored": 1, "unknown": 2}, "*errors.errorString", codes.Error},
		"refused, as time was over": {0, fmt.Errorf("%w: %w", echo.ErrNotPublished, context.DeadlineExceeded), map[string]int64{"refused": 3}, "deadline_exceeded", codes.Error},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t)
			mem := memstream.New()
			bus := w.bus(echo.WithTransport(&sender{mem, func(context.Context, []transport.Message) (int, error) { return c.n, c.err }}))
			err := echo.NewProducer(bus, orders).PublishBatch(t.Context(), make([]order, 3))
			assert.Equal(t, c.n == 3, err == nil, "telemetry changes nothing: %v", err)
			sent := w.only("send orders")
			assert.Equal(t, c.status, sent.Status().Code)
			assert.Equal(t, c.kind, attrs(sent)["error.type"])
			counts := map[string]int64{}
			for _, p := range w.points("messaging.client.sent.messages") {
				counts[p.attrs["messaging.echo.outcome"].(string)] = p.value
			}
			assert.Equal(t, c.counts, counts)
			durations := w.points("messaging.client.operation.duration")
			require.Len(t, durations, 1)
			assert.Equal(t, c.kind, durations[0].attrs["error.type"])
			assert.Equal(t, attrs(sent)["messaging.echo.outcome"], durations[0].attrs["messaging.echo.outcome"])
			w.allEnded()
		})
	}
}

func TestSpanOfAPublishThatPanicsEnds(t *testing.T) {
	w := watch(t)
	mem := memstream.New()
	bus := w.bus(echo.WithTransport(&sender{mem, func(context.Context, []transport.Message) (int, error) { panic("oops") }}))
	producer := echo.NewProducer(bus, orders)
	assert.PanicsWithValue(t, "oops", func() { producer.PublishBatch(t.Context(), make([]order, 2)) })
	assert.Equal(t, "unknown", attrs(w.only("send orders"))["messaging.echo.outcome"])
	w.allEnded()
}

func TestDurationsAreInSeconds(t *testing.T) {
	w := watch(t)
	bus := w.bus()
	begun := time.Now()
	handle(t, bus, orders, 1, nothing[order], func() {
		require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
	})
	for _, name := range []string{"messaging.client.operation.duration", "messaging.process.duration"} {
		p := w.points(name)
		require.Len(t, p, 1, name)
		assert.Equal(t, int64(1), p[0].value, name)
		assert.Positive(t, p[0].sum, name)
		assert.Less(t, p[0].sum, time.Since(begun).Seconds(), name)
		assert.Equal(t, "orders", p[0].attrs["messaging.destination.name"], name)
		assert.Equal(t, "echo", p[0].attrs["messaging.system"], name)
	}
}

// A message that its handler keeps has not failed.
func TestKeptMessageIsNoFailure(t *testing.T) {
	w := watch(t)
	bus := w.bus()
	handle(t, bus, orders, 1, func(_ context.Context, m echo.Message[order]) error {
		m.Settle(nil)
		return echo.ErrLater
	}, func() {
		require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
	})
	spans := w.named("process orders")
	require.Len(t, spans, 1)
	assert.Equal(t, codes.Unset, spans[0].Status().Code)
	assert.Empty(t, spans[0].Events())
	for _, p := range w.points("messaging.client.consumed.messages") {
		assert.Nil(t, p.attrs["error.type"])
	}
}
