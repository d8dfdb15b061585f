package policytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

// patterns: subscriptions to many topics.
var patterns = []promise{
	{"a pattern gets the messages of all topics that match, also of new ones", func(b *bench) {
		send := func(topic string, ns ...int) {
			var js []job
			for _, n := range ns {
				js = append(js, job{N: n})
			}
			require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](topic)).PublishBatch(b.Context(), js))
		}
		send("orders.eu", 1, 2)
		send("orders.us", 3)
		send("orders.eu.paid", 4)
		send("bills.eu", 5)
		got := make(chan string, 100)
		collect := func(pattern, group string) {
			c := subscribe(b, echo.NewTopic[job](pattern), echo.WithGroup(group))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				got <- fmt.Sprint(m.Topic, m.Value.N)
				return nil
			})
		}
		next := func(n int) (all []string) {
			for range n {
				select {
				case s := <-got:
					all = append(all, s)
				case <-time.After(patience):
					require.Failf(b, "too few messages", "%v", all)
				}
			}
			slices.Sort(all)
			return all
		}
		collect("orders.*", "one")
		assert.Equal(b, []string{"orders.eu1", "orders.eu2", "orders.us3"}, next(3))
		collect("orders.#", "many")
		assert.Equal(b, []string{"orders.eu.paid4", "orders.eu1", "orders.eu2", "orders.us3"}, next(4))
		send("orders.jp", 6) // a new topic
		assert.Equal(b, []string{"orders.jp6", "orders.jp6"}, next(2))
		send("orders.eu", 7)
		send("bills.eu", 8)
		assert.Equal(b, []string{"orders.eu7", "orders.eu7"}, next(2))
	}},
	{"of a pattern's topics each keeps its order, with retries and dead letters of its own", func(b *bench) {
		const n = 50
		for _, topic := range []string{"p.a", "p.b", "p.c"} {
			require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](topic, echo.WithKeyFunc(func(j job) string { return j.Key }))).PublishBatch(b.Context(), numbers(0, n)))
		}
		seen := map[string][]int{}
		done := make(chan struct{})
		total := 0
		c := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), brisk(3))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			if m.Value.N == 7 {
				return errBad
			}
			seen[m.Topic] = append(seen[m.Topic], m.Value.N)
			if total++; total == 3*(n-1) {
				close(done)
			}
			return nil
		})
		select {
		case <-done:
		case <-time.After(patience):
			require.Fail(b, "too few handled", "%d", total)
		}
		want := slices.DeleteFunc(counting(n), func(i int) bool { return i == 7 })
		for _, topic := range []string{"p.a", "p.b", "p.c"} {
			assert.Equal(b, want, seen[topic], topic)
			look := subscribe(b, echo.DeadLetters(echo.NewTopic[job](topic)), echo.WithGroup("look"))
			assert.Equal(b, 7, take(b, look, 1)[0].Value.Value.N)
			look.Close()
		}
	}},
	{"members of a group share a pattern, and a slow one keeps nothing from the others", func(b *bench) {
		blocked := make(chan struct{})
		stuck := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), echo.WithPrefetch(1, 0))
		running(b, stuck, func(ctx context.Context, m echo.Message[job]) error { <-blocked; return nil })
		p := echo.NewProducer(b.bus, echo.NewTopic[job]("p.a"))
		require.NoError(b, p.PublishBatch(b.Context(), numbers(0, 20)))
		time.Sleep(1200 * time.Millisecond) // it found the topic
		r := newRecord()
		running(b, subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g")), func(_ context.Context, m echo.Message[job]) error {
			assert.Equal(b, 1, m.Attempt)
			r.add(m)
			return nil
		})
		assert.Len(b, r.all(b, 19), 19)
		close(blocked)
	}},
	{"what a loop over a pattern forgets comes again when its lease ends, and takes no room", func(b *bench) {
		for _, topic := range []string{"p.a", "p.b"} {
			require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](topic)).Publish(b.Context(), job{N: 1}))
		}
		c := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), echo.WithPrefetch(1, 0), echo.WithLease(time.Second))
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		attempts := map[string]int{}
		for m, err := range c.Messages(ctx) {
			require.NoError(b, err)
			if attempts[m.Topic] = m.Attempt; attempts["p.a"] > 1 && attempts["p.b"] > 1 {
				return
			}
		}
		assert.Fail(b, "too few came", "%v", attempts)
	}},
	{"a pattern keeps its leases, of topics that come later too", func(b *bench) {
		open := func(h echo.Handler[job]) {
			running(b, subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), echo.WithLease(time.Second)), h)
		}
		handled := newRecord()
		slowly := func(ctx context.Context, m echo.Message[job]) error {
			select {
			case <-time.After(2500 * time.Millisecond):
				handled.add(m)
			case <-ctx.Done():
				assert.NoError(b, context.Cause(ctx))
			}
			return nil
		}
		open(slowly)
		open(slowly)
		require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job]("p.a")).Publish(b.Context(), job{N: 1}))
		assert.Equal(b, 1, handled.all(b, 1)[0].attempt)
		time.Sleep(200 * time.Millisecond)
		assert.Len(b, handled.all(b, 1), 1)
	}},
	{"of a pattern's topics none holds up or hides the messages of another that have its keys", func(b *bench) {
		for _, topic := range []string{"p.a", "p.b"} {
			p := echo.NewProducer(b.bus, echo.NewTopic[job](topic, echo.WithKeyFunc(func(j job) string { return j.Key })))
			for n := range 3 {
				require.NoError(b, p.Publish(b.Context(), job{N: n, Key: "k"}, echo.WithIdempotencyKey(fmt.Sprint(n))))
			}
		}
		for _, concurrency := range []int{1, 3} {
			r := newRecord()
			c := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup(fmt.Sprint("g", concurrency)), echo.WithDedup(time.Hour), echo.WithConcurrency(concurrency),
				echo.WithRetry(echo.Retry{Table: []time.Duration{time.Hour}}))
			running(b, c, func(_ context.Context, m echo.Message[job]) error {
				if m.Topic == "p.a" {
					return errBad
				}
				r.add(m)
				return nil
			})
			assert.Equal(b, []int{0, 1, 2}, jobsOf(r.all(b, 3)))
		}
	}},
	{"whoever joins a group of a pattern starts at the first message of topics that came since", func(b *bench) {
		send := func(topic string, n int) {
			require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](topic)).Publish(b.Context(), job{N: n}))
		}
		join := func() *echo.Consumer[job] {
			return subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), echo.FromNewest())
		}
		send("p.a", 1)
		require.NoError(b, join().Close())
		send("p.a", 2)
		send("p.b", 3)
		c := join()
		defer c.Close()
		ns := []int{}
		for _, m := range take(b, c, 2) {
			ns = append(ns, m.Value.N)
		}
		slices.Sort(ns)
		assert.Equal(b, []int{2, 3}, ns, "what was published while nobody was there")
	}},
	{"of a pattern's topics each has its turn, however slow the handler is", func(b *bench) {
		topics := []string{"p.a", "p.b", "p.c"}
		for _, topic := range topics {
			require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](topic)).PublishBatch(b.Context(), numbers(0, 30)))
		}
		var mu sync.Mutex
		handled := map[string]int{}
		done := make(chan struct{}, 100)
		c := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), echo.WithLease(time.Second), echo.WithPrefetch(1, 0))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			time.Sleep(300 * time.Millisecond) // longer than messages are held for the taking
			mu.Lock()
			defer mu.Unlock()
			handled[m.Topic]++
			done <- struct{}{}
			return nil
		})
		for range 15 {
			<-done
		}
		mu.Lock()
		defer mu.Unlock()
		for _, topic := range topics {
			assert.GreaterOrEqual(b, handled[topic], 3, "%v", handled)
		}
	}},
	{"a topic of a pattern whose name is too long for dead letters has none", func(b *bench) {
		long := "p." + strings.Repeat("x", 196)
		require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job](long)).PublishBatch(b.Context(), numbers(0, 2)))
		require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[job]("p.short")).Publish(b.Context(), job{N: 0}))
		_, err := echo.Subscribe(b.Context(), b.bus, echo.NewTopic[job]("p.*"), echo.WithGroup("g"), brisk(2))
		assert.ErrorContains(b, err, "WithRetry: of the dead letters")
		assert.ErrorContains(b, err, long)
		c := subscribe(b, echo.NewTopic[job]("p.*"), echo.WithGroup("g"))
		running(b, c, func(_ context.Context, m echo.Message[job]) error {
			if m.Value.N == 0 {
				return echo.Reject(errBad)
			}
			return nil
		})
		assert.Eventually(b, func() bool {
			s := c.Stats()
			return s.GivenUp == 1 && s.Dead == 1 && s.Handled == 1
		}, patience, 5*time.Millisecond)
	}},
	{"nothing is published to a pattern, and one that makes no sense is refused", func(b *bench) {
		assert.ErrorContains(b, echo.NewProducer(b.bus, echo.NewTopic[job]("p.*")).Publish(b.Context(), job{}), "is a pattern")
		_, err := echo.Subscribe(b.Context(), b.bus, echo.NewTopic[job]("p.#.x"))
		assert.ErrorContains(b, err, "comes last")
		_, err = echo.Subscribe(b.Context(), b.bus, echo.NewTopic[job]("p.*"), echo.FromID("a"))
		assert.ErrorContains(b, err, "FromID names a message of one topic")
	}},
}
