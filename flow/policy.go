package flow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Option says how a step is run; see [With].
type Option func(*policy) error

type policy struct {
	timeout  time.Duration
	attempts int
	min, max time.Duration
	again    func(error) bool
	limit    int
	says     []string
}

// Timeout ends the context of each attempt at the step after d. What the step
// returns counts, whenever that is: nothing goes on behind the flow's back.
func Timeout(d time.Duration) Option {
	return func(p *policy) error {
		if d <= 0 {
			return fmt.Errorf("Timeout(%v): it is not positive", d)
		}
		p.timeout = d
		p.says = append(p.says, fmt.Sprintf("timeout %v", d))
		return nil
	}
}

// Retry tries the step again when it fails, attempts times in all. Before the
// second attempt it waits about min, before each further one twice as long, up to
// max; the waits are random by half, so that those who failed together do not
// come together again. What was skipped is not tried again, nor anything once the
// context has ended.
func Retry(attempts int, min, max time.Duration) Option {
	return func(p *policy) error {
		if attempts < 1 || min < 0 || max < min {
			return fmt.Errorf("Retry(%d, %v, %v): it takes an attempt, and waits that are not negative, the shorter one first", attempts, min, max)
		}
		p.attempts, p.min, p.max = attempts, min, max
		p.says = append(p.says, fmt.Sprintf("%d attempts", attempts))
		return nil
	}
}

// RetryIf lets [Retry] try again only after errors for which again is true.
func RetryIf(again func(error) bool) Option {
	return func(p *policy) error {
		if again == nil {
			return errors.New("RetryIf(nil)")
		}
		p.again = again
		return nil
	}
}

// Limit lets the step run at most n times at the same time, in all runs of the
// flow together. Others wait, or end with their context.
func Limit(n int) Option {
	return func(p *policy) error {
		if n < 1 {
			return fmt.Errorf("Limit(%d): it is not positive", n)
		}
		p.limit = n
		p.says = append(p.says, fmt.Sprintf("limit %d", n))
		return nil
	}
}

// With is a step with a way to run it: a timeout, retries, a limit.
func With[In, Out any](step Step[In, Out], opts ...Option) Step[In, Out] {
	return Step[In, Out]{func(b *builder, parent *place) (runner[In, Out], *place) {
		run, p := step.in(b, parent)
		how := &policy{attempts: 1}
		for _, o := range opts {
			if o == nil {
				b.fail(p, ErrDefinition, "an Option is nil")
			} else if err := o(how); err != nil {
				b.fail(p, ErrDefinition, "%v", err)
			}
		}
		p.policy = append(p.policy, how.says...)
		if how.timeout > 0 {
			run = limited(run, how.timeout)
		}
		if how.attempts > 1 {
			run = retried(run, p, how)
		}
		if how.limit > 0 {
			run = throttled(run, p, how.limit)
		}
		return run, p
	}}
}

func limited[In, Out any](run runner[In, Out], d time.Duration) runner[In, Out] {
	return func(ctx context.Context, in In) (Out, error) {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return run(ctx, in)
	}
}

func retried[In, Out any](run runner[In, Out], p *place, how *policy) runner[In, Out] {
	return func(ctx context.Context, in In) (Out, error) {
		wait := how.min
		for attempt := 1; ; attempt++ {
			out, err := run(ctx, in)
			switch {
			case err == nil, attempt == how.attempts, ctx.Err() != nil, isSkip(err), how.again != nil && !how.again(err):
				return out, err
			}
			p.retried.Add(1)
			t := time.NewTimer(wait/2 + rand.N(wait/2+1))
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return out, err
			}
			wait = min(2*wait, how.max)
		}
	}
}

func throttled[In, Out any](run runner[In, Out], p *place, n int) runner[In, Out] {
	free := make(chan struct{}, n)
	return func(ctx context.Context, in In) (none Out, err error) {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return none, p.wrap(context.Cause(ctx))
		}
		defer func() { <-free }()
		return run(ctx, in)
	}
}
