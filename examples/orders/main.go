// Command orders is a small order system over Redis Streams: a shop takes
// orders, and two groups work on each of them, billing with two workers and
// shipping with one. The workers are processes, and every other second one of
// them is killed in the middle of its work and started again.
//
//	redis-server &
//	go run ./examples/orders
//
// prints a graph of how far each group is behind, and at the end what became
// of every order. The server is the one that REDIS_URL names, or else
// localhost:6379.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/redisstream"
)

// Order is what a customer wants.
type Order struct {
	ID       string
	Customer string
	Total    float64
}

// Step is what a worker did for an order.
type Step struct {
	Order   string
	Group   string
	Attempt int
}

var (
	orders = echo.NewTopic[Order]("shop.orders")
	steps  = echo.NewTopic[Step]("shop.steps")
)

// workers are the groups and the names of their workers.
var workers = []struct{ group, name string }{
	{"billing", "billing-1"},
	{"billing", "billing-2"},
	{"shipping", "shipping-1"},
}

// takes is how long a step takes. A worker does four at a time.
var takes = map[string]time.Duration{"billing": 10 * time.Millisecond, "shipping": 15 * time.Millisecond}

func main() {
	log.SetFlags(0)
	log.SetPrefix("orders: ")
	lasts := flag.Duration("for", 15*time.Second, "how long the shop is open")
	rate := flag.Int("rate", 200, "orders a second")
	group := flag.String("work", "", "be a worker of this `group`; the shop starts them")
	name := flag.String("name", "", "and the worker's name")
	flag.Parse()
	var err error
	if *group != "" {
		err = work(*group, *name)
	} else {
		err = keepShop(*lasts, *rate)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// open returns the server and a bus over it. A worker's name lets it take up
// at once what it held when it was killed.
func open(ctx context.Context, opts ...redisstream.Option) (*redisstream.Transport, *echo.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	server, err := redisstream.OpenEnv(ctx, append(opts, redisstream.WithLease(5*time.Second))...)
	if err != nil {
		return nil, nil, err
	}
	return server, echo.New(echo.WithTransport(server)), nil
}

// work is a worker's life: take an order, take its time, tell what was done.
// Orders of one customer stay in their order.
func work(group, name string) error {
	ctx := context.Background()
	_, bus, err := open(ctx, redisstream.WithName(name))
	if err != nil {
		return err
	}
	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup(group), echo.WithConcurrency(4), echo.WithPrefetch(32, 1<<20))
	if err != nil {
		return err
	}
	done := echo.NewProducer(bus, steps)
	fmt.Fprintf(os.Stderr, "%s is at work\n", name)
	return consumer.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
		time.Sleep(takes[group])
		return done.Publish(ctx, Step{m.Value.ID, group, m.Attempt})
	})
}
