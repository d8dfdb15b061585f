package outbox

import (
	"context"
	"database/sql"
	"time"
)

// lease makes one relay at a time the active one. It is a row with the name of
// its holder and the moment, by the clock of the database, when it ends. A lock
// of the database's would need a connection of its own, which pools such as
// PgBouncer do not keep, and outlives a holder whose machine has gone.
//
// A relay that goes on for a moment after it lost the lease repeats messages;
// their first deliveries keep their order, as both send in the order of ids
// whatever is still there.
type lease struct {
	db     *sql.DB
	sql    *statements
	holder string
	lasts  time.Duration
}

// take reports whether the lease is held, for as long as it lasts from now.
func (l *lease) take(ctx context.Context) (bool, error) {
	ms := l.lasts.Milliseconds()
	held, err := l.exec(ctx, l.sql.take, ms, l.holder, l.holder)
	if held || err != nil {
		return held, err
	}
	return l.exec(ctx, l.sql.join, l.holder, ms)
}

// keep renews the lease until ctx ends or the lease is lost.
func (l *lease) keep(ctx context.Context) {
	until := time.Now().Add(l.lasts)
	for sleep(ctx, l.lasts/3) {
		now := time.Now()
		limited, cancel := context.WithDeadline(ctx, until)
		held, err := l.take(limited)
		cancel()
		switch {
		case held:
			until = now.Add(l.lasts)
		case err == nil, time.Now().After(until):
			return
		}
	}
}

// release lets another relay take the lease at once.
func (l *lease) release(ctx context.Context) error {
	_, err := l.exec(ctx, l.sql.release, l.holder)
	return err
}

func (l *lease) exec(ctx context.Context, text string, args ...any) (changed bool, err error) {
	r, err := l.db.ExecContext(ctx, text, args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// sleep waits for d and reports whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
