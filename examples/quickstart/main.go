// Command quickstart publishes three orders. Two groups each get all of them,
// and so does a broadcast subscriber.
package main

import (
	"context"
	"fmt"
	"log"
	"sync"

	"github.com/echobus/echo"
)

type Order struct {
	ID    string
	Total float64
}

// The contract between both sides: a name and a type, known to the compiler.
var orders = echo.NewTopic[Order]("orders")

func main() {
	ctx := context.Background()
	bus := echo.New() // in memory

	var done sync.WaitGroup
	listen := func(who string, opts ...echo.SubscribeOption) {
		consumer, err := echo.Subscribe(ctx, bus, orders, opts...)
		if err != nil {
			log.Fatal(err)
		}
		done.Add(3) // each of them gets all three
		go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
			fmt.Printf("%-8s got order %s for %.2f\n", who, m.Value.ID, m.Value.Total)
			done.Done()
			return nil // done: acknowledged
		})
	}
	listen("billing", echo.WithGroup("billing"))
	listen("shipping", echo.WithGroup("shipping"))
	listen("screen") // without a group: a broadcast

	producer := echo.NewProducer(bus, orders)
	for _, o := range []Order{{"o-1", 12.50}, {"o-2", 8}, {"o-3", 99.90}} {
		if err := producer.Publish(ctx, o); err != nil {
			log.Fatal(err)
		}
	}
	done.Wait()
	account, err := bus.Close(ctx)
	fmt.Printf("closed: %d messages abandoned, error %v\n", account.Abandoned, err)
}
