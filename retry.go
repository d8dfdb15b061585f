package echo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Retry says what becomes of a message whose handler failed. The zero Retry has
// it delivered again for ever, with back-off.
//
// A failed message never holds others up: it goes back to its group until it is
// due. One with a key waits in the consumer instead, together with what comes
// after it under this key, so that the order of the key survives; these messages
// count against [WithPrefetch], so a key that never succeeds stops its consumer
// in the end, unless Attempts ends it before. One whose remaining attempts take
// less than a second altogether waits in the consumer, too.
type Retry struct {
	// Attempts is how often a message is tried before it becomes a dead letter;
	// 0 means that it never does. A process that ended while it had the message
	// made an attempt, too. Attempts that a consumer made while it kept the
	// message are its own knowledge: when it stops or pauses before the last one,
	// they count as one for whoever goes on.
	Attempts int
	// Min and Max bound the exponential back-off: the n-th attempt is followed by
	// a random time up to Min·2^(n-1), at most Max. The defaults are 100 ms and 30 s.
	Min, Max time.Duration
	// Table is what to wait after the first, second, … attempt, exactly, in place
	// of Min and Max; its last entry serves all later ones.
	Table []time.Duration
	// Retryable reports whether an error is worth another attempt; nil means that
	// all are. A message that failed with another one is a dead letter at once.
	Retryable func(error) bool
	// Timeout is how long one attempt may take before its context ends; 0 means
	// no limit. It is the handler that gives up: one that ignores its context goes on.
	Timeout time.Duration
}

// WithRetry sets what becomes of messages whose handler failed.
func WithRetry(r Retry) SubscribeOption {
	return subscribeOption(func(c *subscribeConfig) {
		if err := r.check(); err != nil {
			c.fail(fmt.Errorf("WithRetry: %w", err))
			return
		}
		r.Table = slices.Clone(r.Table)
		c.retry = r.filled()
	})
}

const (
	defaultMinBackoff = 100 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second
)

func (r Retry) filled() Retry {
	switch {
	case r.Min == 0 && r.Max == 0:
		r.Min, r.Max = defaultMinBackoff, defaultMaxBackoff
	case r.Min == 0:
		r.Min = min(defaultMinBackoff, r.Max)
	case r.Max == 0:
		r.Max = max(r.Min, defaultMaxBackoff)
	}
	return r
}

// check returns what is wrong or contradictory.
func (r *Retry) check() error {
	waits := r.Min != 0 || r.Max != 0 || len(r.Table) > 0
	switch {
	case r.Attempts < 0:
		return fmt.Errorf("Retry.Attempts %d is negative", r.Attempts)
	case r.Min < 0 || r.Max < 0 || r.Max != 0 && r.Max < r.Min:
		return fmt.Errorf("Retry.Min %v and Max %v: want 0 ≤ Min ≤ Max", r.Min, r.Max)
	case len(r.Table) > 0 && (r.Min != 0 || r.Max != 0):
		return errors.New("Retry.Table takes the place of Min and Max, and both are given")
	case slices.ContainsFunc(r.Table, func(d time.Duration) bool { return d < 0 }):
		return fmt.Errorf("Retry.Table %v has a negative wait", r.Table)
	case r.Timeout < 0:
		return fmt.Errorf("Retry.Timeout %v is negative", r.Timeout)
	case r.Attempts == 1 && (waits || r.Retryable != nil):
		return errors.New("Retry.Attempts 1 leaves nothing to wait for or to decide about")
	case r.Attempts > 1 && len(r.Table) > r.Attempts-1:
		return fmt.Errorf("Retry.Table has %d waits, and %d attempts leave room for %d", len(r.Table), r.Attempts, r.Attempts-1)
	}
	return nil
}

// wait returns how long to wait after an attempt failed, 1 being the first.
//
// Exponential back-off has full jitter: it is evenly distributed up to
// min(Max, Min·2^(attempt-1)). See Brooker, "Exponential Backoff And Jitter",
// AWS Architecture Blog, 2015.
func (r *Retry) wait(attempt int) time.Duration {
	d := r.longest(attempt)
	if d > 0 && len(r.Table) == 0 {
		d = 1 + rand.N(d)
	}
	return d
}

// longest is the most that wait returns.
func (r *Retry) longest(attempt int) time.Duration {
	attempt = max(attempt, 1)
	if n := len(r.Table); n > 0 {
		return r.Table[min(attempt, n)-1]
	}
	d := r.Min
	for i := 1; i < attempt && d < r.Max; i++ {
		if d > r.Max/2 {
			return r.Max
		}
		d *= 2
	}
	return min(d, r.Max)
}

// inPlace is how long messages without a key may wait in their consumer.
const inPlace = time.Second

// brief reports whether all that is left to try after an attempt is over
// within inPlace, however long handlers take.
func (r *Retry) brief(attempt int) bool {
	if r.Attempts == 0 {
		return false
	}
	var sum time.Duration
	for last := max(64, len(r.Table)); attempt < r.Attempts; attempt++ {
		d := r.longest(attempt)
		if attempt >= last { // all others are as long
			return d == 0 || time.Duration(r.Attempts-attempt) < (inPlace-sum)/d
		}
		if sum += min(d, inPlace); sum >= inPlace {
			return false
		}
	}
	return true
}

// Reject returns an error with which a handler says that its message shall not
// be tried again: it becomes a dead letter at once. It wraps err.
func Reject(err error) error { return &rejection{reason: ReasonRejected, err: err} }

// RetryAfter returns an error with which a handler says that its message shall
// be tried again after d, in place of the back-off. It wraps err, and the
// attempt counts.
func RetryAfter(d time.Duration, err error) error { return &retryAfter{max(d, 0), err} }

// rejection is why a message is not to be tried again.
type rejection struct {
	reason string
	err    error
}

func (r *rejection) Error() string {
	if r.err == nil {
		return r.reason
	}
	return r.err.Error()
}

func (r *rejection) Unwrap() error { return r.err }

// Rejected tells packages that retry by themselves, as net.Error's Timeout does.
func (r *rejection) Rejected() bool { return true }

type retryAfter struct {
	d   time.Duration
	err error
}

func (r *retryAfter) Error() string {
	if r.err == nil {
		return "to be tried again after " + r.d.String()
	}
	return r.err.Error()
}

func (r *retryAfter) Unwrap() error { return r.err }

// retryable asks Retryable. One that panics, or ends its goroutine, does not say no.
func (r *Retry) retryable(err error) bool {
	yes := true
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { recover() }()
		yes = r.Retryable(err)
	}()
	<-done
	return yes
}

// plain is err, or what takes its place if it cannot be asked what it wraps.
func plain(err error) (same error) {
	defer func() {
		if p := recover(); p != nil {
			same = fmt.Errorf("an error of type %T, which panics: %v", err, p)
		}
	}()
	errors.AsType[nothing](err) // which looks at all that it wraps
	return err
}

// nothing is no error that there is.
type nothing struct{ error }

// judge decides what becomes of a message after an attempt failed: it is dead
// for a reason, or due again after a wait.
func (r *Retry) judge(attempt int, err error) (reason string, wait time.Duration) {
	err = plain(err)
	if e, ok := errors.AsType[*rejection](err); ok {
		return e.reason, 0
	}
	after, told := errors.AsType[*retryAfter](err)
	switch {
	case r.Attempts > 0 && attempt >= r.Attempts:
		return ReasonAttempts, 0
	case told:
		return "", after.d
	case r.Retryable != nil && !r.retryable(err):
		return ReasonRejected, 0
	}
	return "", r.wait(attempt)
}
