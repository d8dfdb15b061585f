package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
)

// An order and the message about it are committed together, and relayed.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "outbox")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_txlock=immediate&_pragma=busy_timeout(10000)")
	if err != nil {
		panic(err)
	}
	defer db.Close()
	ob := outbox.New(db, outbox.SQLite)
	if err := ob.Create(ctx); err != nil {
		panic(err)
	}
	if _, err := db.Exec("CREATE TABLE orders (id text)"); err != nil {
		panic(err)
	}

	// Publish.
	bus := echo.New(echo.WithTransport(ob))
	producer := echo.NewProducer(bus, orders)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		panic(err)
	}
	if _, err := tx.Exec("INSERT INTO orders VALUES ('o-1')"); err != nil {
		panic(err)
	}
	if err := producer.Publish(outbox.With(ctx, tx), order{ID: "o-1", Total: 12.5}); err != nil {
		panic(err)
	}
	if err := tx.Commit(); err != nil {
		panic(err)
	}
	ob.Wake()

	// Relay and consume.
	server := memstream.New()
	consumer, err := echo.Subscribe(ctx, echo.New(echo.WithTransport(server)), orders, echo.WithGroup("billing"))
	if err != nil {
		panic(err)
	}
	relay := make(chan error)
	go func() { relay <- ob.Relay(ctx, server) }()
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			panic(err)
		}
		fmt.Printf("order %s for %.2f\n", m.Value.ID, m.Value.Total)
		m.Ack(ctx)
		break
	}
	consumer.Close()
	cancel()
	fmt.Println("relay:", <-relay)
	server.Close()
	// Output:
	// order o-1 for 12.50
	// relay: <nil>
}

// A message that its target refuses is kept, and sent again when it may be.
func Example_parked() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "outbox")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db"))
	if err != nil {
		panic(err)
	}
	defer db.Close()
	ob := outbox.New(db, outbox.SQLite)
	if err := ob.Create(ctx); err != nil {
		panic(err)
	}
	if _, err := db.Exec("INSERT INTO echo_outbox (topic, message, key, time, type, header, data, parked) VALUES ('orders', 'm-1', x'', '2026-01-02T03:04:05Z', '', '', x'', 'too large')"); err != nil {
		panic(err)
	}
	stats, err := ob.Stats(ctx)
	fmt.Println(stats.Waiting, stats.Parked, err)
	parked, err := ob.Parked(ctx, 10)
	fmt.Println(parked[0].Topic, parked[0].Message.ID, parked[0].Reason, err)
	fmt.Println(ob.Retry(ctx, parked[0].ID))
	// Output:
	// 0 1 <nil>
	// orders m-1 too large <nil>
	// 1 <nil>
}
