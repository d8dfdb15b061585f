package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// Teed is a transport that publishes on two. It is made by [Tee] and is safe for
// concurrent use.
type Teed struct {
	first, second transport.Transport
	cfg           teeConfig
	err           error // what is wrong with the options
	inspected     transport.Transport

	both, missed atomic.Uint64
}

var (
	_ transport.Transport    = (*Teed)(nil)
	_ transport.ValueCarrier = (*Teed)(nil)
	_ transport.Retainer     = (*Teed)(nil)
	_ transport.Immediate    = (*Teed)(nil)
	_ transport.Delayer      = (*Teed)(nil)
	_ transport.Deduplicator = (*Teed)(nil)
	_ transport.Checker      = (*Teed)(nil)
)

// TeeOption is an option of [Tee].
type TeeOption interface{ applyTee(*teeConfig) }

type teeConfig struct {
	effort time.Duration // how long the second may take, if it is best effort
	logger *slog.Logger
	err    error
}

type teeOption func(*teeConfig)

func (o teeOption) applyTee(c *teeConfig) { o(c) }

// WithBestEffort makes the second transport of a [Tee] best effort: what it
// refuses, or does not take within d, is counted and logged, and the outcome of
// Send is the first one's alone.
func WithBestEffort(d time.Duration) TeeOption {
	return teeOption(func(c *teeConfig) {
		if c.effort = d; d <= 0 {
			c.err = errors.Join(c.err, fmt.Errorf("WithBestEffort(%v): the second transport needs some time", d))
		}
	})
}

// Tee returns a transport whose Send stores messages in first and then, with the
// same ID, key, time, header, data and Terms, in second. Subscriptions, with their
// settlements and dead letters, are first's alone, and so are the positions that
// Send sets and what Inspect tells. Close closes both.
//
// Send returns nil when both have the messages. What first did not store is not
// sent to second, and the error is first's. What first stored and second
// surely or possibly did not makes a [*TeeError], whose outcome is
// [transport.ErrPublishUnknown]: consumers of first get these messages. To publish
// them again under the same IDs completes second and repeats them on first. n
// counts the messages that both have. One publisher's messages have the same
// order on both; those of several may be interleaved differently.
//
// For sending it can do what both can: values go by reference, messages are
// delayed and deduplicated if both say so. It retains messages if either does.
//
// When options are wrong, every call returns an error that says so, and so does Err.
func Tee(first, second transport.Transport, opts ...TeeOption) *Teed {
	t := &Teed{first: first, second: second, cfg: teeConfig{logger: silent}}
	for _, o := range opts {
		o.applyTee(&t.cfg)
	}
	if err := errors.Join(t.cfg.err, wrong(first, second)); err != nil {
		t.err = fmt.Errorf("migrate: tee: %w", err)
		return t
	}
	if i, ok := transport.As[transport.Inspector](first); ok {
		t.inspected = inspected{t, i}
	}
	return t
}

// TeeError says that the second transport of a [Tee] does not have what the first
// stored, or may not have it. Its outcome is [transport.ErrPublishUnknown], whatever
// Err is; [errors.Is] finds in it what else Err wraps.
type TeeError struct {
	Topic string
	First int   // messages that the first transport stored, counted from the first
	Both  int   // of these, those that the second stored, too
	Err   error // the second's, and the first's if it failed as well
}

func (e *TeeError) Error() string {
	return fmt.Sprintf("%v: topic %s: the first transport of a tee stored %d messages, and the second %d of them: %v",
		transport.ErrPublishUnknown, e.Topic, e.First, e.Both, e.Err)
}

// Is keeps [transport.ErrNotPublished], which the second transport may have said
// of itself, from being taken for the outcome.
func (e *TeeError) Is(target error) bool {
	return target == transport.ErrPublishUnknown || target != transport.ErrNotPublished && errors.Is(e.Err, target)
}

// Send implements [transport.Sender].
func (t *Teed) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if t.err != nil {
		return 0, notPublished(t.err)
	}
	n, err := t.first.Send(ctx, topic, msgs)
	if n == 0 {
		return 0, err
	}
	copies := slices.Clone(msgs[:n]) // as positions are the first's
	k, second := t.copy(ctx, topic, copies)
	t.both.Add(uint64(k))
	t.missed.Add(uint64(n - k))
	switch {
	case k == n:
		return n, err
	case t.cfg.effort > 0:
		t.cfg.logger.Error("migrate: messages were not stored by the second transport of a tee", "topic", topic,
			"messages", n-k, "first", msgs[k].ID, "error", second)
		return n, err
	}
	return k, &TeeError{Topic: topic, First: n, Both: k, Err: cmp.Or(errors.Join(second, err), errShort)}
}

var errShort = errors.New("transport sent less than it was given and returned no error")

func (t *Teed) copy(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if t.cfg.effort > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.cfg.effort)
		defer cancel()
	}
	return t.second.Send(ctx, topic, msgs)
}

// Subscribe implements [transport.Subscriber]: the subscription is the first
// transport's own.
func (t *Teed) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	return subscribe(ctx, t.first, t.err, topic, o)
}

// Close closes both transports.
func (t *Teed) Close() error {
	var err error
	for _, of := range []transport.Transport{t.first, t.second} {
		if of != nil {
			err = errors.Join(err, of.Close())
		}
	}
	return err
}

// Unwrap leads [transport.As] to the first transport's Inspector, if it has one,
// and to nothing that would send to the first alone.
func (t *Teed) Unwrap() transport.Transport { return t.inspected }

// Err returns what is wrong with the options of Tee or of its transports, or nil.
func (t *Teed) Err() error { return t.err }

// CarriesValues reports whether both transports carry values by reference.
func (t *Teed) CarriesValues() bool { return both(t, transport.ValueCarrier.CarriesValues) }

// RetainsMessages reports whether either transport may keep what messages refer to.
func (t *Teed) RetainsMessages() bool {
	return t.err == nil && (does(t.first, transport.Retainer.RetainsMessages) || does(t.second, transport.Retainer.RetainsMessages))
}

// SendsImmediately reports whether both transports do.
func (t *Teed) SendsImmediately() bool { return immediate(t.first) && immediate(t.second) }

// DelaysMessages reports whether both transports do.
func (t *Teed) DelaysMessages() bool { return both(t, transport.Delayer.DelaysMessages) }

// DeduplicatesMessages reports whether both transports do.
func (t *Teed) DeduplicatesMessages() bool {
	return both(t, transport.Deduplicator.DeduplicatesMessages)
}

func both[T any](t *Teed, says func(T) bool) bool {
	return t.err == nil && does(t.first, says) && does(t.second, says)
}

// TeeStats is what a [Teed] did since it was made.
type TeeStats struct {
	Both   uint64 // messages that both transports stored
	Missed uint64 // messages that the first stored, and the second did not, or not surely
}

// Stats returns the figures. Safe for concurrent use.
func (t *Teed) Stats() TeeStats { return TeeStats{t.both.Load(), t.missed.Load()} }
