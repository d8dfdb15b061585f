// Command flow-stream is a flow that runs for ever over topics in Redis: orders
// come in, customer and price are looked up at the same time, an invoice is
// published for each, and shipments in batches. The flow is a process of its own, which
// is killed again and again in the middle of its work; in the end a ledger says what became of every order.
//
//	redis-server &
//	go run ./examples/flow-stream
//
// The server is the one that REDIS_URL names, or else localhost:6379. With -page
// the flow can be watched at http://localhost:8080/.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
	"github.com/echobus/echo/flow/page"
	"github.com/echobus/echo/redisstream"
)

// Order is what a customer wants.
type Order struct {
	ID       int
	Customer int
	Pieces   int
}

// Priced is an order of which everything is known.
type Priced struct {
	Order
	Name  string
	Cents int
}

var (
	orders    = echo.NewTopic[Order]("flow.orders", echo.WithKeyFunc(func(o Order) string { return fmt.Sprint(o.Customer) }))
	invoices  = echo.NewTopic[Priced]("flow.invoices")
	shipments = echo.NewTopic[Priced]("flow.shipments")
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("flow-stream: ")
	n := flag.Int("orders", 3000, "how many orders there are")
	kills := flag.Int("kills", 10, "how often the flow is killed")
	worker := flag.Bool("work", false, "be the flow; the other process starts it")
	addr := flag.String("page", "", "show the flow at this `address`, such as localhost:8080")
	flag.Parse()
	var err error
	if *worker {
		err = work(*addr)
	} else {
		err = keepLedger(*n, *kills, *addr)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// open returns a bus over the server. The name lets the flow take up at once what
// it held when it was killed.
func open(ctx context.Context, opts ...redisstream.Option) (*echo.Bus, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	server, err := redisstream.OpenEnv(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return echo.New(echo.WithTransport(server)), nil
}

// work runs the flow until it is told to stop.
func work(addr string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	bus, err := open(ctx, redisstream.WithName("flow"), redisstream.WithLease(5*time.Second))
	if err != nil {
		return err
	}
	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("flow"), echo.WithConcurrency(16))
	if err != nil {
		return err
	}
	pipe, err := flow.Pipe("orders", pipeline(consumer, echo.NewProducer(bus, invoices), echo.NewProducer(bus, shipments)))
	if err != nil {
		return err
	}
	if addr != "" {
		server := &http.Server{Addr: addr, Handler: page.Handler(pipe), ReadHeaderTimeout: 5 * time.Second}
		go func() {
			if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				log.Print(err)
			}
		}()
		defer server.Close()
	}
	fmt.Println("at work")
	if err := pipe.Run(ctx); err != nil {
		return err
	}
	fmt.Println(pipe)
	_, err = bus.Close(context.Background())
	return err
}

// pipeline is the flow.
func pipeline(from *echo.Consumer[Order], invoices, shipments *echo.Producer[Priced]) flow.Stream[[]Priced] {
	look := flow.Both("look up",
		flow.With(flow.Func("customer", customer), flow.Timeout(time.Second)),
		flow.With(flow.Func("price", price), flow.Timeout(time.Second), flow.Limit(8)))
	enrich := flow.Merge("enrich", enriched, flow.Map("order", func(o Order) Order { return o }), look)
	priced := flow.Via(flow.FromTopic(from), flow.Then(enrich, flow.ToTopic(invoices)))
	return flow.Via(flow.Batch(priced, 50, 50*time.Millisecond), flow.ToTopicBatch(shipments))
}

func customer(ctx context.Context, o Order) (string, error) {
	time.Sleep(2 * time.Millisecond) // a database is asked
	return fmt.Sprint("customer ", o.Customer), nil
}

func price(ctx context.Context, o Order) (int, error) {
	time.Sleep(3 * time.Millisecond) // a service is asked
	return 995 * o.Pieces, nil
}

func enriched(o Order, found flow.Pair[string, int]) (Priced, error) {
	return Priced{o, found.First, found.Second}, nil
}
