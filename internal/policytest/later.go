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

// keeper is a handler that keeps its messages to be settled later.
type keeper struct{ kept chan echo.Message[job] }

func newKeeper() keeper { return keeper{make(chan echo.Message[job], 1000)} }

func (k keeper) handle(_ context.Context, m echo.Message[job]) error {
	k.kept <- m
	return echo.ErrLater
}

// take waits for n messages.
func (k keeper) take(b *bench, n int) (batch echo.Batch[job]) {
	b.Helper()
	late := time.After(patience)
	for len(batch) < n {
		select {
		case m := <-k.kept:
			batch = append(batch, m)
		case <-late:
			require.Failf(b, "too few came", "%d of %d", len(batch), n)
		}
	}
	return batch
}

// none checks that nothing more comes for d.
func (k keeper) none(b *bench, d time.Duration) {
	b.Helper()
	select {
	case m := <-k.kept:
		require.Failf(b, "a message too many", "%+v, attempt %d", m.Value, m.Attempt)
	case <-time.After(d):
	}
}

func numbersOf(batch echo.Batch[job]) (ns []int) {
	for _, m := range batch {
		ns = append(ns, m.Value.N)
	}
	return ns
}

var laters = []promise{
	{"a message that its handler keeps is leased until it is settled, and counts against what may be pending", func(b *bench) {
		const lease = time.Second
		for _, concurrency := range []int{1, 4} {
			group := fmt.Sprint("g", concurrency)
			k := newKeeper()
			c := subscribe(b, jobs, echo.WithGroup(group), echo.FromNewest(), echo.WithConcurrency(concurrency), echo.WithPrefetch(10, 1<<20), echo.WithLease(lease))
			running(b, c, k.handle)
			b.publish(numbers(0, 25)...)
			first := k.take(b, 10)
			k.none(b, 3*lease)
			for i := range first {
				first[i].Settle(nil)
				first[i].Settle(errBad) // is too late
			}
			second := k.take(b, 10)
			require.NoError(b, second[:5].Ack(b.Context()))
			for _, m := range second[5:] {
				require.NoError(b, m.Ack(b.Context()))
			}
			for _, m := range k.take(b, 5) {
				assert.Equal(b, 1, m.Attempt)
				m.Settle(nil)
			}
			require.Eventually(b, func() bool { return b.pending(group) == 0 }, patience, 10*time.Millisecond)
			assert.EqualValues(b, 25, c.Stats().Handled)
			assert.Zero(b, c.Stats().Failed)
			require.NoError(b, c.Close())
		}
	}},
	{"a message settled later with an error is one that failed", func(b *bench) {
		k := newKeeper()
		c := subscribe(b, jobs, echo.WithGroup("g"), brisk(2))
		running(b, c, k.handle)
		b.publish(job{N: 1}, job{N: 2, Key: "k"}, job{N: 3})
		for _, m := range k.take(b, 3) {
			if m.Value.N == 3 {
				m.Settle(echo.Reject(errBad))
			} else {
				m.Settle(errBad)
			}
		}
		for _, m := range k.take(b, 2) {
			assert.Equal(b, 2, m.Attempt)
			m.Settle(errBad)
		}
		reasons := map[int]string{}
		for _, m := range b.dead(3) {
			reasons[m.Value.Value.N] = fmt.Sprint(m.Value.Reason, m.Value.Attempts)
		}
		assert.Equal(b, map[int]string{1: "attempts2", 2: "attempts2", 3: "rejected1"}, reasons)
		assert.EqualValues(b, 5, c.Stats().Failed)
		assert.EqualValues(b, 3, c.Stats().Dead)
	}},
	{"messages with the key of one that is kept go on", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			k := newKeeper()
			c := subscribe(b, jobs, echo.WithGroup(fmt.Sprint("g", concurrency)), echo.FromNewest(), echo.WithConcurrency(concurrency))
			running(b, c, k.handle)
			b.publish(keyed(20)...)
			batch := k.take(b, 20)
			assert.Equal(b, counting(20), numbersOf(batch))
			for _, m := range batch {
				m.Settle(nil)
			}
			require.NoError(b, c.Close())
		}
	}},
	{"a message that is released comes again as if it had never come, in its place", func(b *bench) {
		k := newKeeper()
		c := subscribe(b, jobs, echo.WithGroup("g"), echo.WithPrefetch(6, 1<<20))
		running(b, c, k.handle)
		b.publish(keyed(10)...)
		batch := k.take(b, 6)
		c.Pause() // or the next one may be on its way
		require.NoError(b, batch[2].Release(b.Context()))
		c.Resume()
		again := k.take(b, 1)
		assert.Equal(b, 2, again[0].Value.N)
		assert.Equal(b, 1, again[0].Attempt)
		c.Pause()
		require.NoError(b, echo.Batch[job]{batch[0], batch[1], again[0], batch[3], batch[4], batch[5]}.Release(b.Context()))
		c.Resume()
		batch = k.take(b, 6)
		assert.Equal(b, counting(6), numbersOf(batch))
		for _, m := range batch {
			assert.Equal(b, 1, m.Attempt)
			m.Settle(nil)
		}
		batch = k.take(b, 4)
		assert.Equal(b, []int{6, 7, 8, 9}, numbersOf(batch))
		require.NoError(b, batch.Ack(b.Context()))
	}},
	{"a consumer that stops waits for what its handlers kept, and gives the rest back", func(b *bench) {
		for name, stop := range map[string]func(c *echo.Consumer[job], cancel func()){
			"context": func(_ *echo.Consumer[job], cancel func()) { cancel() },
			"close":   func(c *echo.Consumer[job], _ func()) { assert.NoError(b, c.Close()) },
		} {
			k := newKeeper()
			c := subscribe(b, jobs, echo.WithGroup(name), echo.FromNewest(), echo.WithDrainTimeout(500*time.Millisecond))
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.Run(ctx, k.handle) }()
			b.publish(keyed(10)...)
			batch := k.take(b, 10)
			done := c.Done()
			select {
			case <-done:
				require.Fail(b, "done before the stop")
			default:
			}
			stop(c, cancel)
			<-done // of one that has stopped
			for _, m := range batch[:4] {
				m.Settle(nil)
			}
			select {
			case <-ended:
				require.Fail(b, "it did not wait")
			case <-time.After(100 * time.Millisecond):
			}
			require.NoError(b, <-ended)
			<-c.Done()
			batch[4].Settle(nil) // is too late
			rest := take(b, subscribe(b, jobs, echo.WithGroup(name)), 6)
			assert.Equal(b, []int{4, 5, 6, 7, 8, 9}, numbersOf(rest))
			for _, m := range rest {
				assert.Equal(b, 1, m.Attempt)
			}
			cancel()
		}
	}},
	{"any mix of messages kept, failed, released and handled at once ends, and loses none", func(b *bench) {
		const n = 1000
		for _, concurrency := range []int{1, 4} {
			group := fmt.Sprint("g", concurrency)
			var mu sync.Mutex
			handled := make(map[int]int)
			done := func(m echo.Message[job]) {
				mu.Lock()
				defer mu.Unlock()
				handled[m.Value.N]++
			}
			var settling sync.WaitGroup
			c := subscribe(b, jobs, echo.WithGroup(group), echo.FromNewest(), echo.WithConcurrency(concurrency), echo.WithPrefetch(64, 1<<20),
				echo.WithDedup(time.Minute), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}}))
			ended := make(chan error, 1)
			go func() {
				ended <- c.Run(b.Context(), func(_ context.Context, m echo.Message[job]) error {
					way := rand.N(8)
					switch way {
					case 0:
						done(m)
						return nil
					case 1:
						return errBad
					case 2: // before the handler returned
						done(m)
						m.Settle(nil)
						return echo.ErrLater
					}
					settling.Go(func() {
						time.Sleep(rand.N(3 * time.Millisecond))
						switch way {
						case 3:
							m.Settle(errBad)
						case 4:
							assert.NoError(b, m.Release(b.Context()))
						case 5:
							done(m)
							assert.NoError(b, m.Ack(b.Context()))
						default:
							done(m)
							m.Settle(nil)
						}
					})
					return echo.ErrLater
				})
			}()
			var js []job
			for i := range n {
				js = append(js, job{N: i, Key: fmt.Sprintf("%.*d", i%3, i%10)})
			}
			b.publish(js...)
			assert.Eventually(b, func() bool { mu.Lock(); defer mu.Unlock(); return len(handled) == n }, patience, 10*time.Millisecond)
			settling.Wait()
			require.NoError(b, c.Close())
			require.NoError(b, <-ended)
			assert.Zero(b, b.pending(group))
			for i, times := range handled {
				assert.Equal(b, 1, times, "job %d", i)
			}
			assert.EqualValues(b, n, c.Stats().Handled)
		}
	}},
	{"a consumer that deduplicates handles what is kept once", func(b *bench) {
		for _, concurrency := range []int{1, 4} {
			k := newKeeper()
			c := subscribe(b, jobs, echo.WithGroup(fmt.Sprint("g", concurrency)), echo.FromNewest(), echo.WithConcurrency(concurrency), echo.WithDedup(time.Minute))
			running(b, c, k.handle)
			p := echo.NewProducer(b.bus, jobs)
			again := func() { require.NoError(b, p.Publish(b.Context(), job{N: 1}, echo.WithID("same"))) }
			again()
			first := k.take(b, 1)
			again()
			k.none(b, 200*time.Millisecond)
			first[0].Settle(nil)
			k.none(b, 200*time.Millisecond)
			again()
			k.none(b, 200*time.Millisecond)
			require.NoError(b, c.Close())
		}
	}},
	{"a loop settles its messages as handlers do", func(b *bench) {
		c := subscribe(b, jobs, echo.WithGroup("g"), brisk(2))
		b.publish(job{N: 1}, job{N: 2})
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		var attempts []int
		for m, err := range c.Messages(ctx) {
			require.NoError(b, err)
			if m.Value.N == 2 {
				m.Settle(nil)
				continue
			}
			attempts = append(attempts, m.Attempt)
			m.Settle(errBad)
			if m.Attempt == 2 {
				break
			}
		}
		assert.Equal(b, []int{1, 2}, attempts)
		assert.Equal(b, 2, b.dead(1)[0].Value.Attempts)
	}},
}

// keyed are n jobs of one key.
func keyed(n int) (js []job) {
	for i := range n {
		js = append(js, job{N: i, Key: "k"})
	}
	return js
}

// pending is how many messages of a group are in somebody's hands.
func (b *bench) pending(group string) int64 {
	b.Helper()
	in, err := b.bus.Inspect(b.Context(), "jobs")
	require.NoError(b, err)
	for _, g := range in.Groups {
		if g.Name == group {
			return g.Pending
		}
	}
	return -1
}
