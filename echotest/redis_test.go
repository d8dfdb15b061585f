package echotest_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
)

func TestTheSameOverRedis(t *testing.T) {
	server := redistest.Start(t)
	open := func(opts ...echotest.Option) *echotest.Bus {
		client := server.Client()
		t.Cleanup(func() { client.Close() })
		return echotest.New(t, append(opts, echotest.WithTransport(redisstream.New(client)))...)
	}

	t.Run("cascades", func(t *testing.T) {
		bus := open()
		handled := cascade(t, bus, 8)
		for i := range 10 {
			before := handled.Load()
			publish(t, bus, first, 1, 2, 3, 4, 5, 6, 7)
			bus.WaitIdle(t.Context())
			require.EqualValues(t, 6*2*2*2, handled.Load()-before, "at iteration %d", i)
		}
		assert.Len(t, echotest.DeadLetters(bus, first), 20)
	})

	t.Run("groups of others and delays", func(t *testing.T) {
		topic := echo.NewTopic[int]("elsewhere")
		here, there := open(), open()
		var handled atomic.Int64
		run(t, there, topic, func(_ context.Context, m echo.Message[int]) error {
			if m.Attempt == 1 {
				return errors.New("oops")
			}
			time.Sleep(10 * time.Millisecond)
			handled.Add(1)
			return nil
		}, echo.WithGroup("g"))
		p := echo.NewProducer(here.Bus, topic)
		require.NoError(t, p.PublishBatch(t.Context(), []int{1, 2, 3}))
		here.WaitIdle(t.Context())
		assert.EqualValues(t, 3, handled.Load())

		require.NoError(t, p.Publish(t.Context(), 4, echo.WithDelay(300*time.Millisecond)))
		time.Sleep(300 * time.Millisecond) // until it is due; the server may be late
		here.WaitIdle(t.Context())
		assert.EqualValues(t, 4, handled.Load())
		echotest.Expect(here, topic, 1, 2, 3, 4)
	})

	t.Run("faults", func(t *testing.T) {
		f := everyFault
		f.MaxDelay, f.LoseAck = time.Millisecond, 0.01
		bus := open(echotest.WithFaults(1, f), echotest.WithPatience(30*time.Second))
		topic := echo.NewTopic[int]("faults")
		var one, all tally
		run(t, bus, topic, one.handle, echo.WithGroup("g"), echo.WithLease(time.Second))
		run(t, bus, topic, all.handle, echo.WithLease(time.Second))
		publishSurely(t, bus, topic, 300)
		bus.WaitIdle(t.Context())
		assert.Len(t, one.counts, 300)
		assert.Len(t, all.counts, 300)
		assert.Len(t, echotest.Published(bus, topic), 300+bus.Faults().Stored)
	})
}
