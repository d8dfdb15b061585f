// Command telemetry follows an order through two topics and prints its trace:
// a tree of what was published and what was processed because of it. The first
// attempt to bill fails.
package main

import (
	"context"
	"errors"
	"log"
	"os"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
)

type Order struct{ ID string }

type Invoice struct{ Order string }

var (
	orders   = echo.NewTopic[Order]("orders")
	invoices = echo.NewTopic[Invoice]("invoices")
)

func main() {
	ctx := context.Background()
	spans := &tree{} // in place of an exporter
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	tel := echotel.New(echotel.WithTracerProvider(tracers), echotel.WithProducerParent())
	bus := echo.New(tel.Options()...)

	billing, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("billing"))
	if err != nil {
		log.Fatal(err)
	}
	mailing, err := echo.Subscribe(ctx, bus, invoices, echo.WithGroup("mailing"))
	if err != nil {
		log.Fatal(err)
	}
	toMail := echo.NewProducer(bus, invoices)
	go billing.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
		if m.Attempt == 1 {
			return errors.New("card declined")
		}
		return toMail.Publish(ctx, Invoice{m.Value.ID}) // ctx has the span
	})
	mailed := make(chan struct{})
	go mailing.Run(ctx, func(context.Context, echo.Message[Invoice]) error {
		close(mailed)
		return nil
	})

	checkout, span := tracers.Tracer("shop").Start(ctx, "checkout")
	if err := echo.NewProducer(bus, orders).Publish(checkout, Order{"o-1"}); err != nil {
		log.Fatal(err)
	}
	span.End()
	<-mailed
	if _, err := bus.Close(ctx); err != nil { // handlers have returned, so spans have ended
		log.Fatal(err)
	}
	spans.print(os.Stdout)
}
