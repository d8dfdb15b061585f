package dbtest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

func TestCommitPublishesAndRollbackDoesNot(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ctx := t.Context()
		_, err := db.ExecContext(ctx, "CREATE TABLE orders (id text PRIMARY KEY)")
		require.NoError(t, err)
		ob := db.outbox(t)
		hooked := 0
		bus := echo.New(echo.WithTransport(ob), echo.WithPublishHook(func(next echo.SendFunc) echo.SendFunc {
			return func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
				hooked++
				return next(ctx, topic, msgs)
			}
		}))
		defer bus.Close(ctx)
		producer := echo.NewProducer(bus, orders)
		changed := errors.New("changed my mind")
		for i := range 10 {
			err := db.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
				id := fmt.Sprintf("o-%d", i)
				if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES ('"+id+"')"); err != nil {
					return err
				}
				if err := producer.Publish(ctx, order{id, 1}, echo.WithKey("k")); err != nil {
					return err
				}
				if i%2 == 1 {
					return changed
				}
				return nil
			})
			require.True(t, err == nil || err == changed, "got %v", err)
		}
		require.Equal(t, 10, hooked)

		mem := memstream.New()
		server := echo.New(echo.WithTransport(mem))
		defer server.Close(context.Background())
		consumer, err := echo.Subscribe(ctx, server, orders, echo.WithGroup("billing"))
		require.NoError(t, err)
		stop := relaying(t, ob, mem)
		eventually(t, ob, "all is relayed", drained)
		stop()
		var got []string
		for m, err := range consumer.Messages(ctx) {
			require.NoError(t, err)
			require.Equal(t, "k", m.Key)
			require.NoError(t, m.Ack(ctx))
			if got = append(got, m.Value.ID); len(got) == 5 {
				break
			}
		}
		require.Equal(t, []string{"o-0", "o-2", "o-4", "o-6", "o-8"}, got)
		s, err := ob.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, outbox.Stats{Sent: 5}, s)
	})
}

func TestAFinishedTransactionPublishesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		for _, finish := range []func(*sql.Tx) error{(*sql.Tx).Commit, (*sql.Tx).Rollback} {
			tx, err := db.Begin()
			require.NoError(t, err)
			require.NoError(t, finish(tx))
			n, err := ob.Send(outbox.With(t.Context(), tx), "t", messages("m", 2))
			require.Zero(t, n)
			require.ErrorIs(t, err, transport.ErrNotPublished)
			require.ErrorIs(t, err, sql.ErrTxDone)
		}
		require.Zero(t, eventually(t, ob, "the table is there", drained).Sent)
	})
}

func TestAFailedInsertIsNotPublished(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		_, err := db.Exec("DROP TABLE echo_outbox")
		require.NoError(t, err)
		tx, err := db.Begin()
		require.NoError(t, err)
		defer tx.Rollback()
		n, err := ob.Send(outbox.With(t.Context(), tx), "t", messages("m", 1000))
		require.Zero(t, n)
		require.ErrorIs(t, err, transport.ErrNotPublished)
		if db.kind == "PostgreSQL" {
			require.Error(t, tx.Commit(), "the transaction is aborted")
		}
	})
}

// What n says is what a commit publishes.
func TestABatchThatFailsInTheMiddle(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		forbid, want := "CREATE TRIGGER no BEFORE INSERT ON echo_outbox WHEN NEW.message = 'm-700' BEGIN SELECT RAISE(ABORT, 'no'); END", 512
		if db.kind == "PostgreSQL" {
			forbid, want = "ALTER TABLE echo_outbox ADD CHECK (message <> 'm-700')", 0
		}
		_, err := db.Exec(forbid)
		require.NoError(t, err)
		tx, err := db.Begin()
		require.NoError(t, err)
		defer tx.Rollback()
		n, err := ob.Send(outbox.With(t.Context(), tx), "t", messages("m", 1000))
		require.ErrorIs(t, err, transport.ErrNotPublished)
		require.Equal(t, want, n)
		require.Equal(t, db.kind == "PostgreSQL", tx.Commit() != nil)
		s, err := ob.Stats(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(want), s.Waiting)
	})
}

func TestABatchKeepsItsOrder(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		want := messages("m", 3000) // several inserts, several rounds
		db.publish(t, ob, "t", want...)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		require.Equal(t, ids(want), ids(receive(t, s, len(want))))
		eventually(t, ob, "all is deleted", drained)
	})
}

func TestLargeMessagesArriveInOrder(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		want := messages("m", 30)
		for i := range want {
			want[i].Data = bytes.Repeat([]byte{byte(i)}, 1<<20)
		}
		db.publish(t, ob, "t", want...)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		for i, m := range receive(t, s, len(want)) {
			require.Equal(t, want[i].ID, m.ID)
			require.True(t, bytes.Equal(want[i].Data, m.Data), "the data of %s", m.ID)
		}
	})
}

func TestMessagesArriveAsTheyWereSent(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		every := make([]byte, 256)
		for i := range every {
			every[i] = byte(i)
		}
		plain := transport.Message{ID: "id", Time: time.Unix(1, 0).UTC(), Data: []byte{}}
		var want []transport.Message
		add := func(change func(*transport.Message)) {
			m := plain
			m.ID = fmt.Sprintf("id-%d", len(want))
			change(&m)
			want = append(want, m)
		}
		add(func(m *transport.Message) {})
		add(func(m *transport.Message) { m.Data = nil })
		add(func(m *transport.Message) { m.Data = every })
		add(func(m *transport.Message) { m.Data = bytes.Repeat(every, 4096) })
		add(func(m *transport.Message) { m.Key = "a:b{c}d*e?f[g]\\ \t\n\"'$1; DROP TABLE x; --" })
		add(func(m *transport.Message) { m.Key = "null \x00 日本語 \u2028 🎉" })
		add(func(m *transport.Message) { m.Key = "\xff not UTF-8" })
		add(func(m *transport.Message) { m.ID, m.Type = "ü 'quoted'", "application/json; version=2" })
		add(func(m *transport.Message) { m.Time = time.Date(2026, 2, 3, 4, 5, 6, 123_456_789, time.UTC) })
		add(func(m *transport.Message) { m.Time = time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC) })
		add(func(m *transport.Message) { m.Time = time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC) })
		add(func(m *transport.Message) {
			m.Header = map[string]string{"": "empty name", "empty value": "", "Ünïcode": "日本語\u2028", "a=b&c:d": "<\r\n\x00\x01>", strings.Repeat("k", 300): strings.Repeat("v", 5000)}
		})
		ob := db.outbox(t)
		db.publish(t, ob, "t", want...)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		for i, got := range receive(t, s, len(want)) {
			w := want[i]
			require.Equal(t, w.ID, got.ID)
			require.Equal(t, w.Key, got.Key)
			require.Equal(t, w.Type, got.Type)
			require.Equal(t, w.Header, got.Header)
			require.Equal(t, w.Time, got.Time)
			require.True(t, bytes.Equal(w.Data, got.Data), "the data of %s", w.ID)
		}
	})
}

// account is a row that transactions take turns with.
const makeAccounts = "CREATE TABLE accounts (name text PRIMARY KEY, seq bigint NOT NULL)"

// change takes the next number of an account and publishes it, in one
// transaction that takes the account's row first.
func change(ctx context.Context, db *database, ob *outbox.Outbox, name string, fail error) error {
	return db.within(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var seq int
		if err := tx.QueryRowContext(ctx, "UPDATE accounts SET seq = seq + 1 WHERE name = '"+name+"' RETURNING seq").Scan(&seq); err != nil {
			return err
		}
		m := transport.Message{ID: fmt.Sprintf("%s-%d-%d", name, seq, time.Now().UnixNano()), Key: name, Time: time.Now(), Data: fmt.Append(nil, seq)}
		if _, err := ob.Send(ctx, "accounts", []transport.Message{m}); err != nil {
			return err
		}
		return fail
	})
}

func TestTransactionsThatTakeTurnsKeepTheirOrderPerKey(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		_, err := db.Exec(makeAccounts)
		require.NoError(t, err)
		names := []string{"a", "b", "c"}
		for _, n := range names {
			_, err := db.Exec("INSERT INTO accounts VALUES ('" + n + "', 0)")
			require.NoError(t, err)
		}
		ob := db.outbox(t)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "accounts")
		relaying(t, ob, mem)
		const workers, each = 8, 30
		changed := errors.New("changed my mind")
		var wg sync.WaitGroup
		errs := make(chan error, workers*each)
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					name := names[(w+i)%len(names)]
					if err := change(t.Context(), db, ob, name, changed); err != changed {
						errs <- fmt.Errorf("a rollback: %w", err)
					}
					errs <- change(t.Context(), db, ob, name, nil)
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		got := make(map[string][]string)
		for _, m := range receive(t, s, workers*each) {
			got[m.Key] = append(got[m.Key], string(m.Data))
		}
		for _, n := range names {
			require.Equal(t, numbers(workers*each/len(names)), got[n], "account %s", n)
		}
		eventually(t, ob, "all is deleted", drained)
	})
}

func numbers(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(i + 1)
	}
	return all
}

// Transactions get ids when they insert and become visible when they commit.
func TestALowerIDThatCommitsLaterIsNotSkipped(t *testing.T) {
	db := postgres(t)
	ob := db.outbox(t)
	mem := memstream.New()
	defer mem.Close()
	s := subscribe(t, mem, "t")
	relaying(t, ob, mem)
	early, late := messages("early", 1), messages("late", 1)
	tx, err := db.Begin()
	require.NoError(t, err)
	_, err = ob.Send(outbox.With(t.Context(), tx), "t", early)
	require.NoError(t, err)
	db.publish(t, ob, "t", late...)
	require.Equal(t, ids(late), ids(receive(t, s, 1)))
	eventually(t, ob, "the later row is deleted", drained)
	require.NoError(t, tx.Commit())
	require.Equal(t, ids(early), ids(receive(t, s, 1)))
}

func TestAnyNumberOfProcessesMayCreateTheTable(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() {
				errs[i] = outbox.New(db.DB, drivers[db.kind].dialect, outbox.WithTable("Order")).Create(t.Context())
			})
		}
		wg.Wait()
		require.Equal(t, make([]error, len(errs)), errs)
	})
}

func TestATableMayBeInASchema(t *testing.T) {
	db := postgres(t)
	_, err := db.Exec("CREATE SCHEMA app")
	require.NoError(t, err)
	ob := db.outbox(t, outbox.WithTable("app.outbox"))
	db.publish(t, ob, "t", messages("m", 1)...)
	var n int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM app.outbox").Scan(&n))
	require.Equal(t, 1, n)
	require.True(t, slices.Contains(strings.Fields(ob.Schema()), `"app"."outbox"`))
}

// A publish that was moved to another goroutine, as group commit does on
// transports that wait, would lose its transaction.
func TestPublishersOfOneProducerKeepToTheirTransactions(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		bus := echo.New(echo.WithTransport(ob))
		defer bus.Close(t.Context())
		producer := echo.NewProducer(bus, orders)
		changed := errors.New("changed my mind")
		var wg sync.WaitGroup
		errs := make([]error, 100)
		for i := range errs {
			wg.Go(func() {
				errs[i] = db.within(t.Context(), func(ctx context.Context, _ *sql.Tx) error {
					if err := producer.Publish(ctx, order{fmt.Sprint(i), 1}); err != nil || i%2 == 0 {
						return err
					}
					return changed
				})
			})
		}
		wg.Wait()
		for i, err := range errs {
			require.True(t, i%2 == 0 && err == nil || i%2 == 1 && err == changed, "publisher %d: %v", i, err)
		}
		s, err := ob.Stats(t.Context())
		require.NoError(t, err)
		require.Equal(t, int64(50), s.Waiting)
	})
}

// A late DELETE of a relay that lost its lease would hit a row that was never sent.
func TestARowIDIsNotUsedTwice(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		last := 0
		for range 3 {
			db.publish(t, ob, "t", messages("m", 2)...)
			var lowest, highest int
			require.NoError(t, db.QueryRow("SELECT min(id), max(id) FROM echo_outbox").Scan(&lowest, &highest))
			require.Greater(t, lowest, last)
			last = highest
			_, err := db.Exec("DELETE FROM echo_outbox")
			require.NoError(t, err)
		}
	})
}

func TestStatsCountWhatWaitsAndSinceWhen(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		db.publish(t, ob, "t", messages("m", 5)...)
		for _, change := range []string{"created = created - 60000 WHERE message = 'm-1'", "parked = 'by hand' WHERE message = 'm-0'"} {
			_, err := db.Exec("UPDATE echo_outbox SET " + change)
			require.NoError(t, err)
		}
		s, err := ob.Stats(t.Context())
		require.NoError(t, err)
		require.Greater(t, s.Oldest, 59*time.Second)
		require.Less(t, s.Oldest, 120*time.Second)
		s.Oldest = 0
		require.Equal(t, outbox.Stats{Waiting: 4, Parked: 1}, s)
	})
}

func TestClosingTheBusLeavesTheRelayAndTheDatabase(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		db.publish(t, ob, "t", messages("m", 3)...)
		_, err := echo.New(echo.WithTransport(ob)).Close(t.Context())
		require.NoError(t, err)
		relaying(t, ob, mem)
		receive(t, s, 3)
		require.NoError(t, db.Ping())
	})
}
