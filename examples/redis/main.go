// Command redis is the quickstart over Redis Streams: the bus is made with
// another transport, and nothing else differs. As the messages are in Redis,
// both sides may be processes of their own, on machines of their own:
//
//	redis-server &
//	go run ./examples/redis listen &
//	go run ./examples/redis publish
//
// The server is the one that REDIS_URL names, or else localhost:6379. Without
// an argument one process does both.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/redisstream"
)

type Order struct {
	ID    string
	Total float64
}

// The contract between both sides: a name and a type, known to the compiler.
var orders = echo.NewTopic[Order]("orders")

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	if len(args) > 1 || len(args) == 1 && !slices.Contains([]string{"listen", "publish"}, args[0]) {
		log.Fatal("usage: redis [listen | publish]")
	}
	listens := len(args) == 0 || args[0] == "listen"
	publishes := len(args) == 0 || args[0] == "publish"

	ctx := context.Background()
	connecting, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	server, err := redisstream.OpenEnv(connecting)
	if err != nil {
		log.Fatal(err)
	}
	bus := echo.New(echo.WithTransport(server))

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
	if listens {
		listen("billing", echo.WithGroup("billing"))
		listen("shipping", echo.WithGroup("shipping"))
		listen("screen") // without a group: a broadcast
		fmt.Println("listening")
	}
	if publishes {
		producer := echo.NewProducer(bus, orders)
		for _, o := range []Order{{"o-1", 12.50}, {"o-2", 8}, {"o-3", 99.90}} {
			if err := producer.Publish(ctx, o); err != nil {
				log.Fatal(err)
			}
		}
	}
	done.Wait()
	account, err := bus.Close(ctx)
	fmt.Printf("closed: %d messages abandoned, error %v\n", account.Abandoned, err)
}
