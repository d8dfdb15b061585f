package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	_ "modernc.org/sqlite"

	"github.com/echobus/echo"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) {
	if os.Getenv(relayTo) != "" {
		os.Exit(relayProcess())
	}
	code := m.Run()
	if running != nil {
		running.close()
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// database is an empty database of a test.
type database struct {
	*sql.DB
	kind string // "SQLite" or "PostgreSQL"
	dsn  string
}

var drivers = map[string]struct {
	name    string
	dialect outbox.Dialect
}{
	"SQLite":     {"sqlite", outbox.SQLite},
	"PostgreSQL": {"pgx", outbox.Postgres},
}

func open(t testing.TB, kind, dsn string) *database {
	t.Helper()
	db, err := sql.Open(drivers[kind].name, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return &database{db, kind, dsn}
}

func sqlite(t testing.TB) *database {
	db := open(t, "SQLite", "file:"+filepath.Join(t.TempDir(), "db")+"?_txlock=immediate&_pragma=busy_timeout(30000)&_pragma=journal_mode(WAL)")
	require.NoError(t, db.Ping()) // SQLite does not wait to make a database WAL, so one connection does it first
	return db
}

func postgres(t testing.TB) *database {
	t.Helper()
	s, err := shared()
	require.NoError(t, err)
	return s.database(t)
}

// onEach runs a test with each database.
func onEach(t *testing.T, f func(t *testing.T, db *database)) {
	t.Run("SQLite", func(t *testing.T) { f(t, sqlite(t)) })
	t.Run("PostgreSQL", func(t *testing.T) { f(t, postgres(t)) })
}

// outbox makes an outbox whose tables are there. It polls often.
func (d *database) outbox(t testing.TB, opts ...outbox.Option) *outbox.Outbox {
	t.Helper()
	ob := outbox.New(d.DB, drivers[d.kind].dialect, append([]outbox.Option{outbox.WithPoll(10 * time.Millisecond)}, opts...)...)
	require.NoError(t, ob.Create(t.Context()))
	return ob
}

// within runs f in a transaction, which commits unless f returns an error.
func (d *database) within(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(outbox.With(ctx, tx), tx); err != nil {
		return err
	}
	return tx.Commit()
}

// publish commits messages in a transaction of their own.
func (d *database) publish(t testing.TB, ob *outbox.Outbox, topic string, msgs ...transport.Message) {
	t.Helper()
	require.NoError(t, d.within(t.Context(), func(ctx context.Context, _ *sql.Tx) error {
		_, err := ob.Send(ctx, topic, msgs)
		return err
	}))
}

// relaying runs a relay until the test ends, or until stop is called.
func relaying(t testing.TB, ob *outbox.Outbox, to transport.Transport) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ob.Relay(ctx, to) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

// messages returns n of them, with the IDs prefix-0, prefix-1 and so on.
func messages(prefix string, n int) []transport.Message {
	msgs := make([]transport.Message, n)
	for i := range msgs {
		msgs[i] = transport.Message{ID: fmt.Sprintf("%s-%d", prefix, i), Key: prefix, Time: time.Unix(1, 0).UTC(), Type: "text/plain", Data: []byte{byte(i)}}
	}
	return msgs
}

// receive returns the next n messages.
func receive(t testing.TB, s transport.Subscription, n int) []transport.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var msgs []transport.Message
	for len(msgs) < n {
		buf := make([]transport.Message, n-len(msgs))
		k, err := s.Receive(ctx, buf)
		require.NoError(t, err, "after %d of %d messages", len(msgs), n)
		for _, m := range buf[:k] {
			require.NoError(t, s.(transport.Acker).Ack(ctx, []transport.Receipt{m.Receipt()}))
		}
		msgs = append(msgs, buf[:k]...)
	}
	return msgs
}

// subscribe receives a topic from its first message on.
func subscribe(t testing.TB, from transport.Transport, topic string) transport.Subscription {
	t.Helper()
	s, err := from.Subscribe(t.Context(), topic, transport.Options{Start: transport.Start{From: transport.Oldest}})
	require.NoError(t, err)
	return s
}

func ids(msgs []transport.Message) []string {
	all := make([]string, len(msgs))
	for i, m := range msgs {
		all[i] = m.ID
	}
	return all
}

// eventually waits until the outbox's numbers are as f wants them.
func eventually(t testing.TB, ob *outbox.Outbox, what string, f func(outbox.Stats) bool) outbox.Stats {
	t.Helper()
	var s outbox.Stats
	require.Eventually(t, func() bool {
		var err error
		s, err = ob.Stats(context.Background())
		return err == nil && f(s)
	}, patience, 5*time.Millisecond, what)
	return s
}

func drained(s outbox.Stats) bool { return s.Waiting == 0 }

type order struct {
	ID    string
	Total float64
}

var orders = echo.NewTopic[order]("orders")
