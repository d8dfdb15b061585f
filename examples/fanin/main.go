// Command fanin shows many producers on one topic: devices publish readings,
// and one consumer sums them up.
package main

import (
	"context"
	"fmt"
	"log"
	"maps"
	"slices"
	"sync"

	"github.com/echobus/echo"
)

type Reading struct {
	Device  string
	Celsius float64
}

const devices, each = 5, 200

var readings = echo.NewTopic[Reading]("readings")

func main() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	consumer, err := echo.Subscribe(ctx, bus, readings)
	if err != nil {
		log.Fatal(err)
	}

	var producers sync.WaitGroup
	defer producers.Wait()
	for d := range devices {
		producers.Go(func() { report(ctx, bus, fmt.Sprintf("device-%d", d)) })
	}

	count := map[string]int{}
	total := 0
	err = consumer.Run(ctx, func(ctx context.Context, m echo.Message[Reading]) error {
		count[m.Value.Device]++
		if total++; total == devices*each {
			return consumer.Close() // Run ends when this handler has returned
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range slices.Sorted(maps.Keys(count)) {
		fmt.Printf("%s: %d readings\n", d, count[d])
	}
	fmt.Printf("%d readings in all\n", total)
}

// report publishes what one device measures.
func report(ctx context.Context, bus *echo.Bus, device string) {
	producer := echo.NewProducer(bus, readings)
	for i := range each {
		if err := producer.Publish(ctx, Reading{device, 20 + float64(i%10)/10}); err != nil {
			log.Fatal(err)
		}
	}
}
