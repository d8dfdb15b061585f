// Command retry shows what becomes of messages whose handler fails: they are
// tried again, hold up their own key alone, are rejected, come when they are
// told to, and end as dead letters, which go home once the cause is mended.
//
//	go run ./examples/retry
//	ECHO_URL=redis://localhost:6379 go run ./examples/retry
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync/atomic"
	"time"

	"github.com/echobus/echo"
	_ "github.com/echobus/echo/redisstream"
	_ "github.com/echobus/echo/wsstream"
)

type Order struct {
	ID       string
	Customer string
	Cents    int
}

// Orders of one customer keep their order.
var orders = echo.NewTopic[Order]("retry.orders", echo.WithKeyFunc(func(o Order) string { return o.Customer }))

// policy is all there is to say about failures: three attempts, 50 ms apart.
var policy = echo.Retry{
	Attempts: 3,
	Table:    []time.Duration{50 * time.Millisecond},
	Timeout:  time.Second, // for each
}

var (
	errBusy = errors.New("the bank is busy")
	mended  atomic.Bool // what is wrong with eve's card
)

// charge fails in all the ways there are.
func charge(o Order, attempt int) error {
	switch {
	case o.Cents <= 0:
		return echo.Reject(errors.New("nothing to pay")) // no attempt will help
	case o.ID == "ann-1" && attempt == 1:
		return errBusy // again, as the policy says
	case o.Customer == "dan" && attempt == 1:
		return echo.RetryAfter(500*time.Millisecond, errBusy) // the bank said when
	case o.Customer == "eve" && !mended.Load():
		return errors.New("card declined") // until the attempts are used up
	}
	return nil
}

func main() {
	ctx := context.Background()
	bus, err := echo.Open(ctx, cmp.Or(os.Getenv("ECHO_URL"), "mem://"))
	check(err)
	billing, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("billing"), echo.WithRetry(policy))
	check(err)
	charged := make(chan string, 10)
	go billing.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
		if err := charge(m.Value, m.Attempt); err != nil {
			return err
		}
		charged <- fmt.Sprintf("%s is charged at attempt %d", m.Value.ID, m.Attempt)
		return nil
	})
	// ann's first order fails: her second one waits behind it, and nobody else does.
	check(echo.NewProducer(bus, orders).PublishBatch(ctx, []Order{
		{"ann-1", "ann", 100}, {"ann-2", "ann", 200}, {"bob-1", "bob", 300},
		{"cid-1", "cid", 0}, {"dan-1", "dan", 500}, {"eve-1", "eve", 600},
	}))
	for range 4 {
		fmt.Println(<-charged)
	}
	// What was given up is in a topic of its own, with its value and why.
	support, err := echo.Subscribe(ctx, bus, echo.DeadLetters(orders), echo.WithGroup("support"))
	check(err)
	letters := 0
	for m, err := range support.Messages(ctx) {
		check(err)
		d := m.Value
		fmt.Printf("%s is dead in %s, %s at attempt %d: %s\n", d.Value.ID, d.Group, d.Reason, d.Attempts, d.Error)
		check(m.Ack(ctx))
		if letters++; letters == 2 {
			break
		}
	}
	// The cause is mended, so what died of it is sent home. The rest stays dead.
	mended.Store(true)
	done, err := echo.Redrive(ctx, bus, orders, func(m echo.Message[echo.DeadLetter[Order]]) bool {
		return m.Value.Reason == echo.ReasonAttempts
	}, 100)
	check(err)
	fmt.Printf("%d is sent home, %d is kept\n", done.Sent, done.Kept)
	fmt.Println(<-charged)
	_, err = bus.Close(ctx)
	check(err)
	s := billing.Stats()
	fmt.Printf("%d handled, %d failures, %d dead letters\n", s.Handled, s.Failed, s.Dead)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
