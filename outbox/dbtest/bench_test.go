package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

func benchEach(b *testing.B, f func(b *testing.B, db *database)) {
	b.Run("SQLite", func(b *testing.B) { f(b, sqlite(b)) })
	b.Run("PostgreSQL", func(b *testing.B) { f(b, postgres(b)) })
}

// What waits, 10,000 messages of 128 bytes, is brought to memory and deleted.
func BenchmarkRelay(b *testing.B) {
	const n = 10_000
	for _, batch := range []int{256, 2048} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			benchEach(b, func(b *testing.B, db *database) {
				ob := db.outbox(b, outbox.WithBatch(batch))
				mem := memstream.New()
				defer mem.Close()
				s := subscribe(b, mem, "t")
				msgs := messages("m", n)
				for i := range msgs {
					msgs[i].Data = make([]byte, 128)
				}
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					db.publish(b, ob, "t", msgs...)
					b.StartTimer()
					stop := relaying(b, ob, mem)
					receive(b, s, n)
					stop() // which deletes the last of them
				}
				b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "msgs/s")
			})
		})
	}
}

// A transaction that publishes one message of 128 bytes and does nothing else,
// against one that inserts the same bytes into a table of one column.
func BenchmarkPublish(b *testing.B) {
	m := messages("m", 1)
	m[0].Data = make([]byte, 128)
	benchEach(b, func(b *testing.B, db *database) {
		ob := db.outbox(b)
		typ := map[string]string{"SQLite": "BLOB", "PostgreSQL": "bytea"}[db.kind]
		if _, err := db.Exec("CREATE TABLE bare (data " + typ + ")"); err != nil {
			b.Fatal(err)
		}
		bare := map[string]string{"SQLite": "INSERT INTO bare VALUES (?)", "PostgreSQL": "INSERT INTO bare VALUES ($1)"}[db.kind]
		for what, f := range map[string]func(context.Context, *sql.Tx) error{
			"outbox": func(ctx context.Context, _ *sql.Tx) error {
				_, err := ob.Send(ctx, "t", []transport.Message{m[0]})
				return err
			},
			"bare insert": func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, bare, m[0].Data)
				return err
			},
		} {
			b.Run(what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := db.within(b.Context(), f); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}
