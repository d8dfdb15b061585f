package policytest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

var deadLetters = []promise{
	{"a message whose attempts are used up is a dead letter that says why", func(b *bench) {
		for i, key := range []string{"", "k"} {
			for name, retry := range map[string]echo.SubscribeOption{"brisk": brisk(3), "lazy": lazy(3)} {
				group := name + key
				calls := atomic.Int32{}
				c := subscribe(b, jobs, echo.WithGroup(group), echo.FromNewest(), retry)
				begin := time.Now()
				require.NoError(b, echo.NewProducer(b.bus, jobs).Publish(b.Context(), job{N: i, Key: key}, echo.WithHeader("tenant", "a"), echo.WithID("id-"+group)))
				ctx, stop := context.WithCancel(b.Context())
				done := make(chan error)
				go func() {
					done <- c.Run(ctx, func(context.Context, echo.Message[job]) error {
						calls.Add(1)
						return fmt.Errorf("line one\nline two %s", strings.Repeat("x", 5000))
					})
				}()
				dead := subscribe(b, echo.DeadLetters(jobs), echo.WithGroup("look"))
				m := take(b, dead, 1)[0]
				dead.Close()
				stop()
				require.NoError(b, <-done)
				assert.EqualValues(b, 3, calls.Load())
				assert.Equal(b, "id-"+group, m.ID)
				assert.Equal(b, key, m.Key)
				assert.Equal(b, map[string]string{"tenant": "a"}, m.Headers)
				d := m.Value
				assert.Equal(b, job{N: i, Key: key}, d.Value)
				assert.NoError(b, d.Err)
				assert.Equal(b, echo.ReasonAttempts, d.Reason)
				assert.True(b, strings.HasPrefix(d.Error, "line one line two xxx"), d.Error)
				assert.LessOrEqual(b, len(d.Error), 1024)
				assert.Equal(b, 3, d.Attempts)
				assert.Equal(b, group, d.Group)
				assert.WithinRange(b, d.Died, begin, time.Now())
			}
		}
	}},
	{"a rejected message is a dead letter at once", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Retryable: func(err error) bool { return !errors.Is(err, errBad) }}))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			switch m.Value.N {
			case 1:
				return fmt.Errorf("wrapped: %w", echo.Reject(errors.New("no such customer")))
			case 2:
				return errBad // not worth another attempt
			case 3:
				return m.Reject(context.Background(), errors.New("by hand"))
			}
			return nil
		})
		b.publish(numbers(0, 4)...)
		got := map[int]string{}
		for _, m := range b.dead(3) {
			got[m.Value.Value.N] = m.Value.Error
			assert.Equal(b, echo.ReasonRejected, m.Value.Reason)
			assert.Equal(b, 1, m.Value.Attempts)
		}
		assert.Equal(b, map[int]string{1: "wrapped: no such customer", 2: errBad.Error(), 3: "by hand"}, got)
	}},
	{"a message that cannot be decoded is a dead letter, and the others go on", func(b *bench) {
		wrong := echo.NewTopic[string](jobs.Name())
		c := subscribe(b, jobs, echo.WithGroup("run"))
		r := newRecord()
		running(b, c, func(_ context.Context, m echo.Message[job]) error { r.add(m); return nil })
		require.NoError(b, echo.NewProducer(b.bus, wrong).Publish(b.Context(), "no job"))
		b.publish(job{N: 1})
		r.all(b, 1)
		letter := b.dead(1)[0].Value
		assert.Equal(b, echo.ReasonUndecodable, letter.Reason)
		assert.Zero(b, letter.Value)
		e, ok := errors.AsType[*echo.DecodeError](letter.Err)
		require.True(b, ok)
		assert.Equal(b, `"no job"`, string(e.Data))

		loop := subscribe(b, jobs, echo.WithGroup("loop"))
		defer loop.Close()
		n := 0
		for m, err := range loop.Messages(b.Context()) {
			if err == nil {
				require.NoError(b, m.Ack(b.Context()))
				break
			}
			n++
		}
		assert.Equal(b, 1, n, "yielded, and then set aside")
		assert.Len(b, b.dead(1), 1)
	}},
	{"deliveries that nobody settled are attempts, too", func(b *bench) {
		b.publish(job{N: 1})
		for range 3 { // three processes that die with it
			s, err := b.tr.Subscribe(b.Context(), jobs.Name(), transport.Options{Group: "g"})
			require.NoError(b, err)
			n, err := s.Receive(b.Context(), make([]transport.Message, 1))
			require.NoError(b, err)
			require.Equal(b, 1, n)
			require.NoError(b, s.Close())
		}
		c := subscribe(b, jobs, echo.WithGroup("g"), brisk(3))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			b.Errorf("handled in attempt %d of 3", m.Attempt)
			return nil
		})
		letter := b.dead(1)[0].Value
		assert.Equal(b, echo.ReasonAttempts, letter.Reason)
		assert.Equal(b, 4, letter.Attempts)
	}},
	{"dead letters go home once, to the group in which they died", func(b *bench) {
		healed := atomic.Bool{}
		r := newRecord()
		c := subscribe(b, jobs, echo.WithGroup("billing"), brisk(2))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			if !healed.Load() {
				return errBad
			}
			r.add(m)
			return nil
		})
		other := newRecord()
		running(b, subscribe(b, jobs, echo.WithGroup("shipping")), func(_ context.Context, m echo.Message[job]) error { other.add(m); return nil })
		all := newRecord()
		running(b, subscribe(b, jobs), func(_ context.Context, m echo.Message[job]) error { all.add(m); return nil })
		b.publish(numbers(0, 10)...)
		b.dead(10)
		healed.Store(true)

		odd := func(m echo.Message[echo.DeadLetter[job]]) bool { return m.Value.Value.N%2 == 1 }
		done, err := echo.Redrive(b.Context(), b.bus, jobs, odd, 0)
		require.NoError(b, err)
		assert.Equal(b, echo.Redriven{Sent: 5, Kept: 5}, done)
		for _, s := range r.all(b, 5) {
			assert.Equal(b, 1, s.N%2)
			assert.Equal(b, 1, s.attempt, "with all its attempts")
		}
		done, err = echo.Redrive(b.Context(), b.bus, jobs, odd, 0)
		require.NoError(b, err)
		assert.Equal(b, echo.Redriven{Kept: 5}, done, "once")

		begin := time.Now()
		done, err = echo.Redrive(b.Context(), b.bus, jobs, nil, 20)
		require.NoError(b, err)
		assert.Equal(b, echo.Redriven{Sent: 5}, done)
		assert.GreaterOrEqual(b, time.Since(begin), 190*time.Millisecond, "at 20 a second")
		r.all(b, 10)
		done, err = echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
		require.NoError(b, err)
		assert.Zero(b, done)
		b.publish(job{N: 100})
		assert.Equal(b, append(counting(10), 100), jobsOf(other.all(b, 11)), "no other group gets it again")
		assert.Equal(b, append(counting(10), 100), jobsOf(all.all(b, 11)), "nor does a broadcast")
	}},
	{"a dead letter that dies again knows how often it was sent home", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), brisk(2))
		running(b, c, func(context.Context, echo.Message[job]) error { return errBad })
		b.publish(job{N: 1})
		look := subscribe(b, echo.DeadLetters(jobs), echo.WithGroup("look"))
		defer look.Close()
		for redrives := range 3 {
			assert.Equal(b, redrives, take(b, look, 1)[0].Value.Redrives)
			done, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
			require.NoError(b, err)
			assert.Equal(b, 1, done.Sent)
		}
	}},
	{"a dead letter stays, whatever its handler says", func(b *bench) {
		running(b, subscribe(b, jobs, echo.WithGroup("g")), func(context.Context, echo.Message[job]) error { return echo.Reject(errBad) })
		b.publish(job{N: 1})
		tries := make(chan int, 100)
		running(b, subscribe(b, echo.DeadLetters(jobs), echo.WithGroup("fix"), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}})),
			func(_ context.Context, m echo.Message[echo.DeadLetter[job]]) error {
				tries <- m.Attempt
				if m.Attempt < 4 {
					return echo.Reject(errBad)
				}
				return nil
			})
		for want := range 4 {
			assert.Equal(b, want+1, <-tries)
		}
		for want, opt := range map[string]echo.SubscribeOption{"this group is Redrive's": echo.WithGroup("redrive"), "dead letters have no dead letters": brisk(2)} {
			_, err := echo.Subscribe(b.Context(), b.bus, echo.DeadLetters(jobs), echo.WithGroup("x"), opt)
			assert.ErrorContains(b, err, want)
		}
		assert.ErrorContains(b, echo.NewProducer(b.bus, echo.DeadLetters(jobs)).Publish(b.Context(), echo.DeadLetter[job]{}), "only failures lead")
	}},
	{"messages that die while dead letters go home are for the next time", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"))
		running(b, c, func(context.Context, echo.Message[job]) error { return echo.Reject(errBad) })
		b.publish(numbers(0, 5)...)
		b.dead(5)
		done, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 50)
		require.NoError(b, err)
		assert.Equal(b, 5, done.Sent)
	}},
	{"what a handler gives back by hand was not handled, whatever is remembered", func(b *bench) {
		tries := make(chan int, 10)
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithDedup(time.Hour))
		running(b, c, func(ctx context.Context, m echo.Message[job]) error {
			tries <- m.Attempt
			switch {
			case m.Value.N == 1 && m.Attempt == 1:
				return m.Nack(ctx, 0)
			case m.Value.N == 2 && m.Headers == nil:
				return m.Reject(ctx, errBad)
			}
			return nil
		})
		b.publish(job{N: 1})
		assert.Equal(b, 1, <-tries)
		assert.Equal(b, 2, <-tries)
		b.publish(job{N: 2})
		assert.Equal(b, 1, <-tries)
		b.dead(1)
		_, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
		require.NoError(b, err)
		assert.Equal(b, 1, <-tries, "it comes home")
	}},
	{"a loop remembers what it acknowledged, and not what passed it by", func(b *bench) {
		b.publish(job{N: 1})
		for _, group := range []string{"a", "b"} { // one message dies in two groups
			c := subscribe(b, jobs, echo.WithGroup(group))
			for m, err := range c.Messages(b.Context()) {
				require.NoError(b, err)
				require.NoError(b, m.Reject(b.Context(), errBad))
				break
			}
			require.NoError(b, c.Close())
		}
		done, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
		require.NoError(b, err)
		assert.Equal(b, 2, done.Sent)
		for _, group := range []string{"a", "b"} {
			c := subscribe(b, jobs, echo.WithGroup(group), echo.WithDedup(time.Hour))
			assert.Equal(b, 1, take(b, c, 1)[0].Value.N, "the other group's comes first, under the same ID")
			assert.EqualValues(b, 1, c.Stats().Handled)
			require.NoError(b, c.Close())
		}
	}},
	{"a rejected message of a broadcast is given up", func(b *bench) {
		r := newRecord()
		running(b, subscribe(b, jobs, brisk(2)), func(_ context.Context, m echo.Message[job]) error {
			r.add(m)
			switch m.Value.N {
			case 1:
				return echo.Reject(errBad)
			case 2:
				return errBad
			}
			return nil
		})
		b.publish(numbers(1, 4)...)
		time.Sleep(50 * time.Millisecond)
		b.publish(job{N: 4})
		got := map[int]int{}
		for _, s := range r.all(b, 5) {
			got[s.N]++
		}
		assert.Equal(b, map[int]int{1: 1, 2: 2, 3: 1, 4: 1}, got)
	}},
	{"ten thousand poison messages hold a good one up for two seconds at most", func(b *bench) {
		const n = 10_000
		js := numbers(0, n)
		for i := 0; i < len(js); i += 1000 {
			b.publish(js[i : i+1000]...)
		}
		b.publish(job{N: -1})
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithConcurrency(8), echo.WithRetry(echo.Retry{Attempts: 5, Min: 100 * time.Millisecond, Max: 5 * time.Second}))
		var first, last atomic.Int64 // when the last poison had its first attempt
		good := make(chan time.Time, 1)
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			if m.Value.N < 0 {
				good <- time.Now()
				return nil
			}
			if m.Attempt == 1 {
				first.CompareAndSwap(0, time.Now().UnixNano())
				last.Store(time.Now().UnixNano())
			}
			return errBad
		})
		select {
		case at := <-good:
			took := at.Sub(time.Unix(0, first.Load()))
			b.Logf("handled %v after the first poison, which is %v for each", took, took/n)
			assert.Less(b, at.Sub(time.Unix(0, last.Load())), 2*time.Second)
		case <-time.After(2 * patience):
			require.Fail(b, "the good one was not handled")
		}
	}},
}

// counting is 0, 1, … n-1.
func counting(n int) []int {
	ns := make([]int, n)
	for i := range ns {
		ns[i] = i
	}
	return ns
}
