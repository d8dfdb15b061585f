package policytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

// sight: what can be seen, and paused.
var sight = []promise{
	{"a topic tells its groups' lag, what is pending, delayed and dead, and what was done with it", func(b *bench) {
		slow := subscribe(b, jobs, echo.WithGroup("slow"))
		defer slow.Close()
		c := subscribe(b, jobs, echo.WithGroup("g"))
		held := make(chan struct{})
		release := make(chan struct{})
		running(b, c, func(ctx context.Context, m echo.Message[job]) error {
			switch m.Value.N {
			case 1:
				return echo.Reject(errBad)
			case 2:
				held <- struct{}{}
				<-release
			}
			return nil
		})
		b.publish(numbers(0, 3)...)
		require.NoError(b, echo.NewProducer(b.bus, jobs).Publish(b.Context(), job{N: 9}, echo.WithDelay(time.Hour)))
		<-held
		require.Eventually(b, func() bool {
			i, err := b.bus.Inspect(b.Context(), jobs.Name())
			require.NoError(b, err)
			return i.DeadLetters == 1 && i.Group("g").Pending == 1
		}, patience, 10*time.Millisecond)
		i, err := b.bus.Inspect(b.Context(), jobs.Name())
		require.NoError(b, err)
		assert.EqualValues(b, 3, i.Messages)
		assert.EqualValues(b, 1, i.Delayed)
		assert.EqualValues(b, 3, i.Group("slow").Lag)
		assert.EqualValues(b, 0, i.Group("g").Lag)
		assert.Equal(b, echo.ConsumerStats{Handled: 1, Failed: 1, Dead: 1}, i.Consumers)
		close(release)
		require.Eventually(b, func() bool {
			i, err := b.bus.Inspect(b.Context(), jobs.Name())
			require.NoError(b, err)
			return i.Group("g").Pending == 0
		}, patience, 10*time.Millisecond)
		done, err := echo.Redrive(b.Context(), b.bus, jobs, nil, 0)
		require.NoError(b, err)
		assert.Equal(b, 1, done.Sent)
		require.Eventually(b, func() bool {
			i, err := b.bus.Inspect(b.Context(), jobs.Name())
			require.NoError(b, err)
			return i.DeadLetters == 1 // it died again
		}, patience, 10*time.Millisecond)
		require.NoError(b, b.bus.Ping(b.Context()))
	}},
	{"what is paused and resumed keeps the order of keys", func(b *bench) {
		const n = 300
		for i, topics := range []string{"p0.a", "p1.a", "p2.*", "p3.*"} {
			keyed := echo.WithKeyFunc(func(j job) string { return j.Key })
			p := echo.NewProducer(b.bus, echo.NewTopic[job](fmt.Sprintf("p%d.a", i), keyed))
			var js []job
			for i := range n {
				js = append(js, job{N: i, Key: fmt.Sprint(i % 3)})
			}
			require.NoError(b, p.PublishBatch(b.Context(), js))
			c := subscribe(b, echo.NewTopic[job](topics), echo.WithGroup("g"), echo.WithConcurrency(1+i%2*3))
			r := newRecord()
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				time.Sleep(time.Millisecond)
				r.add(m)
				return nil
			})
			for range 10 {
				time.Sleep(5 * time.Millisecond)
				c.Pause()
				time.Sleep(5 * time.Millisecond)
				c.Resume()
			}
			byKey := map[string][]int{}
			for _, s := range r.all(b, n) {
				byKey[s.Key] = append(byKey[s.Key], s.N/3)
			}
			for key, seen := range byKey {
				assert.Equal(b, counting(n/3), seen, topics+" key "+key)
			}
		}
	}},
	{"failures, pauses and stops at once keep the order of keys, and lose nothing", func(b *bench) {
		const keys, each = 4, 1500
		p := echo.NewProducer(b.bus, jobs)
		for n := 1; n <= each; n++ {
			var js []job
			for k := range keys {
				js = append(js, job{N: n, Key: fmt.Sprint(k)})
			}
			require.NoError(b, p.PublishBatch(b.Context(), js))
		}
		for _, concurrency := range []int{1, 3} {
			var mu sync.Mutex
			last := map[string]int{}
			handle := func(_ context.Context, m echo.Message[job]) error {
				if rand.IntN(20) == 0 {
					return errBad
				}
				mu.Lock()
				defer mu.Unlock()
				key, n := m.Value.Key, m.Value.N
				assert.LessOrEqual(b, n, last[key]+1, "concurrency %d, key %s: what is between was passed by", concurrency, key)
				last[key] = max(last[key], n)
				return nil
			}
			open := func() *echo.Consumer[job] {
				return subscribe(b, jobs, echo.WithGroup(fmt.Sprint("g", concurrency)), echo.FromOldest(), echo.WithConcurrency(concurrency), echo.WithPrefetch(64, 0),
					echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond, 0, 3 * time.Millisecond}}))
			}
			for range 40 {
				c := open()
				ctx, cancel := context.WithTimeout(b.Context(), time.Duration(5+rand.IntN(60))*time.Millisecond)
				var pausing sync.WaitGroup
				pausing.Go(func() {
					for ctx.Err() == nil {
						time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
						c.Pause()
						time.Sleep(time.Duration(rand.IntN(2)) * time.Millisecond)
						c.Resume()
					}
				})
				require.NoError(b, c.Run(ctx, handle))
				cancel()
				pausing.Wait()
				if b.Failed() {
					return
				}
			}
			running(b, open(), handle)
			sum := func() (sum int) {
				mu.Lock()
				defer mu.Unlock()
				for _, n := range last {
					sum += n
				}
				return sum
			}
			for before := -1; before < keys*each; {
				require.Eventually(b, func() bool { return sum() > before }, patience, 10*time.Millisecond, "concurrency %d: nothing comes", concurrency)
				before = sum()
			}
		}
	}},
	{"a paused consumer handles nothing until it is resumed, and others do", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			r := newRecord()
			busy, goOn := make(chan struct{}), make(chan struct{})
			c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithConcurrency(concurrency))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				if m.Value.N == 0 {
					busy <- struct{}{}
					<-goOn
				}
				r.add(m)
				return nil
			})
			b.publish(job{N: 0})
			<-busy
			b.publish(numbers(1, 3)...)
			time.Sleep(20 * time.Millisecond)
			c.Pause()
			c.Pause()
			before := len(r.all(b, 0))
			goOn <- struct{}{}
			first := r.all(b, before+1)
			b.publish(numbers(3, 5)...)
			time.Sleep(50 * time.Millisecond)
			assert.Len(b, r.all(b, 0), len(first), "nothing is handled")
			other := subscribe(b, jobs, echo.WithGroup("g"))
			for _, m := range take(b, other, 5-len(first)) {
				assert.Equal(b, 1, m.Attempt, "not begun by the one that is paused")
			}
			other.Close()
			b.publish(job{N: 5})
			c.Resume()
			c.Resume()
			all := r.all(b, len(first)+1)
			assert.Equal(b, 5, all[len(first)].N)
			require.NoError(b, c.Close())
		}
	}},
}
