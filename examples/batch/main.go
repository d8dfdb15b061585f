// Command batch shows work that is cheaper in bulk, with an outcome for each
// message: rows are stored by the hundred, and a bad one does not fail the others.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/echobus/echo"
)

type Row struct {
	ID    int
	Price int
}

const total = 1000

var rows = echo.NewTopic[Row]("rows")

// store is a table that refuses negative prices.
type store struct {
	rows map[int]Row
}

var errPrice = errors.New("negative price")

// insert stores rows in one go and returns an error for each that it refused.
func (s *store) insert(batch echo.Batch[Row]) map[int]error {
	refused := map[int]error{}
	for i, m := range batch {
		if m.Value.Price < 0 {
			refused[i] = errPrice
			continue
		}
		s.rows[m.Value.ID] = m.Value
	}
	return refused
}

func main() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	if err := fill(ctx, bus); err != nil {
		log.Fatal(err)
	}
	consumer, err := echo.Subscribe(ctx, bus, rows, echo.WithGroup("loader"))
	if err != nil {
		log.Fatal(err)
	}

	db := &store{rows: map[int]Row{}}
	retried, setAside := 0, 0
	for batch, err := range consumer.Batches(ctx, 100, 10*time.Millisecond) {
		if err != nil {
			log.Fatal(err)
		}
		for i := range db.insert(batch) {
			m := batch[i]
			if m.Attempt < 2 { // it may have been a bad moment
				retried++
				if err := m.Nack(ctx, time.Millisecond); err != nil {
					log.Fatal(err)
				}
				continue
			}
			setAside++ // a bad row stays bad: the Ack below is its end
		}
		if err := batch.Ack(ctx); err != nil { // all that is not settled yet
			log.Fatal(err)
		}
		if len(db.rows)+setAside == total {
			break
		}
	}
	fmt.Printf("%d rows stored, %d tried twice, %d set aside\n", len(db.rows), retried, setAside)
}

func fill(ctx context.Context, bus *echo.Bus) error {
	batch := make([]Row, total)
	for i := range batch {
		batch[i] = Row{i, i % 50}
		if i%250 == 249 {
			batch[i].Price = -1
		}
	}
	return echo.NewProducer(bus, rows).PublishBatch(ctx, batch)
}
