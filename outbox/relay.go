package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

const (
	// grace bounds what is done when the context of Relay has ended already: to
	// delete what was sent and to give the lease back.
	grace = 5 * time.Second
	// A Send that takes longer is ended, and tried again like any other.
	sendTimeout = 30 * time.Second
	// A read that brought more than this is followed by smaller ones.
	readBytes = 4 << 20
)

// Relay sends committed messages to another transport, and deletes them when
// it has them, until ctx ends; then it returns nil, within five seconds. One
// relay of a table is active, the others stand by. to stays the caller's to
// close.
//
// What to does not take is tried again, topic by topic, with a back-off that
// doubles from 100 ms to 10 s: in order, so that messages behind it wait. A
// message that to refuses for itself (see [WithPermanent]) is tried once more
// alone and then parked: it stays in the table with its error, and those
// behind it go on, also those with its key. See [Outbox.Parked].
//
// While the database is out of reach the relay tries again in the same way, and logs it.
func (o *Outbox) Relay(ctx context.Context, to transport.Transport) error {
	if o.err != nil {
		return o.err
	}
	if err := receives(to); err != nil {
		return fmt.Errorf("outbox: relay: %w", err)
	}
	r := &relay{
		o: o, to: to,
		lease:  lease{db: o.db, sql: &o.sql, holder: holder(), lasts: o.cfg.lease},
		limit:  o.cfg.batch,
		paused: make(map[string]*backoff),
		unsure: make(map[int64]struct{}),
	}
	r.run(ctx)
	return nil
}

// receives returns why nothing can be relayed to t.
func receives(t transport.Transport) error {
	if t == nil {
		return errors.New("the transport is nil")
	}
	if _, ok := t.(*Outbox); ok {
		return errors.New("the transport is an outbox, whose messages need a transaction")
	}
	if v, ok := transport.As[transport.ValueCarrier](t); ok && v.CarriesValues() {
		return fmt.Errorf("%T carries values by reference, the outbox has encoded ones", t)
	}
	if c, ok := transport.As[transport.Checker](t); ok {
		return c.Err()
	}
	return nil
}

// relay is one call of Relay.
type relay struct {
	o     *Outbox
	to    transport.Transport
	lease lease

	trouble backoff             // of the database
	limit   int                 // rows to read next
	paused  map[string]*backoff // topics whose last Send failed
	unsure  map[int64]struct{}  // rows that to may have
	done    []int64             // rows to delete: to has them
}

func (r *relay) run(ctx context.Context) {
	for ctx.Err() == nil {
		held, err := r.lease.take(ctx)
		switch {
		case err != nil:
			r.failed(ctx, "ask for the lease", err)
			sleep(ctx, time.Until(r.trouble.until))
		case held:
			r.trouble = backoff{}
			r.lead(ctx)
		default:
			r.trouble = backoff{}
			sleep(ctx, r.o.cfg.poll)
		}
	}
}

// lead is the active relay while it holds the lease.
func (r *relay) lead(ctx context.Context) {
	r.o.active.Add(1)
	defer r.o.active.Add(-1)
	held, cancel := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() {
		defer cancel()
		r.lease.keep(held)
	})
	for held.Err() == nil {
		more, err := r.round(held)
		if err != nil {
			r.failed(held, "read and delete", err)
		} else {
			r.trouble = backoff{}
		}
		if !more {
			r.rest(held)
		}
	}
	if ctx.Err() == nil {
		r.o.cfg.logger.WarnContext(ctx, "outbox: the lease was lost, another relay may be active", "table", r.o.cfg.table, "holder", r.lease.holder)
	}
	cancel()
	keeper.Wait()
	last, end := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer end()
	if err := errors.Join(r.remove(last), r.lease.release(last)); err != nil {
		r.failed(ctx, "give the lease back", err)
	}
}

// rest waits until there may be something to do.
func (r *relay) rest(ctx context.Context) {
	d := r.o.cfg.poll
	wake := r.o.wake
	if pause := time.Until(r.trouble.until); pause > 0 {
		d, wake = pause, nil
	}
	for _, b := range r.paused {
		d = min(d, max(0, time.Until(b.until)))
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}

// round sends the next rows and deletes them. It reports whether there may be
// more.
func (r *relay) round(ctx context.Context) (more bool, err error) {
	if err := r.remove(ctx); err != nil { // of a round before
		return false, err
	}
	rows, err := r.read(ctx)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	for _, same := range byTopic(rows) {
		if err := r.deliver(ctx, same); err != nil {
			return false, err
		}
	}
	return true, r.remove(ctx)
}

// read returns the next rows but those of topics that pause.
func (r *relay) read(ctx context.Context) ([]row, error) {
	var topics []string
	for topic, b := range r.paused {
		if time.Now().Before(b.until) {
			topics = append(topics, topic)
		}
	}
	var args []any
	if len(topics) > 0 {
		args = padded(topics)
	}
	found, err := r.o.db.QueryContext(ctx, r.o.sql.read(len(args)), append(args, r.limit)...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var rows []row
	size := 0
	for size < readBytes && found.Next() {
		var next row
		if err := next.scan(found.Scan); err != nil {
			return nil, err
		}
		if next.bad == nil {
			next.bad = transport.Cannot(r.to, next.msg.Terms)
		}
		rows = append(rows, next)
		size += next.msg.Size()
	}
	if err := errors.Join(found.Err(), found.Close()); err != nil {
		return nil, err
	}
	switch {
	case size >= readBytes: // what is behind was sent by the database for nothing
		r.limit = max(1, len(rows)/2)
		return rows, nil
	case len(rows) < r.limit:
		r.forget(rows, topics)
	}
	r.limit = min(r.o.cfg.batch, r.limit*2)
	return rows, nil
}

// forget ends what is known of rows that went another way, after a read of all
// there are but those of some topics.
func (r *relay) forget(rows []row, but []string) {
	topics := make(map[string]bool)
	for _, topic := range but {
		topics[topic] = true
	}
	ids := make(map[int64]bool)
	for i := range rows {
		topics[rows[i].topic], ids[rows[i].id] = true, true
	}
	maps.DeleteFunc(r.paused, func(topic string, _ *backoff) bool { return !topics[topic] })
	if len(but) == 0 {
		maps.DeleteFunc(r.unsure, func(id int64, _ struct{}) bool { return !ids[id] })
	}
}

// byTopic returns the rows of each topic in their order.
func byTopic(rows []row) [][]row {
	var topics [][]row
	place := make(map[string]int)
	for _, w := range rows {
		i, ok := place[w.topic]
		if !ok {
			i = len(topics)
			place[w.topic] = i
			topics = append(topics, nil)
		}
		topics[i] = append(topics[i], w)
	}
	return topics
}

// remove deletes the rows that are done.
func (r *relay) remove(ctx context.Context) error {
	for len(r.done) > 0 {
		n := min(len(r.done), 1024)
		ids := padded(r.done[:n])
		if _, err := r.o.db.ExecContext(ctx, r.o.sql.remove(len(ids)), ids...); err != nil {
			return err
		}
		r.done = r.done[n:]
	}
	r.done = nil
	return nil
}

// failed logs what the database did not do, and backs off.
func (r *relay) failed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	r.trouble.fail()
	r.o.cfg.logger.WarnContext(ctx, "outbox: the database failed, trying again", "table", r.o.cfg.table, "to", what, "error", err)
}
