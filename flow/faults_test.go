package flow_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/flow"
	"github.com/echobus/echo/memstream"
)

// Leases that are lost, acknowledgements that get lost, messages that come late
// or twice, publishes that fail: everything comes out, and every message is settled.
func TestStreamsUnderFaults(t *testing.T) {
	for name, through := range map[string]func(flow.Stream[event]) flow.Stream[event]{
		"batches": func(s flow.Stream[event]) flow.Stream[event] {
			return flow.Spread(flow.Batch(s, 7, 2*time.Millisecond))
		},
		"windows": func(s flow.Stream[event]) flow.Stream[event] {
			w := flow.Windowed(s, flow.Windows[event]{Every: 10 * time.Millisecond, Late: 5 * time.Millisecond})
			return flow.Spread(flow.Via(w, flow.Map("values", func(w flow.Window[event]) []event { return w.Values })))
		},
		"lanes":    func(s flow.Stream[event]) flow.Stream[event] { return flow.Parallel(s, 3, nil) },
		"no stage": func(s flow.Stream[event]) flow.Stream[event] { return s },
	} {
		for seed := range uint64(5) {
			t.Run(fmt.Sprint(name, " ", seed), func(t *testing.T) {
				const n = 200
				bus := echotest.New(t, echotest.WithMemory(memstream.WithLease(200*time.Millisecond)), echotest.WithFaults(seed, echotest.Faults{
					RefusePublish: 0.1, UnknownPublish: 0.1, Delay: 0.1, LoseLease: 0.1, LoseAck: 0.1, Duplicate: 0.1,
				}))
				c, err := echo.Subscribe(t.Context(), bus.Bus, events, echo.WithGroup("flow"), echo.WithConcurrency(2), echo.WithDrainTimeout(time.Second),
					echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}}))
				require.NoError(t, err)
				var mu sync.Mutex
				out := map[int]bool{}
				publish := flow.With(flow.ToTopic(echo.NewProducer(bus.Bus, outputs)), flow.Retry(5, 0, time.Millisecond)) // as a window has many
				pipe, err := flow.Pipe("faults", flow.Via(through(flow.FromTopic(c)),
					flow.Then(publish, flow.Tap("note", func(_ context.Context, e event) error {
						mu.Lock()
						defer mu.Unlock()
						out[e.N] = true
						return nil
					}))))
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- pipe.Run(ctx) }()
				p := echo.NewProducer(bus.Bus, events)
				for i := range n {
					for p.Publish(t.Context(), event{N: i, Key: fmt.Sprint(i % 9)}) != nil {
					}
				}
				assert.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(out) == n }, 10*time.Second, 2*time.Millisecond)
				assert.Eventually(t, func() bool {
					in, err := bus.Inspect(t.Context(), "events")
					return err == nil && in.Group("flow").Pending == 0 && in.Group("flow").Lag == 0
				}, 10*time.Second, 5*time.Millisecond)
				begin := time.Now()
				cancel()
				assert.NoError(t, <-done)
				assert.Less(t, time.Since(begin), time.Second, "nothing is left that it would wait for")
			})
		}
	}
}
