package echotest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/memstream"
)

// docs/testing.md shows parts of this file.

type Order struct {
	ID    string
	Total float64
}

type Invoice struct {
	Order  string
	Amount float64
}

var (
	purchases = echo.NewTopic[Order]("purchases")
	invoices  = echo.NewTopic[Invoice]("invoices")
)

var errLimit = errors.New("over the limit")

// StartBilling makes an invoice of each purchase, until the bus is closed. It
// has subscribed when it returns.
func StartBilling(ctx context.Context, bus *echo.Bus) error {
	c, err := echo.Subscribe(ctx, bus, purchases, echo.WithGroup("billing"),
		echo.WithRetry(echo.Retry{Attempts: 8, Min: time.Second}))
	if err != nil {
		return err
	}
	out := echo.NewProducer(bus, invoices)
	go c.Run(context.WithoutCancel(ctx), func(ctx context.Context, m echo.Message[Order]) error {
		if m.Value.Total > 1000 {
			return echo.Reject(errLimit)
		}
		// Whoever handles invoices knows by the ID what comes twice.
		return out.Publish(ctx, Invoice{m.Value.ID, m.Value.Total}, echo.WithID(m.ID))
	})
	return nil
}

func TestPurchasesAreBilled(t *testing.T) {
	bus := echotest.New(t)
	if err := StartBilling(t.Context(), bus.Bus); err != nil {
		t.Fatal(err)
	}
	p := echo.NewProducer(bus.Bus, purchases)
	if err := p.PublishBatch(t.Context(), []Order{{"o-1", 12.5}, {"o-2", 5000}}); err != nil {
		t.Fatal(err)
	}
	bus.WaitIdle(t.Context())

	echotest.Expect(bus, invoices, Invoice{"o-1", 12.5})
	dead := echotest.DeadLetters(bus, purchases)
	if len(dead) != 1 || dead[0].Value.Value.ID != "o-2" || dead[0].Value.Error != errLimit.Error() {
		t.Errorf("got dead letters %+v, want o-2 alone, over the limit", dead)
	}
}

func TestAPurchaseOfTomorrowIsBilledTomorrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t) // in the bubble
		if err := StartBilling(t.Context(), bus.Bus); err != nil {
			t.Fatal(err)
		}
		p := echo.NewProducer(bus.Bus, purchases)
		if err := p.Publish(t.Context(), Order{"o-1", 12.5}, echo.WithDelay(24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		bus.WaitIdle(t.Context())
		echotest.Expect(bus, invoices) // nothing yet

		time.Sleep(24 * time.Hour) // which takes no time
		bus.WaitIdle(t.Context())
		echotest.Expect(bus, invoices, Invoice{"o-1", 12.5})
	})
}

func TestEachPurchaseIsBilledWhateverHappens(t *testing.T) {
	bus := echotest.New(t,
		echotest.WithMemory(memstream.WithLease(50*time.Millisecond)), // a lost acknowledgement is noticed then
		echotest.WithFaults(1, echotest.Faults{LoseAck: 0.1, LoseLease: 0.1, Duplicate: 0.1}))
	if err := StartBilling(t.Context(), bus.Bus); err != nil {
		t.Fatal(err)
	}
	if err := echo.NewProducer(bus.Bus, purchases).PublishBatch(t.Context(), make([]Order, 100)); err != nil {
		t.Fatal(err)
	}
	bus.WaitIdle(t.Context())

	billed := make(map[string]bool)
	for _, m := range echotest.Published(bus, invoices) {
		billed[m.ID] = true
	}
	if len(billed) != 100 {
		t.Errorf("got invoices of %d purchases, want 100", len(billed))
	}
}
