package echotel_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
)

func TestBatchHasASpanForEachMessage(t *testing.T) {
	w := watch(t)
	bus := w.bus()
	handle(t, bus, orders, 3, nothing[order], func() {
		require.NoError(t, echo.NewProducer(bus, orders).PublishBatch(t.Context(), make([]order, 3)))
	})
	sent, created := w.only("send orders"), w.named("create orders")
	require.Len(t, created, 3)
	assert.Equal(t, trace.SpanKindClient, sent.SpanKind())
	assert.Equal(t, int64(3), attrs(sent)["messaging.batch.message_count"])
	assert.NotContains(t, attrs(sent), "messaging.message.id")
	var ids []trace.SpanID
	for i, c := range created {
		assert.Equal(t, trace.SpanKindProducer, c.SpanKind())
		assert.Equal(t, "create", attrs(c)["messaging.operation.type"])
		assert.Equal(t, attrs(c)["messaging.message.id"], values(sent.Links()[i].Attributes)["messaging.message.id"])
		ids = append(ids, c.SpanContext().SpanID())
	}
	assert.Equal(t, ids, linked(sent))
	for i, p := range w.named("process orders") {
		assert.Equal(t, ids[i:i+1], linked(p))
	}
	w.allEnded()
}

func TestWithoutCreateSpansABatchIsOneContext(t *testing.T) {
	w := watch(t, echotel.WithoutCreateSpans())
	bus := w.bus()
	handle(t, bus, orders, 3, nothing[order], func() {
		require.NoError(t, echo.NewProducer(bus, orders).PublishBatch(t.Context(), make([]order, 3)))
	})
	sent := w.only("send orders")
	assert.Equal(t, trace.SpanKindProducer, sent.SpanKind())
	assert.Empty(t, sent.Links())
	assert.Empty(t, w.named("create orders"))
	processed := w.named("process orders")
	assert.Len(t, processed, 3)
	for _, p := range processed {
		assert.Equal(t, []trace.SpanID{sent.SpanContext().SpanID()}, linked(p))
	}
	w.allEnded()
}

func TestStartIsForMessagesThatAreSettledByHand(t *testing.T) {
	w := watch(t)
	bus := w.bus()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("g"))
	require.NoError(t, err)
	require.NoError(t, echo.NewProducer(bus, orders).Publish(ctx, anOrder))
	attempts := 0
	for m, err := range consumer.Messages(ctx) {
		require.NoError(t, err)
		work, end := echotel.Start(ctx, w.Telemetry, m)
		assert.True(t, trace.SpanContextFromContext(work).IsValid())
		if attempts++; attempts == 1 {
			end(errors.New("the printer is on fire"))
			require.NoError(t, m.Nack(ctx, 0))
			continue
		}
		end(nil)
		require.NoError(t, m.Ack(ctx))
		break
	}
	p := w.named("process orders")
	require.Len(t, p, 2)
	for i, status := range []codes.Code{codes.Error, codes.Unset} {
		assert.Equal(t, status, p[i].Status().Code)
		assert.Equal(t, int64(i+1), attrs(p[i])["messaging.echo.message.delivery_attempt"])
		assert.Equal(t, []trace.SpanID{w.only("send orders").SpanContext().SpanID()}, linked(p[i]))
	}
	w.allEnded()
}

func TestStartBatchHasALinkToEachMessage(t *testing.T) {
	w := watch(t, echotel.WithProducerParent()) // which is for single messages
	bus := w.bus()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("g"))
	require.NoError(t, err)
	require.NoError(t, echo.NewProducer(bus, orders).PublishBatch(ctx, make([]order, 4)))
	require.NoError(t, echo.NewProducer(bus, orders).Publish(ctx, anOrder, echo.WithHeader("traceparent", "rubbish")))
	for b, err := range consumer.Batches(ctx, 5, 5*time.Second) {
		require.NoError(t, err)
		require.Len(t, b, 5)
		_, end := echotel.StartBatch(ctx, w.Telemetry, b)
		end(b.Ack(ctx))
		break
	}
	p := w.only("process orders")
	var ids []trace.SpanID
	for _, c := range w.named("create orders") {
		ids = append(ids, c.SpanContext().SpanID())
	}
	assert.Equal(t, ids, linked(p), "four that came with a context, and none for rubbish")
	assert.Equal(t, int64(1), values(p.Links()[3].Attributes)["messaging.echo.message.delivery_attempt"])
	assert.Equal(t, int64(5), attrs(p)["messaging.batch.message_count"])
	assert.False(t, p.Parent().IsValid())
	assert.Equal(t, int64(5), w.points("messaging.client.consumed.messages")[0].value)
	w.allEnded()

	same, end := echotel.StartBatch(ctx, w.Telemetry, echo.Batch[order]{})
	end(nil)
	assert.Equal(t, ctx, same, "nothing for no message")
}
