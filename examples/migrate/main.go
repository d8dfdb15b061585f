// Command migrate moves a live topic from one transport to another, in the
// steps of docs/migrate.md: publishing does not stop, and each order is handled
// once and in its place. Both transports are in memory here; with Redis for
// either it is the same program.
package main

import (
	"context"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
)

type Order struct{ N int }

var orders = echo.NewTopic[Order]("orders")

const each = 100 // orders published in each step

var (
	old = memstream.New()
	new = memstream.New()

	published int
	handled   = make(chan int, 10*each)
)

func main() {
	log.SetFlags(0)
	ctx := context.Background()

	// Where it begins: everybody is on the old transport.
	publish(ctx, transport.KeepOpen(old))
	billing := consume(ctx, transport.KeepOpen(old), 40) // and is behind
	fmt.Printf("1. old: %d published\n", published)

	// Publishers first: both transports have everything from now on, so until
	// step 3 there is a way back.
	tee := migrate.Tee(transport.KeepOpen(old), transport.KeepOpen(new))
	publish(ctx, tee)
	fmt.Printf("2. tee: %d on both\n", tee.Stats().Both)

	// Consumers next: they finish the old transport before they read the new one.
	billing.close(ctx)
	drain := migrate.Drainover(transport.KeepOpen(old), transport.KeepOpen(new), migrate.WithQuiet(200*time.Millisecond))
	billing = consume(ctx, drain, -1)
	publish(ctx, migrate.Drainover(transport.KeepOpen(old), transport.KeepOpen(new))) // and publishers leave the old one
	billing.until(published)
	s := drain.Stats()
	fmt.Printf("3. drainover: %d from old, %d from new, %d that were on both and came once\n", s.Old, s.New, s.Repeated)

	// At last nobody needs the old transport.
	billing.close(ctx)
	old.Close()
	billing = consume(ctx, transport.KeepOpen(new), -1)
	publish(ctx, transport.KeepOpen(new))
	billing.until(published)
	billing.close(ctx)
	new.Close()

	close(handled)
	next, inOrder := 0, true
	for n := range handled {
		inOrder = inOrder && n == next
		next++
	}
	fmt.Printf("4. new: %d of %d handled, each once and in order: %t\n", next, published, inOrder)
}

// publish is a process that publishes.
func publish(ctx context.Context, t transport.Transport) {
	bus := echo.New(echo.WithTransport(t))
	producer := echo.NewProducer(bus, orders)
	for range each {
		if err := producer.Publish(ctx, Order{published}); err != nil {
			log.Fatal(err)
		}
		published++
	}
	if _, err := bus.Close(ctx); err != nil {
		log.Fatal(err)
	}
}

// worker is a process that handles orders.
type worker struct{ bus *echo.Bus }

var count atomic.Int64 // orders handled

// consume handles orders: so many, or all if that is negative.
func consume(ctx context.Context, t transport.Transport, most int) *worker {
	w := &worker{echo.New(echo.WithTransport(t))}
	consumer, err := echo.Subscribe(ctx, w.bus, orders, echo.WithGroup("billing"))
	if err != nil {
		log.Fatal(err)
	}
	handle := func(_ context.Context, m echo.Message[Order]) error {
		handled <- m.Value.N
		count.Add(1)
		return nil
	}
	if most < 0 {
		go consumer.Run(ctx, handle)
		return w
	}
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		handle(ctx, m)
		if err := m.Ack(ctx); err != nil {
			log.Fatal(err)
		}
		if most--; most == 0 {
			break
		}
	}
	return w
}

// until waits until so many orders have been handled.
func (w *worker) until(n int) {
	for count.Load() < int64(n) {
		time.Sleep(time.Millisecond)
	}
}

func (w *worker) close(ctx context.Context) {
	if _, err := w.bus.Close(ctx); err != nil {
		log.Fatal(err)
	}
}
