// Command fanout shows one event reaching several systems, each in its own
// way: every broadcast subscriber gets every message.
package main

import (
	"context"
	"fmt"
	"log"
	"sync"

	"github.com/echobus/echo"
)

type Event struct {
	Severity int
	Text     string
}

var events = echo.NewTopic[Event]("events")

func main() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)

	var archived, shown, alarms int
	var handled sync.WaitGroup
	subscribe := func(handle func(Event)) {
		consumer, err := echo.Subscribe(ctx, bus, events)
		if err != nil {
			log.Fatal(err)
		}
		go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Event]) error {
			defer handled.Done()
			handle(m.Value)
			return nil
		})
	}
	subscribe(func(Event) { archived++ })
	subscribe(func(Event) { shown++ })
	subscribe(func(e Event) {
		if e.Severity >= 8 {
			alarms++
		}
	})

	const n = 100
	handled.Add(3 * n)
	producer := echo.NewProducer(bus, events)
	for i := range n {
		if err := producer.Publish(ctx, Event{i % 10, fmt.Sprintf("event %d", i)}); err != nil {
			log.Fatal(err)
		}
	}
	handled.Wait()
	fmt.Printf("published %d, archived %d, shown %d, alarms %d\n", n, archived, shown, alarms)
}
