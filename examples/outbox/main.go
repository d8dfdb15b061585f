// Command outbox takes orders into a database. Each order and the message about
// it are written in one transaction, so there is never one without the other;
// a relay brings the messages to where others listen. The database is SQLite in
// a folder that is removed, and the others listen in memory: with PostgreSQL
// and Redis the program is the same but for three lines.
//
//	cd examples/outbox && go run .
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	_ "modernc.org/sqlite"
)

// Order is what a customer wants.
type Order struct {
	ID       string
	Customer string
	Total    float64
}

var orders = echo.NewTopic[Order]("orders", echo.WithKeyFunc(func(o Order) string { return o.Customer }))

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "echo-outbox")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "shop.db")+"?_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE orders (id text PRIMARY KEY, customer text, total real)"); err != nil {
		return err
	}
	ob := outbox.New(db, outbox.SQLite)
	if err := ob.Create(ctx); err != nil {
		return err
	}
	if err := sell(ctx, db, ob); err != nil {
		return err
	}
	return deliver(ctx, ob)
}

// sell takes three orders, one of which is rolled back.
func sell(ctx context.Context, db *sql.DB, ob *outbox.Outbox) error {
	bus := echo.New(echo.WithTransport(ob))
	defer bus.Close(ctx)
	s := shop{db, echo.NewProducer(bus, orders)}
	for _, o := range []Order{{"o-1", "ann", 12.50}, {"o-2", "bob", 1e6}, {"o-3", "ann", 8}} {
		if err := s.take(ctx, o); err != nil {
			fmt.Printf("order %s is rolled back: %v\n", o.ID, err)
		}
	}
	var rows int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&rows); err != nil {
		return err
	}
	stats, err := ob.Stats(ctx)
	fmt.Printf("%d orders in the database, %d messages wait\n", rows, stats.Waiting)
	return err
}

type shop struct {
	db       *sql.DB
	producer *echo.Producer[Order]
}

// take stores an order and publishes it: both, or neither.
func (s shop) take(ctx context.Context, o Order) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES (?, ?, ?)", o.ID, o.Customer, o.Total); err != nil {
		return err
	}
	if err := s.producer.Publish(outbox.With(ctx, tx), o); err != nil {
		return err
	}
	if o.Total > 1000 {
		return errors.New("nobody has that much")
	}
	return tx.Commit()
}

// deliver relays what was committed, and listens.
func deliver(ctx context.Context, ob *outbox.Outbox) error {
	server := memstream.New()
	bus := echo.New(echo.WithTransport(server))
	defer bus.Close(ctx)
	consumer, err := echo.Subscribe(ctx, bus, orders, echo.WithGroup("billing"))
	if err != nil {
		return err
	}

	relaying, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- ob.Relay(relaying, server) }()
	n := 0
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			return err
		}
		fmt.Printf("billing got order %s of %s for %.2f\n", m.Value.ID, m.Key, m.Value.Total)
		if err := m.Ack(ctx); err != nil {
			return err
		}
		if n++; n == 2 {
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		return err
	}
	stats, err := ob.Stats(ctx)
	fmt.Printf("%d messages sent, %d wait\n", stats.Sent, stats.Waiting)
	return err
}
