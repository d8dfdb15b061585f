package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Option is an option of [New].
type Option func(*config)

type config struct {
	table     string
	poll      time.Duration
	lease     time.Duration
	batch     int
	logger    *slog.Logger
	permanent func(error) bool
}

func defaults() config {
	return config{
		table:     "echo_outbox",
		poll:      time.Second,
		lease:     10 * time.Second,
		batch:     256,
		logger:    slog.New(slog.DiscardHandler),
		permanent: func(error) bool { return false },
	}
}

// WithTable names the table; the default is "echo_outbox". A name has letters,
// digits and underscores, 48 at most, and on PostgreSQL may have a schema
// before it: "app.outbox". It is quoted, so capitals count. The relay's lease
// is in a second table, whose name ends with "_relay".
func WithTable(name string) Option { return func(c *config) { c.table = name } }

// WithPoll sets how long a relay that found nothing waits, unless [Outbox.Wake]
// is called, and how often one that stands by asks for the lease. The default
// is 1 s.
func WithPoll(d time.Duration) Option { return func(c *config) { c.poll = d } }

// WithLease sets for how long the active relay stays so without renewing, which
// it does three times as often: so long the others wait when it died. The
// default is 10 s.
func WithLease(d time.Duration) Option { return func(c *config) { c.lease = d } }

// WithBatch bounds the rows that a relay reads at a time, from 1 to 10,000; the
// default is 256. It reads fewer when they are large.
func WithBatch(n int) Option { return func(c *config) { c.batch = n } }

// WithLogger sets where relays log what they do not return: failed sends,
// parked messages, a database out of reach. By default nowhere.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// WithPermanent adds errors for which a message is parked rather than tried
// again. f is given errors that wrap [transport.ErrNotPublished], and reports
// whether the message itself is the reason. Those that wrap
// [transport.ErrTooLarge] or [errors.ErrUnsupported] are permanent in any case.
func WithPermanent(f func(error) bool) Option { return func(c *config) { c.permanent = f } }

var tableName = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]{0,47}\.)?[A-Za-z_][A-Za-z0-9_]{0,47}$`)

func (c *config) check(d Dialect) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("outbox: "+format, args...)) }
	spec, known := dialects[d]
	if !known {
		fail("%v is no dialect", d)
	}
	m := tableName.FindStringSubmatch(c.table)
	switch {
	case m == nil:
		fail("WithTable(%.80q): want letters, digits and underscores, at most 48, not a digit first", c.table)
	case known && m[1] != "" && !spec.schemas:
		fail("WithTable(%q): %v has no schemas", c.table, d)
	}
	if c.poll <= 0 {
		fail("WithPoll(%v): it must be positive", c.poll)
	}
	if c.lease < 10*time.Millisecond {
		fail("WithLease(%v): it must be at least 10ms", c.lease)
	}
	if c.batch < 1 || c.batch > 10_000 {
		fail("WithBatch(%d): want 1 to 10000", c.batch)
	}
	if c.logger == nil {
		fail("WithLogger: the logger is nil")
	}
	if c.permanent == nil {
		fail("WithPermanent: the function is nil")
	}
	return errors.Join(errs...)
}
