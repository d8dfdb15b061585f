package echotel_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func TestObserveMeasuresWhatInspectTells(t *testing.T) {
	w := watch(t)
	bus := w.bus()
	stop, err := w.Observe(bus, "orders", "invoices")
	require.NoError(t, err)
	c, err := echo.Subscribe(t.Context(), bus, orders, echo.WithGroup("billing"))
	require.NoError(t, err)
	defer c.Close()
	p := echo.NewProducer(bus, orders)
	require.NoError(t, p.PublishBatch(t.Context(), []order{anOrder, anOrder, anOrder}))
	require.NoError(t, p.Publish(t.Context(), anOrder, echo.WithDelay(time.Hour)))
	for m, err := range c.Messages(t.Context()) {
		require.NoError(t, err)
		require.NoError(t, m.Reject(t.Context(), context.Canceled))
		break
	}
	got := w.gauges()
	assert.Equal(t, map[string]float64{
		"messaging.echo.topic.messages orders ":              3,
		"messaging.echo.topic.size orders ":                  got["messaging.echo.topic.size orders "],
		"messaging.echo.topic.delayed orders ":               1,
		"messaging.echo.topic.dead_letters orders ":          1,
		"messaging.echo.topic.lost orders ":                  0,
		"messaging.echo.topic.duplicates orders ":            0,
		"messaging.echo.topic.forgotten orders ":             0,
		"messaging.echo.topic.forgotten invoices ":           0,
		"messaging.echo.group.lag orders billing":            2,
		"messaging.echo.group.pending orders billing":        0,
		"messaging.echo.topic.messages invoices ":            0,
		"messaging.echo.topic.size invoices ":                0,
		"messaging.echo.topic.delayed invoices ":             0,
		"messaging.echo.topic.dead_letters invoices ":        0,
		"messaging.echo.topic.lost invoices ":                0,
		"messaging.echo.topic.duplicates invoices ":          0,
		"messaging.echo.group.oldest_pending orders billing": 0,
	}, got)
	assert.NotZero(t, got["messaging.echo.topic.size orders "])
	require.NoError(t, stop())
	assert.Empty(t, w.gauges())
}

// vague is a transport that can tell little.
type vague struct{ transport.Transport }

func (vague) Inspect(context.Context, string) (transport.Info, error) {
	return transport.Info{Messages: 7, Bytes: transport.Unknown, Lost: transport.Unknown, Duplicates: transport.Unknown, Forgotten: transport.Unknown, Groups: []transport.GroupInfo{
		{Name: "g", Lag: transport.Unknown, Pending: 0, Oldest: transport.Unknown},
	}}, nil
}

func TestWhatIsUnknownIsNotMeasuredAsZero(t *testing.T) {
	w := watch(t)
	stop, err := w.Observe(w.bus(echo.WithTransport(vague{memstream.New()})), "orders")
	require.NoError(t, err)
	defer stop()
	assert.Equal(t, map[string]float64{
		"messaging.echo.topic.messages orders ":     7,
		"messaging.echo.topic.delayed orders ":      0,
		"messaging.echo.topic.dead_letters orders ": 7,
		"messaging.echo.group.pending orders g":     0,
	}, w.gauges())
	_, err = w.Observe(nil)
	assert.ErrorContains(t, err, "no topics")
}

func of(set attribute.Set) string {
	topic, _ := set.Value("messaging.destination.name")
	group, _ := set.Value("messaging.consumer.group.name")
	return topic.AsString() + " " + group.AsString()
}

// gauges are the latest values of all gauges, by name, topic and group.
func (w *watched) gauges() map[string]float64 {
	var all metricdata.ResourceMetrics
	require.NoError(w.t, w.reader.Collect(context.Background(), &all))
	got := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch g := m.Data.(type) {
			case metricdata.Gauge[int64]:
				for _, p := range g.DataPoints {
					got[m.Name+" "+of(p.Attributes)] = float64(p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range g.DataPoints {
					got[m.Name+" "+of(p.Attributes)] = p.Value
				}
			}
		}
	}
	return got
}

func TestASampleIsLookedAtAndAllAreCounted(t *testing.T) {
	const n = 2000
	w := watch(t, echotel.WithSampleRatio(0.1))
	bus := w.bus()
	handle(t, bus, orders, n, func(context.Context, echo.Message[order]) error { return nil }, func() {
		p := echo.NewProducer(bus, orders)
		for range n {
			require.NoError(t, p.Publish(t.Context(), anOrder))
		}
	})
	sent := len(w.named("send orders"))
	assert.Greater(t, sent, n/20)
	assert.Less(t, sent, n/5)
	assert.GreaterOrEqual(t, len(w.named("process orders")), sent, "what is part of a trace is looked at")
	var all metricdata.ResourceMetrics
	require.NoError(t, w.reader.Collect(context.Background(), &all))
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if sum, ok := m.Data.(metricdata.Sum[int64]); ok {
				assert.EqualValues(t, n, sum.DataPoints[0].Value, m.Name)
			}
		}
	}
}
