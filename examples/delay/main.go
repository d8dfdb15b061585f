// Command delay shows messages that are published for later: after a delay, at
// a time, within a time to live, and once though they are published twice.
//
//	go run ./examples/delay
//	ECHO_URL=redis://localhost:6379 go run ./examples/delay
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/echobus/echo"
	_ "github.com/echobus/echo/redisstream"
	_ "github.com/echobus/echo/wsstream"
)

type Reminder struct {
	Text  string
	After time.Duration // when it is due, counted from the start
}

// A reminder that is published again within a second is not stored again.
var reminders = echo.NewTopic[Reminder]("delay.reminders", echo.WithDedup(time.Second))

func main() {
	ctx := context.Background()
	bus, err := echo.Open(ctx, cmp.Or(os.Getenv("ECHO_URL"), "mem://"))
	check(err)
	producer := echo.NewProducer(bus, reminders)
	start := time.Now()
	publish := func(r Reminder, opts ...echo.PublishOption) { check(producer.Publish(ctx, r, opts...)) }

	publish(Reminder{"the cake is ready", 600 * time.Millisecond}, echo.WithDelay(600*time.Millisecond))
	publish(Reminder{"turn the oven down", 300 * time.Millisecond}, echo.WithTime(start.Add(300*time.Millisecond)))
	publish(Reminder{"the oven is on", 0})

	// Whoever is not sure that a message was stored publishes it again.
	for range 3 {
		publish(Reminder{"pay invoice 7", 0}, echo.WithIdempotencyKey("invoice-7"))
	}

	// Nobody consumes yet, and this one is of no use later.
	publish(Reminder{"the shop closes in a moment", 0}, echo.WithTTL(10*time.Millisecond))
	time.Sleep(50 * time.Millisecond)

	// The time to live of a delayed message begins when it is due.
	publish(Reminder{"fetch the guests", 900 * time.Millisecond}, echo.WithDelay(900*time.Millisecond-time.Since(start)), echo.WithTTL(time.Minute))

	kitchen, err := echo.Subscribe(ctx, bus, reminders, echo.WithGroup("kitchen"))
	check(err)
	came := make(chan struct{}, 10)
	go kitchen.Run(ctx, func(ctx context.Context, m echo.Message[Reminder]) error {
		early := ""
		if time.Since(start) < m.Value.After-10*time.Millisecond { // clocks count in milliseconds
			early = ", too early"
		}
		fmt.Printf("due after %v: %s%s\n", m.Value.After, m.Value.Text, early)
		came <- struct{}{}
		return nil
	})
	for range 5 {
		<-came
	}
	_, err = bus.Close(ctx)
	check(err)
	s := kitchen.Stats()
	fmt.Printf("%d handled, %d expired\n", s.Handled, s.Expired)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
