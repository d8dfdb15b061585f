package echotel_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// carriers are the transports that a context is carried over: those of a
// publisher's bus and of a consumer's.
var carriers = map[string]func(t *testing.T) (publisher, consumer transport.Transport){
	"in memory": func(*testing.T) (transport.Transport, transport.Transport) {
		mem := memstream.New()
		return transport.KeepOpen(mem), mem
	},
	"in memory, values by reference": func(*testing.T) (transport.Transport, transport.Transport) {
		mem := memstream.New(memstream.WithValues())
		return transport.KeepOpen(mem), mem
	},
	"over Redis Streams": func(t *testing.T) (transport.Transport, transport.Transport) {
		client := redis.NewClient(shared.Options())
		t.Cleanup(func() { client.Close() })
		prefix := redisstream.WithPrefix("continuity") // the server is this package's own
		return redisstream.New(client, prefix), redisstream.New(client, prefix)
	},
	"over a WebSocket link": func(t *testing.T) (transport.Transport, transport.Transport) {
		mem := memstream.New()
		handler := wsstream.NewHandler(transport.KeepOpen(mem), wsstream.WithAuthorizer(
			func(context.Context, *http.Request, string) (*wsstream.Grant, error) {
				return wsstream.Everything("all"), nil
			}))
		server := httptest.NewServer(handler)
		link, err := wsstream.Dial(t.Context(), server.URL)
		require.NoError(t, err)
		t.Cleanup(func() { server.Close(); handler.Close(); mem.Close() })
		return link, transport.KeepOpen(mem)
	},
}

func TestTraceGoesOnOverEveryTransport(t *testing.T) {
	for name, carrier := range carriers {
		t.Run(name, func(t *testing.T) {
			w := watch(t)
			publisher, consumer := carrier(t)
			from, to := w.bus(echo.WithTransport(publisher)), w.bus(echo.WithTransport(consumer))
			user := aMember(t, "user", "u-7")
			handle(t, to, orders, 1, func(ctx context.Context, m echo.Message[order]) error {
				assert.Equal(t, anOrder, m.Value)
				assert.Equal(t, "u-7", baggage.FromContext(ctx).Member("user").Value(), "baggage in the handler")
				assert.True(t, trace.SpanContextFromContext(ctx).IsValid(), "a span in the handler")
				assert.Equal(t, "mine", m.Headers["own"])
				return nil
			}, func() {
				ctx := baggage.ContextWithBaggage(t.Context(), user)
				require.NoError(t, echo.NewProducer(from, orders).Publish(ctx, anOrder, echo.WithHeader("own", "mine"), echo.WithID("m-1")))
			})
			sent, processed := w.only("send orders"), w.only("process orders")
			assert.Equal(t, trace.SpanKindProducer, sent.SpanKind())
			assert.Equal(t, trace.SpanKindConsumer, processed.SpanKind())
			assert.Equal(t, []trace.SpanID{sent.SpanContext().SpanID()}, linked(processed))
			assert.Equal(t, sent.SpanContext().TraceID(), processed.Links()[0].SpanContext.TraceID())
			assert.NotEqual(t, sent.SpanContext().TraceID(), processed.SpanContext().TraceID(), "a link, and a trace of its own")
			assert.Equal(t, map[string]any{
				"messaging.system": "echo", "messaging.operation.name": "send", "messaging.operation.type": "send",
				"messaging.destination.name": "orders", "messaging.message.id": "m-1", "messaging.echo.outcome": "stored",
			}, attrs(sent))
			assert.Equal(t, map[string]any{
				"messaging.system": "echo", "messaging.operation.name": "process", "messaging.operation.type": "process",
				"messaging.destination.name": "orders", "messaging.message.id": "m-1", "messaging.echo.message.delivery_attempt": int64(1),
				"messaging.consumer.group.name": "g",
			}, attrs(processed))
			assert.Equal(t, codes.Unset, processed.Status().Code)
			w.allEnded()
		})
	}
}

func aMember(t testing.TB, key, value string) baggage.Baggage {
	t.Helper()
	m, err := baggage.NewMemberRaw(key, value)
	require.NoError(t, err)
	b, err := baggage.New(m)
	require.NoError(t, err)
	return b
}

func TestProducerParentMakesOneTraceOfTwoHops(t *testing.T) {
	w := watch(t, echotel.WithProducerParent())
	bus := w.bus()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans)).Tracer("test")
	billing := echo.NewProducer(bus, invoices)
	handle(t, bus, invoices, 1, nothing[order], func() {
		handle(t, bus, orders, 1, func(ctx context.Context, m echo.Message[order]) error {
			return billing.Publish(ctx, m.Value)
		}, func() {
			ctx, request := tracer.Start(t.Context(), "request")
			defer request.End()
			require.NoError(t, echo.NewProducer(bus, orders).Publish(ctx, anOrder))
		})
	})
	parent := w.only("request").SpanContext()
	for _, name := range []string{"send orders", "process orders", "send invoices", "process invoices"} {
		s := w.only(name)
		assert.Equal(t, parent.TraceID(), s.SpanContext().TraceID(), name)
		assert.Equal(t, parent.SpanID(), s.Parent().SpanID(), "the parent of %s", name)
		parent = s.SpanContext()
	}
	assert.Equal(t, []trace.SpanID{w.only("send orders").SpanContext().SpanID()}, linked(w.only("process orders")), "a link beside the parent")
}

func TestSpanAroundRunIsParentOrLink(t *testing.T) {
	for name, c := range map[string]struct {
		opts     []echotel.Option
		isParent bool
	}{
		"it is the parent": {nil, true},
		"it is a link, when the message's context is the parent": {[]echotel.Option{echotel.WithProducerParent()}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, c.opts...)
			bus := w.bus()
			consumer, err := echo.Subscribe(t.Context(), bus, orders)
			require.NoError(t, err)
			require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder))
			ctx, around := sdktrace.NewTracerProvider().Tracer("test").Start(t.Context(), "around")
			require.NoError(t, consumer.Run(ctx, func(context.Context, echo.Message[order]) error { return consumer.Close() }))
			p, sent, here := w.only("process orders"), w.only("send orders").SpanContext().SpanID(), around.SpanContext().SpanID()
			if c.isParent {
				assert.Equal(t, here, p.Parent().SpanID())
				assert.Equal(t, []trace.SpanID{sent}, linked(p))
			} else {
				assert.Equal(t, sent, p.Parent().SpanID())
				assert.Equal(t, []trace.SpanID{sent, here}, linked(p))
			}
		})
	}
}

func TestContextThatThePublisherGaveIsKept(t *testing.T) {
	const given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	w := watch(t)
	bus := w.bus()
	producer := echo.NewProducer(bus, orders)
	handle(t, bus, orders, 3, func(_ context.Context, m echo.Message[order]) error {
		assert.Equal(t, map[string]string{"traceparent": given}, m.Headers)
		return nil
	}, func() {
		ctx := baggage.ContextWithBaggage(t.Context(), aMember(t, "user", "u-7"))
		require.NoError(t, producer.Publish(ctx, anOrder, echo.WithHeader("traceparent", given)))
		require.NoError(t, producer.PublishBatch(ctx, []order{anOrder, anOrder}, echo.WithHeader("traceparent", given)))
	})
	for i, s := range w.named("send orders") {
		assert.Equal(t, trace.SpanKindClient, s.SpanKind(), "its context is not the message's")
		assert.Len(t, s.Links(), i+1)
		assert.Equal(t, "b7ad6b7169203331", linked(s)[0].String())
	}
	for _, s := range w.named("process orders") {
		assert.Equal(t, "b7ad6b7169203331", linked(s)[0].String())
	}
	assert.Empty(t, w.named("create orders"))
	w.allEnded()
}

func TestHeadersOfThePublisherAreNotChanged(t *testing.T) {
	w := watch(t)
	mine := map[string]string{"own": "mine", "baggage": "not=yours"}
	share := func(next echo.SendFunc) echo.SendFunc { // a hook of the user's, with one map for all
		return func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			for i := range msgs {
				msgs[i].Header = mine
			}
			return next(ctx, topic, msgs)
		}
	}
	bus := echo.New(append([]echo.BusOption{echo.WithPublishHook(share)}, w.Options()...)...)
	defer bus.Close(t.Context())
	var mu sync.Mutex
	carried := map[string]bool{}
	ctx := baggage.ContextWithBaggage(t.Context(), aMember(t, "user", "u-7"))
	option := echo.WithHeader("own", "mine")
	handle(t, bus, orders, 201, func(_ context.Context, m echo.Message[order]) error {
		assert.Equal(t, "not=yours", m.Headers["baggage"], "the publisher's own")
		mu.Lock()
		defer mu.Unlock()
		carried[m.Headers["traceparent"]] = true
		return nil
	}, func() {
		producer := echo.NewProducer(bus, orders)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 25 {
					assert.NoError(t, producer.Publish(ctx, anOrder, option))
				}
				assert.NoError(t, producer.PublishBatch(ctx, make([]order, 25), option))
			})
		}
		all.Wait()
		require.NoError(t, producer.Publish(ctx, anOrder, option))
	})
	assert.Equal(t, map[string]string{"own": "mine", "baggage": "not=yours"}, mine)
	assert.Len(t, carried, 201, "a context for each")
	w.allEnded()
}

func TestConcurrentConsumersHaveSpansOfTheirOwn(t *testing.T) {
	const n = 500
	w := watch(t)
	bus := w.bus()
	consumer, err := echo.Subscribe(t.Context(), bus, orders, echo.WithConcurrency(8))
	require.NoError(t, err)
	done := make(chan error, 1)
	var left sync.WaitGroup
	left.Add(n)
	go func() {
		done <- consumer.Run(context.Background(), func(ctx context.Context, m echo.Message[order]) error {
			trace.SpanFromContext(ctx).SetAttributes(attribute.String("order", m.Value.ID))
			left.Done()
			return nil
		})
	}()
	producer := echo.NewProducer(bus, orders)
	for range n {
		require.NoError(t, producer.Publish(t.Context(), anOrder))
	}
	left.Wait()
	consumer.Close()
	require.NoError(t, <-done)
	links := map[trace.SpanID]bool{}
	for _, s := range w.named("process orders") {
		links[linked(s)[0]] = true
		assert.Equal(t, "o-1", attrs(s)["order"])
	}
	assert.Len(t, links, n)
	w.allEnded()
}
