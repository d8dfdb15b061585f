// Package policytest checks what package echo promises about the life of a
// message over a transport: retries, dead letters, delay, expiry. It is to echo
// what transporttest is to a driver.
package policytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

// Run checks echo over the transports that open returns, a new and empty one
// each time. It closes them.
func Run(t *testing.T, open func(testing.TB) transport.Transport) {
	for _, p := range slices.Concat(retries, laters, deadLetters, terms, schemas, calls, sight, patterns) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			tr := open(t)
			bus := echo.New(echo.WithTransport(tr))
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, err := bus.Close(ctx)
				assert.NoError(t, err)
			})
			p.test(&bench{T: t, bus: bus, tr: tr})
		})
	}
}

type promise struct {
	name string
	test func(*bench)
}

// patience is how long a check waits for what must happen.
const patience = 20 * time.Second

// bench is a test with its bus.
type bench struct {
	*testing.T
	bus *echo.Bus
	tr  transport.Transport
}

// job is what the tests publish.
type job struct {
	N   int
	Key string `json:",omitempty"`
}

var jobs = echo.NewTopic[job]("jobs", echo.WithKeyFunc(func(j job) string { return j.Key }))

func (b *bench) publish(js ...job) {
	b.Helper()
	require.NoError(b, echo.NewProducer(b.bus, jobs).PublishBatch(b.Context(), js))
}

// numbers are jobs without key.
func numbers(from, to int) (js []job) {
	for n := from; n < to; n++ {
		js = append(js, job{N: n})
	}
	return js
}

func subscribe[M any](b *bench, topic *echo.Topic[M], opts ...echo.SubscribeOption) *echo.Consumer[M] {
	b.Helper()
	c, err := echo.Subscribe(b.Context(), b.bus, topic, opts...)
	require.NoError(b, err)
	return c
}

// running runs a handler until the end of the test.
func running[M any](b *bench, c *echo.Consumer[M], h echo.Handler[M]) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx, h) }()
	b.Cleanup(func() {
		cancel()
		assert.NoError(b, <-done)
	})
}

// take receives n messages and acknowledges them.
func take[M any](b *bench, c *echo.Consumer[M], n int) (msgs []echo.Message[M]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	if n == 0 {
		return nil
	}
	for m, err := range c.Messages(ctx) {
		require.NoError(b, err)
		require.NoError(b, m.Ack(ctx))
		if msgs = append(msgs, m); len(msgs) == n {
			return msgs
		}
	}
	require.Len(b, msgs, n, "messages until patience ended")
	return nil
}

// nothing checks that no message comes for d.
func nothing[M any](b *bench, c *echo.Consumer[M], d time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d)
	defer cancel()
	for m, err := range c.Messages(ctx) {
		require.NoError(b, err)
		require.Failf(b, "a message too many", "%+v, attempt %d", m.Value, m.Attempt)
	}
}

// dead takes n dead letters of jobs.
func (b *bench) dead(n int) []echo.Message[echo.DeadLetter[job]] {
	b.Helper()
	c := subscribe(b, echo.DeadLetters(jobs), echo.WithGroup("look"), echo.FromOldest())
	defer c.Close()
	return take(b, c, n)
}

// record is what handlers saw.
type record struct {
	mu   sync.Mutex
	seen []seen
	grew chan struct{}
}

type seen struct {
	job
	attempt int
	at      time.Time
}

func newRecord() *record { return &record{grew: make(chan struct{}, 1)} }

func (r *record) add(m echo.Message[job]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, seen{m.Value, m.Attempt, time.Now()})
	select {
	case r.grew <- struct{}{}:
	default:
	}
}

// all waits until n were seen, and returns them.
func (r *record) all(b *bench, n int) []seen {
	b.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		all := slices.Clone(r.seen)
		r.mu.Unlock()
		if len(all) >= n {
			return all
		}
		select {
		case <-r.grew:
		case <-late:
			require.Failf(b, "too few handled", "%d of %d: %v", len(all), n, all)
		}
	}
}

// jobs returns the numbers that were seen, in order.
func jobsOf(all []seen) (ns []int) {
	for _, s := range all {
		ns = append(ns, s.N)
	}
	return ns
}

var errBad = errors.New("this one is bad")

// brisk is a Retry for tests: so many attempts, close together.
func brisk(attempts int) echo.SubscribeOption {
	return echo.WithRetry(echo.Retry{Attempts: attempts, Table: slices.Repeat([]time.Duration{10 * time.Millisecond}, attempts-1)})
}

// lazy is one whose attempts are too far apart for a consumer to keep the message.
func lazy(attempts int) echo.SubscribeOption {
	return echo.WithRetry(echo.Retry{Attempts: attempts, Table: append([]time.Duration{20 * time.Millisecond}, slices.Repeat([]time.Duration{time.Second}, attempts-2)...)})
}

var retries = []promise{
	{"a message that fails comes again with a higher attempt, until it is handled", func(b *bench) {
		for _, keyed := range []string{"", "k"} {
			for _, concurrency := range []int{1, 4} {
				for name, retry := range map[string]echo.SubscribeOption{"brisk": brisk(3), "lazy": lazy(3)} {
					group := fmt.Sprintf("%s%s%d", name, keyed, concurrency)
					r := newRecord()
					c := subscribe(b, jobs, echo.WithGroup(group), echo.FromNewest(), echo.WithConcurrency(concurrency), retry)
					running(b, c, func(_ context.Context, m echo.Message[job]) error {
						if m.Value.Key == keyed {
							r.add(m)
						}
						if m.Attempt < 3 {
							return errBad
						}
						return nil
					})
					b.publish(job{N: 1, Key: keyed})
					for i, s := range r.all(b, 3) {
						assert.Equal(b, i+1, s.attempt, group)
					}
				}
			}
		}
	}},
	{"a failing message holds no other up", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			group := fmt.Sprint("g", concurrency)
			r := newRecord()
			c := subscribe(b, jobs, echo.WithGroup(group), echo.FromNewest(), echo.WithConcurrency(concurrency),
				echo.WithRetry(echo.Retry{Table: []time.Duration{time.Hour}}))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				if m.Value.N%2 == 0 {
					return errBad
				}
				r.add(m)
				return nil
			})
			b.publish(numbers(0, 100)...)
			assert.Len(b, r.all(b, 50), 50)
		}
	}},
	{"a failing key holds up its own messages alone, and they keep their order", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			good, bad := newRecord(), newRecord()
			c := subscribe(b, jobs, echo.WithGroup(fmt.Sprint("g", concurrency)), echo.FromNewest(), echo.WithConcurrency(concurrency),
				echo.WithRetry(echo.Retry{Table: []time.Duration{300 * time.Millisecond}}))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				if m.Value.Key != "bad" {
					good.add(m)
					return nil
				}
				bad.add(m)
				if m.Value.N == 0 && m.Attempt < 3 {
					return errBad
				}
				return nil
			})
			var js []job
			for n := range 40 {
				js = append(js, job{N: n, Key: "bad"}, job{N: n, Key: "good"}, job{N: n, Key: fmt.Sprint("k", n)})
			}
			b.publish(js...)
			all := good.all(b, 80)
			handled := bad.all(b, 42)
			assert.Less(b, all[79].at.Sub(handled[0].at), 300*time.Millisecond, "the others are done before the bad one is tried again")
			assert.Equal(b, append([]int{0, 0}, jobsOf(goodOnly(all))...), jobsOf(handled), "the bad key's messages are in order")
		}
	}},
	{"a handler says when its message comes again", func(b *bench) {
		r := newRecord()
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Min: time.Hour, Max: time.Hour}))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			r.add(m)
			if m.Attempt == 1 {
				return fmt.Errorf("wrapped: %w", echo.RetryAfter(200*time.Millisecond, errBad))
			}
			return nil
		})
		b.publish(job{N: 1}, job{N: 2, Key: "k"})
		at := map[int][]time.Time{}
		for _, s := range r.all(b, 4) {
			at[s.N] = append(at[s.N], s.at)
		}
		for n, times := range at {
			require.Len(b, times, 2, "job %d", n)
			assert.GreaterOrEqual(b, times[1].Sub(times[0]), 190*time.Millisecond, "job %d", n)
		}
	}},
	{"a handler's context ends when its time is up, and that is an attempt", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 2, Table: []time.Duration{time.Millisecond}, Timeout: 50 * time.Millisecond}))
		running(b, c, func(ctx context.Context, m echo.Message[job]) error {
			<-ctx.Done()
			return ctx.Err()
		})
		b.publish(job{N: 1})
		letter := b.dead(1)[0].Value
		assert.Equal(b, context.DeadlineExceeded.Error(), letter.Error)
		assert.Equal(b, 2, letter.Attempts)
	}},
	{"a key whose handler fails during a stop is in order for whoever goes on", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			group := fmt.Sprint("g", concurrency)
			c := subscribe(b, jobs, echo.WithGroup(group), echo.WithConcurrency(concurrency), echo.FromNewest(), echo.WithRetry(echo.Retry{Table: []time.Duration{2 * time.Second}}))
			ctx, cancel := context.WithCancel(b.Context())
			begun := make(chan struct{}, 10)
			done := make(chan error, 1)
			go func() {
				done <- c.Run(ctx, func(context.Context, echo.Message[job]) error {
					begun <- struct{}{}
					<-ctx.Done() // what it depends on ends with it
					return errBad
				})
			}()
			var js []job
			for n := range 30 {
				js = append(js, job{N: n, Key: "k"})
			}
			b.publish(js...)
			<-begun
			time.Sleep(50 * time.Millisecond) // more are fetched
			cancel()
			require.NoError(b, <-done)
			assert.Empty(b, begun, "after the stop")
			r := newRecord()
			running(b, subscribe(b, jobs, echo.WithGroup(group)), func(_ context.Context, m echo.Message[job]) error {
				r.add(m)
				return nil
			})
			assert.Equal(b, counting(30), jobsOf(r.all(b, 30)))
		}
	}},
	{"what waits to be tried again goes back when its consumer stops", func(b *bench) {
		for _, key := range []string{"", "k"} {
			failed := make(chan struct{})
			c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 100, Table: []time.Duration{500 * time.Millisecond}}))
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() {
				done <- c.Run(ctx, func(context.Context, echo.Message[job]) error {
					failed <- struct{}{}
					return errBad
				})
			}()
			b.publish(job{N: 1, Key: key}, job{N: 2, Key: key})
			<-failed
			if key == "" {
				<-failed
			}
			time.Sleep(20 * time.Millisecond) // it waits now
			cancel()
			require.NoError(b, <-done)
			next := subscribe(b, jobs, echo.WithGroup("g"))
			got := map[int]int{}
			for _, m := range take(b, next, 2) {
				got[m.Value.N] = m.Attempt
			}
			want := map[int]int{1: 2, 2: 2}
			if key != "" {
				want[2] = 1
			}
			assert.Equal(b, want, got)
			next.Close()
		}
	}},
}

func goodOnly(all []seen) (good []seen) {
	for _, s := range all {
		if s.Key == "good" {
			good = append(good, s)
		}
	}
	return good
}
