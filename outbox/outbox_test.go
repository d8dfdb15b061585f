package outbox_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

// What needs a database is tested in dbtest, a module of its own, so that this
// one requires no driver.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// absent is a database that cannot be reached.
type absent struct{}

var errAbsent = errors.New("nobody listens")

func (absent) Connect(context.Context) (driver.Conn, error) { return nil, errAbsent }
func (absent) Driver() driver.Driver                        { return nil }

func noDatabase(t testing.TB) *sql.DB {
	db := sql.OpenDB(absent{})
	t.Cleanup(func() { db.Close() })
	return db
}

type order struct{ ID string }

var orders = echo.NewTopic[order]("orders")

func TestPublishingOutsideATransactionIsRefused(t *testing.T) {
	bus := echo.New(echo.WithTransport(outbox.New(noDatabase(t), outbox.Postgres)))
	defer bus.Close(context.Background())
	for what, ctx := range map[string]context.Context{
		"no transaction":       context.Background(),
		"a transaction of nil": outbox.With(context.Background(), nil),
	} {
		t.Run(what, func(t *testing.T) {
			err := echo.NewProducer(bus, orders).Publish(ctx, order{"o-1"})
			require.ErrorIs(t, err, echo.ErrNotPublished)
			require.ErrorContains(t, err, "the context carries no transaction")
		})
	}
}

func TestWhatCannotBeStoredAsItIsIsRefusedBeforeTheDatabaseSeesIt(t *testing.T) {
	ob := outbox.New(noDatabase(t), outbox.SQLite)
	ctx := outbox.With(context.Background(), new(sql.Tx)) // any use of it would panic
	good := transport.Message{ID: "1", Time: time.Unix(0, 0)}
	for what, change := range map[string]func(*transport.Message){
		"an ID with NUL":             func(m *transport.Message) { m.ID = "a\x00b" },
		"an ID that is not UTF-8":    func(m *transport.Message) { m.ID = "\xff" },
		"a type that is not UTF-8":   func(m *transport.Message) { m.Type = "\xff" },
		"a header that is not UTF-8": func(m *transport.Message) { m.Header = map[string]string{"a": "\xff"} },
		"a value by reference":       func(m *transport.Message) { m.Value = new(int) },
		"a time after the year 9999": func(m *transport.Message) { m.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		t.Run(what, func(t *testing.T) {
			bad := good
			change(&bad)
			n, err := ob.Send(ctx, "t", []transport.Message{good, bad})
			require.ErrorIs(t, err, transport.ErrNotPublished)
			require.Zero(t, n)
		})
	}
	_, err := ob.Send(ctx, "no such/name", []transport.Message{good})
	require.ErrorIs(t, err, transport.ErrNotPublished)
	n, err := ob.Send(ctx, "t", nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestAContextThatEndedPublishesNothing(t *testing.T) {
	ctx, cancel := context.WithCancelCause(outbox.With(context.Background(), new(sql.Tx)))
	why := errors.New("the user left")
	cancel(why)
	_, err := outbox.New(noDatabase(t), outbox.SQLite).Send(ctx, "t", []transport.Message{{ID: "1"}})
	require.ErrorIs(t, err, transport.ErrNotPublished)
	require.ErrorIs(t, err, why)
}

func TestNothingIsReceivedFromAnOutbox(t *testing.T) {
	bus := echo.New(echo.WithTransport(outbox.New(noDatabase(t), outbox.Postgres)))
	defer bus.Close(context.Background())
	_, err := echo.Subscribe(context.Background(), bus, orders)
	require.ErrorIs(t, err, errors.ErrUnsupported)
}

func TestAClosedOutboxRefuses(t *testing.T) {
	db := noDatabase(t)
	ob := outbox.New(db, outbox.Postgres)
	require.NoError(t, ob.Close())
	require.NoError(t, ob.Close())
	_, err := ob.Send(context.Background(), "t", []transport.Message{{ID: "1"}})
	require.ErrorIs(t, err, transport.ErrClosed)
	require.ErrorIs(t, err, transport.ErrNotPublished)
	_, err = ob.Subscribe(context.Background(), "t", transport.Options{})
	require.ErrorIs(t, err, transport.ErrClosed)
	require.ErrorIs(t, db.Ping(), errAbsent, "the database is not closed")
}

func TestWrongOptionsAreNamed(t *testing.T) {
	ctx := context.Background()
	for want, ob := range map[string]*outbox.Outbox{
		"the database is nil":      outbox.New(nil, outbox.Postgres),
		"Dialect(9) is no dialect": outbox.New(noDatabase(t), 9),
		`WithTable("a\"; DROP")`:   outbox.New(noDatabase(t), outbox.Postgres, outbox.WithTable(`a"; DROP`)),
		`WithTable("")`:            outbox.New(noDatabase(t), outbox.Postgres, outbox.WithTable("")),
		"SQLite has no schemas":    outbox.New(noDatabase(t), outbox.SQLite, outbox.WithTable("app.outbox")),
		"WithPoll(0s)":             outbox.New(noDatabase(t), outbox.Postgres, outbox.WithPoll(0)),
		"WithLease(1ms)":           outbox.New(noDatabase(t), outbox.Postgres, outbox.WithLease(time.Millisecond)),
		"WithBatch(0)":             outbox.New(noDatabase(t), outbox.Postgres, outbox.WithBatch(0)),
		"the logger is nil":        outbox.New(noDatabase(t), outbox.Postgres, outbox.WithLogger(nil)),
		"the function is nil":      outbox.New(noDatabase(t), outbox.Postgres, outbox.WithPermanent(nil)),
	} {
		t.Run(want, func(t *testing.T) {
			mem := memstream.New()
			defer mem.Close()
			_, statsErr := ob.Stats(ctx)
			_, parkedErr := ob.Parked(ctx, 1)
			_, retryErr := ob.Retry(ctx)
			_, sendErr := ob.Send(ctx, "t", []transport.Message{{ID: "1"}})
			for _, err := range []error{ob.Err(), ob.Create(ctx), ob.Relay(ctx, mem), statsErr, parkedErr, retryErr, sendErr} {
				require.ErrorContains(t, err, want)
			}
			require.Empty(t, ob.Schema())
		})
	}
}

func TestARelayNeedsATransportThatCanHaveItsMessages(t *testing.T) {
	ob := outbox.New(noDatabase(t), outbox.Postgres)
	byValue, wrong := memstream.New(memstream.WithValues()), memstream.New(memstream.WithMaxMessages(0))
	defer byValue.Close()
	for want, to := range map[string]transport.Transport{
		"the transport is nil":        nil,
		"the transport is an outbox":  ob,
		"carries values by reference": byValue,
		"WithMaxMessages(0)":          wrong,
	} {
		require.ErrorContains(t, ob.Relay(context.Background(), to), want)
	}
}

func TestARelayWithoutItsDatabaseTriesUntilItsContextEnds(t *testing.T) {
	log := newTail()
	ob := outbox.New(noDatabase(t), outbox.Postgres, outbox.WithLogger(log.logger()))
	mem := memstream.New()
	defer mem.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ob.Relay(ctx, mem) }()
	for range 2 {
		require.Contains(t, log.line(t), errAbsent.Error())
	}
	cancel()
	require.NoError(t, <-done)
}
