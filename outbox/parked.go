package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// Parked is a message that the relay's target refused for itself.
type Parked struct {
	ID      int64 // of its row
	Topic   string
	Message transport.Message
	Reason  string    // the error
	Created time.Time // when it was published, by the database's clock
}

// Parked returns parked messages, those published first, at most limit of them.
func (o *Outbox) Parked(ctx context.Context, limit int) ([]Parked, error) {
	if o.err != nil {
		return nil, o.err
	}
	rows, err := o.db.QueryContext(ctx, o.sql.parked, max(0, limit))
	if err != nil {
		return nil, fmt.Errorf("outbox: parked: %w", err)
	}
	defer rows.Close()
	var all []Parked
	for rows.Next() {
		var r row
		var created int64
		var reason string
		if err := r.scan(rows.Scan, &created, &reason); err != nil {
			return nil, fmt.Errorf("outbox: parked: %w", err)
		}
		all = append(all, Parked{r.id, r.topic, r.msg, reason, time.UnixMilli(created).UTC()})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("outbox: parked: %w", err)
	}
	return all, nil
}

// Retry lets parked messages be sent again, those with these row IDs or, given
// none, all of them, and reports how many. They come before what was published
// later and still waits, and after what was sent meanwhile.
func (o *Outbox) Retry(ctx context.Context, ids ...int64) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	var args []any
	if len(ids) > 0 {
		args = padded(ids)
	}
	r, err := o.db.ExecContext(ctx, o.sql.unpark(len(args)), args...)
	if err != nil {
		return 0, fmt.Errorf("outbox: retry: %w", err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return 0, fmt.Errorf("outbox: retry: %w", err)
	}
	o.Wake()
	return int(n), nil
}

// Stats is a snapshot of an outbox.
type Stats struct {
	// Of the table. Counting reads all its rows.
	Waiting int64         // messages committed and not sent
	Oldest  time.Duration // since when the first of them has waited
	Parked  int64

	// Of the relays that this Outbox runs or ran.
	Active   bool   // one of them holds the lease
	Sent     uint64 // messages that their targets have
	Repeated uint64 // messages sent again, as it was unknown whether the target had them
}

// Stats returns what waits in the table and what the relays of this Outbox did.
func (o *Outbox) Stats(ctx context.Context) (Stats, error) {
	if o.err != nil {
		return Stats{}, o.err
	}
	var s Stats
	var ms int64
	if err := o.db.QueryRowContext(ctx, o.sql.stats).Scan(&s.Waiting, &s.Parked, &ms); err != nil {
		return Stats{}, fmt.Errorf("outbox: stats: %w", err)
	}
	s.Oldest = time.Duration(max(0, ms)) * time.Millisecond
	// After the table: what is not there any more was counted before.
	s.Active, s.Sent, s.Repeated = o.active.Load() > 0, o.sent.Load(), o.repeated.Load()
	return s, nil
}
