package policytest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

// terms: what publishers ask for.
var terms = []promise{
	{"a message with a delay or a time comes when that is over", func(b *bench) {
		r := newRecord()
		running(b, subscribe(b, jobs), func(_ context.Context, m echo.Message[job]) error { r.add(m); return nil })
		p := echo.NewProducer(b.bus, jobs)
		begin := time.Now()
		require.NoError(b, p.Publish(b.Context(), job{N: 3}, echo.WithTime(begin.Add(600*time.Millisecond))))
		require.NoError(b, p.Publish(b.Context(), job{N: 2}, echo.WithDelay(300*time.Millisecond)))
		require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithTime(begin.Add(-time.Hour))))
		require.NoError(b, p.PublishBatch(b.Context(), numbers(4, 6), echo.WithDelay(900*time.Millisecond)))
		all := r.all(b, 5)
		assert.Equal(b, []int{1, 2, 3, 4, 5}, jobsOf(all))
		for i, want := range []time.Duration{0, 300, 600, 900, 900} {
			took := all[i].at.Sub(begin)
			assert.GreaterOrEqual(b, took, want*time.Millisecond-10*time.Millisecond, "job %d", all[i].N)
			assert.Less(b, took, want*time.Millisecond+280*time.Millisecond, "job %d", all[i].N)
		}
	}},
	{"a message that expired is not handled, but counted", func(b *bench) {
		p := echo.NewProducer(b.bus, jobs)
		c := subscribe(b, jobs, echo.WithGroup("g"))
		require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithTTL(20*time.Millisecond)))
		require.NoError(b, p.Publish(b.Context(), job{N: 2}, echo.WithTTL(time.Hour)))
		require.NoError(b, p.Publish(b.Context(), job{N: 3}, echo.WithDelay(100*time.Millisecond), echo.WithTTL(10*time.Second)))
		time.Sleep(30 * time.Millisecond)
		r := newRecord()
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			assert.Empty(b, m.Headers)
			r.add(m)
			return nil
		})
		assert.Equal(b, []int{2, 3}, jobsOf(r.all(b, 2)), "the time to live of a delayed message begins when it is due")
		assert.EqualValues(b, 1, c.Stats().Expired)
		assert.Eventually(b, func() bool { return c.Stats().Handled == 2 }, patience, time.Millisecond, "once the last handler has returned")

		loop := subscribe(b, jobs, echo.WithGroup("loop"))
		defer loop.Close()
		assert.Equal(b, 2, take(b, loop, 1)[0].Value.N)
		assert.EqualValues(b, 1, loop.Stats().Expired)
	}},
	{"a message that expires between two attempts is not tried again", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Table: []time.Duration{150 * time.Millisecond}}))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			assert.Equal(b, 1, m.Attempt)
			return errBad
		})
		p := echo.NewProducer(b.bus, jobs)
		require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithTTL(100*time.Millisecond)))
		require.NoError(b, p.Publish(b.Context(), job{N: 2, Key: "k"}, echo.WithTTL(100*time.Millisecond)))
		require.Eventually(b, func() bool { return c.Stats().Expired == 2 }, patience, 10*time.Millisecond)
	}},
	{"a message that expired is a dead letter, if that is asked for", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithDeadExpired())
		require.NoError(b, echo.NewProducer(b.bus, jobs).Publish(b.Context(), job{N: 1}, echo.WithTTL(time.Millisecond)))
		time.Sleep(5 * time.Millisecond)
		r := newRecord()
		running(b, c, func(_ context.Context, m echo.Message[job]) error { r.add(m); return nil })
		letter := b.dead(1)[0].Value
		assert.Equal(b, echo.ReasonExpired, letter.Reason)
		assert.Equal(b, job{N: 1}, letter.Value)
		_, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
		require.NoError(b, err)
		assert.Equal(b, []int{1}, jobsOf(r.all(b, 1)), "sent home it has no time to live any more")
	}},
	{"a topic that deduplicates stores a message once", func(b *bench) {
		topic := echo.NewTopic[job](jobs.Name(), echo.WithDedup(time.Minute))
		p := echo.NewProducer(b.bus, topic)
		for range 3 {
			require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithID("one")))
			require.NoError(b, p.Publish(b.Context(), job{N: 2}, echo.WithIdempotencyKey("two")))
			require.NoError(b, p.Publish(b.Context(), job{N: 2}, echo.WithID("two"), echo.WithIdempotencyKey("three")))
			require.NoError(b, p.Publish(b.Context(), job{N: 3}, echo.WithIdempotencyKey("three"), echo.WithDelay(time.Millisecond)))
		}
		require.NoError(b, p.Publish(b.Context(), job{N: 9}))
		c := subscribe(b, topic, echo.WithGroup("g"))
		defer c.Close()
		var got []int
		for _, m := range take(b, c, 4) {
			got = append(got, m.Value.N)
		}
		assert.Equal(b, []int{1, 2, 2, 9}, got)
		nothing(b, c, 50*time.Millisecond)
	}},
	{"a consumer that deduplicates handles a message once", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			r := newRecord()
			c := subscribe(b, jobs, echo.WithGroup(fmt.Sprint("g", concurrency)), echo.FromNewest(), echo.WithConcurrency(concurrency), echo.WithDedup(time.Minute), brisk(3))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				r.add(m)
				time.Sleep(time.Millisecond)
				if m.Value.N == 2 && m.Attempt < 2 {
					return errBad // one that failed was not handled
				}
				return nil
			})
			p := echo.NewProducer(b.bus, jobs)
			for range 3 {
				require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithID(fmt.Sprint("one", concurrency))))
				require.NoError(b, p.Publish(b.Context(), job{N: 2}, echo.WithIdempotencyKey(fmt.Sprint("two", concurrency))))
			}
			require.Eventually(b, func() bool { return c.Stats().Duplicates >= 4 }, patience, 10*time.Millisecond)
			got := map[int]int{}
			for _, s := range r.all(b, 3) {
				got[s.N]++
			}
			assert.Equal(b, map[int]int{1: 1, 2: 2}, got)
		}
	}},
	{"terms that make no sense are refused by name", func(b *bench) {
		p := echo.NewProducer(b.bus, jobs)
		for want, opts := range map[string][]echo.PublishOption{
			"WithDelay(-1s)":                            {echo.WithDelay(-time.Second)},
			"WithTime contradicts WithDelay":            {echo.WithDelay(time.Second), echo.WithTime(time.Now())},
			"WithTTL(0s)":                               {echo.WithTTL(0)},
			"WithIdempotencyKey: the key is empty":      {echo.WithIdempotencyKey("")},
			"WithIdempotencyKey: of the key: message I": {echo.WithIdempotencyKey("a\nb")},
		} {
			err := p.Publish(b.Context(), job{}, opts...)
			assert.ErrorIs(b, err, echo.ErrNotPublished)
			assert.ErrorContains(b, err, want)
		}
		assert.ErrorContains(b, p.PublishBatch(b.Context(), numbers(0, 2), echo.WithIdempotencyKey("a")), "WithIdempotencyKey gives one key")
		_, err := echo.Subscribe(b.Context(), b.bus, jobs, echo.WithDedup(0))
		assert.ErrorContains(b, err, "WithDedup(0s)")
		assert.False(b, errors.Is(err, errors.ErrUnsupported))
	}},
}
