// Package outbox publishes within a transaction of database/sql.
//
// Publishing commits or rolls back with the caller's rows, and a relay delivers
// what was committed to another transport, in order:
//
//	ob := outbox.New(db, outbox.Postgres)
//	err := ob.Create(ctx) // or run ob.Schema() with your migrations
//
//	bus := echo.New(echo.WithTransport(ob))
//	producer := echo.NewProducer(bus, orders)
//
//	tx, err := db.BeginTx(ctx, nil)
//	_, err = tx.ExecContext(ctx, "INSERT INTO orders …")
//	err = producer.Publish(outbox.With(ctx, tx), order)
//	err = tx.Commit()
//	ob.Wake()
//
//	go ob.Relay(ctx, server) // in as many processes as you like
//
// # What arrives
//
// A message is delivered if and only if its transaction committed, at least
// once, with the ID, key, time, type, headers and data it was published with.
// The relay repeats a message when it cannot know whether the other transport
// has it: after an outcome that is unknown, and when a relay died between
// sending and deleting. A repetition has the same ID.
//
// # Order
//
// Rows of one topic are sent in the order of their ids among those that are
// committed. So messages of one transaction keep their order, and so do those of
// transactions that follow each other. Transactions that overlap have no order
// but what the application gives them: whoever changes an account takes a lock
// on its row first and publishes then, so that messages with the account's key
// are in the order of the changes. Repetitions aside, that is the order in
// which they arrive.
//
// # Relays
//
// Any number of relays may run, in any processes. One at a time is active: it
// holds the lease in a table of its own. The others stand by and take over
// when the lease is given back or not renewed.
package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/echobus/echo/transport"
)

// Outbox is a table of messages to be sent. It is a [transport.Transport] for
// publishing alone, and safe for concurrent use.
type Outbox struct {
	db     *sql.DB
	cfg    config
	err    error // what is wrong with the options
	sql    statements
	closed atomic.Bool
	wake   chan struct{}

	sent, repeated atomic.Uint64
	active         atomic.Int64 // relays that hold the lease
}

var (
	_ transport.Transport    = (*Outbox)(nil)
	_ transport.Immediate    = (*Outbox)(nil)
	_ transport.Delayer      = (*Outbox)(nil)
	_ transport.Deduplicator = (*Outbox)(nil)
	_ transport.Checker      = (*Outbox)(nil)
)

// New returns an outbox in db, which stays the caller's to close. It does not
// talk to the database. What is wrong with the options is returned by everything
// done with the outbox, and by Err.
func New(db *sql.DB, d Dialect, opts ...Option) *Outbox {
	o := &Outbox{db: db, cfg: defaults(), wake: make(chan struct{}, 1)}
	for _, opt := range opts {
		opt(&o.cfg)
	}
	o.err = o.cfg.check(d)
	if db == nil {
		o.err = errors.Join(errors.New("outbox: the database is nil"), o.err)
	}
	if o.err == nil {
		o.sql = newStatements(dialects[d], o.cfg.table)
	}
	return o
}

// Err returns what is wrong with the options of New.
func (o *Outbox) Err() error { return o.err }

type contextKey struct{}

// With returns a context whose publishes belong to tx. The goroutine that uses
// the transaction publishes too: database/sql transactions are used by one
// goroutine at a time.
func With(ctx context.Context, tx *sql.Tx) context.Context {
	return context.WithValue(ctx, contextKey{}, tx)
}

// Send inserts msgs into the transaction that ctx carries (see [With]); they
// are published when it commits. An error wraps [transport.ErrNotPublished]:
// roll the transaction back. On PostgreSQL there is no other way, as a statement
// that fails aborts its transaction; so n is 0 then. Without a transaction, or
// when one of msgs cannot be stored as it is, nothing is done at all.
//
// Send leaves Position as it is: the transport that the relay sends to knows it.
func (o *Outbox) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	n, err := o.insert(ctx, topic, msgs)
	if err != nil {
		err = fmt.Errorf("%w: outbox: %w", transport.ErrNotPublished, err)
	}
	return n, err
}

func (o *Outbox) insert(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if err := o.ready(); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return 0, err
	}
	tx, _ := ctx.Value(contextKey{}).(*sql.Tx)
	if tx == nil {
		return 0, errors.New("the context carries no transaction, give it one by outbox.With")
	}
	for i := range msgs {
		if err := storable(&msgs[i]); err != nil {
			return 0, fmt.Errorf("message %.80q: %w", msgs[i].ID, err)
		}
	}
	for n := 0; n < len(msgs); {
		k := chunk(msgs[n:], o.sql.rowsOfInsert, insertBytes)
		args, err := rowsOf(topic, msgs[n:n+k])
		if err == nil {
			_, err = tx.ExecContext(ctx, o.sql.insert(k), args...)
		}
		if err != nil && o.sql.aborts {
			n = 0
		}
		if err != nil {
			return n, fmt.Errorf("insert into %s: %w", o.cfg.table, err)
		}
		n += k
	}
	return len(msgs), nil
}

// Data of one statement, and of one Send to the relay's target. A single
// message may have more.
const (
	insertBytes = 4 << 20
	sendBytes   = 1 << 20
)

// chunk returns how many of msgs go together: at least one.
func chunk(msgs []transport.Message, most, bytes int) int {
	n, size := 0, 0
	for n < min(len(msgs), most) {
		if size += msgs[n].Size(); n > 0 && size > bytes {
			break
		}
		n++
	}
	return n
}

func (o *Outbox) ready() error {
	if o.closed.Load() {
		return transport.ErrClosed
	}
	return o.err
}

// SendsImmediately implements [transport.Immediate]: a publish stays in the
// goroutine and the context of its transaction.
func (o *Outbox) SendsImmediately() bool { return true }

// DelaysMessages reports true: the transport that the relay sends to delays
// them. If it cannot, they are parked.
func (o *Outbox) DelaysMessages() bool { return true }

// DeduplicatesMessages reports true; it is as with DelaysMessages. A window
// begins when a message is relayed.
func (o *Outbox) DeduplicatesMessages() bool { return true }

// Subscribe returns an error that wraps [errors.ErrUnsupported]. Subscribe to
// the transport that the relay sends to.
func (o *Outbox) Subscribe(context.Context, string, transport.Options) (transport.Subscription, error) {
	if err := o.ready(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("outbox: subscribe: %w: messages arrive at the transport that the relay sends to", errors.ErrUnsupported)
}

// Close ends publishing: Send and Subscribe return [transport.ErrClosed]. The
// database stays open, and relays run until their contexts end.
func (o *Outbox) Close() error {
	o.closed.Store(true)
	return nil
}

// Wake makes the active relay look for messages now, if it runs in this
// process. Call it after a commit; otherwise the relay finds them at its next
// poll. It does not wait.
func (o *Outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// holder returns a name for a relay that no other one has, and that tells
// people where it runs.
func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%.60s/%d/%s", host, os.Getpid(), rand.Text()[:12])
}
