package echo_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

var texts = echo.NewTopic[string]("t")

func say(t testing.TB, bus *echo.Bus, key string, values ...string) {
	t.Helper()
	for _, v := range values {
		var opts []echo.PublishOption
		if key != "" {
			opts = append(opts, echo.WithKey(key))
		}
		require.NoError(t, echo.NewProducer(bus, texts).Publish(t.Context(), v, opts...))
	}
}

var errOops = errors.New("oops")

// Lines that are always due take turns with what is new.
func TestFailingKeysStarveNobody(t *testing.T) {
	for _, concurrency := range []int{1, 4} {
		for name, retry := range map[string]echo.Retry{"a timeout": {Max: 10 * time.Second}, "no wait": {Table: []time.Duration{0}}} {
			synctest.Test(t, func(t *testing.T) {
				bus := newBus(t)
				c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithConcurrency(concurrency), echo.WithRetry(retry))
				calls, good := 0, 0
				var mu sync.Mutex
				running(t, c, func(_ context.Context, m echo.Message[string]) error {
					if m.Value != "good" {
						time.Sleep(time.Second)
					}
					mu.Lock()
					defer mu.Unlock()
					if m.Value == "good" {
						good++
						return nil
					}
					calls++
					return errOops
				})
				for i := range 20 * concurrency {
					say(t, bus, fmt.Sprint("k", i), "bad")
				}
				time.Sleep(5 * time.Minute)
				for i := range 10 {
					say(t, bus, fmt.Sprint("h", i), "good")
					say(t, bus, "", "good")
				}
				time.Sleep(2 * time.Minute)
				mu.Lock()
				defer mu.Unlock()
				assert.Equal(t, 20, good, "%s, concurrency %d", name, concurrency)
				assert.Greater(t, calls, 100*concurrency, "the others go on, too")
				c.Close()
			})
		}
	}
}

func TestAttemptsAreNotExceededWhereverAMessageWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 5, Table: []time.Duration{10 * time.Millisecond}}))
		var attempts []int
		running(t, c, func(_ context.Context, m echo.Message[string]) error {
			if attempts = append(attempts, m.Attempt); len(attempts)%2 == 0 {
				return echo.RetryAfter(2*time.Second, errOops)
			}
			return errOops
		})
		say(t, bus, "", "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Equal(t, []int{1, 2, 3, 4, 5}, attempts)
		assert.EqualValues(t, 1, c.Stats().Dead)
	})
}

func TestAStopBeginsNoFurtherAttempt(t *testing.T) {
	for _, concurrency := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			bus := newBus(t)
			c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithConcurrency(concurrency), echo.WithRetry(echo.Retry{Table: []time.Duration{10 * time.Second}}))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var after atomic.Int32
			done := make(chan error, 1)
			go func() {
				done <- c.Run(ctx, func(context.Context, echo.Message[string]) error {
					if ctx.Err() != nil {
						after.Add(1)
					}
					time.Sleep(time.Second)
					return errOops
				})
			}()
			for i := range 30 {
				say(t, bus, fmt.Sprint("k", i), "bad")
			}
			time.Sleep(45*time.Second + 300*time.Millisecond)
			begin := time.Now()
			cancel()
			require.NoError(t, <-done)
			assert.Zero(t, after.Load())
			assert.LessOrEqual(t, time.Since(begin), time.Second)
		})
	}
}

// A message that waits keeps no more than itself.
func TestAMessageThatWaitsHoldsNoOthers(t *testing.T) {
	bus := newBus(t, echo.WithTransport(memstream.New(memstream.WithMaxMessages(4096))))
	c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Hour}}))
	var handled atomic.Int32
	running(t, c, func(_ context.Context, m echo.Message[string]) error {
		handled.Add(1)
		if m.Key == "bad" {
			return errOops
		}
		return nil
	})
	before := heap()
	payload := strings.Repeat("x", 1024)
	const n = 50_000
	for i := range n {
		key := ""
		if i%500 == 0 {
			key = "bad"
		}
		say(t, bus, key, payload)
	}
	require.Eventually(t, func() bool { return handled.Load() == n-n/500+1 }, 10*time.Second, time.Millisecond, "of one key the first is tried")
	assert.Less(t, heap()-before, int64(16<<20), "100 messages of 1 KiB wait")
}

// However often what waits is paused, it is kept once.
func TestPausesKeepNothingOfWhatWentBack(t *testing.T) {
	for _, concurrency := range []int{1, 3} {
		bus := newBus(t)
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithConcurrency(concurrency), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Hour}}))
		failed := make(chan struct{})
		running(t, c, func(context.Context, echo.Message[string]) error {
			close(failed)
			return errOops
		})
		say(t, bus, "k", "bad")
		<-failed
		for range 20 {
			say(t, bus, "k", strings.Repeat("x", 10<<10))
		}
		before := heap()
		for range 1500 {
			c.Pause()
			c.Resume()
			time.Sleep(300 * time.Microsecond) // they come again
		}
		assert.Less(t, heap()-before, int64(2<<20), "concurrency %d", concurrency)
	}
}

// What was tried again is forgotten, one fetch at a time.
func TestRetriesKeepNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t, echo.WithTransport(memstream.New(memstream.WithMaxMessages(512))))
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}}))
		running(t, c, func(_ context.Context, m echo.Message[string]) error {
			time.Sleep(30 * time.Millisecond)
			if m.Attempt == 1 {
				return errOops
			}
			return nil
		})
		round := func(n int) {
			for i := range n {
				say(t, bus, fmt.Sprint("k", i), "x")
			}
			time.Sleep(time.Hour)
		}
		round(100)
		before := heap()
		for range 50 {
			round(200)
		}
		assert.Less(t, heap()-before, int64(2<<20))
	})
}

func TestConcurrencyCostsMemoryInProportion(t *testing.T) {
	bus := newBus(t)
	c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithConcurrency(5000))
	before := heap()
	started := make(chan struct{})
	running(t, c, func(context.Context, echo.Message[string]) error {
		close(started)
		return nil
	})
	say(t, bus, "", "x")
	<-started
	var m runtime.MemStats
	cost := heap() - before
	runtime.ReadMemStats(&m)
	assert.Less(t, cost-int64(m.StackInuse), int64(16<<20))
}

func TestWhatIsHandledIsAcknowledgedSoonHoweverLongOthersTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memstream.New()
		bus := newBus(t, echo.WithTransport(mem))
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithConcurrency(4))
		handled := make(chan struct{})
		running(t, c, func(_ context.Context, m echo.Message[string]) error {
			if m.Value == "1" {
				time.Sleep(5200 * time.Millisecond)
				close(handled)
				return nil
			}
			time.Sleep(time.Minute)
			return nil
		})
		say(t, bus, "", "0", "1", "2", "3", "4", "5", "6", "7")
		<-handled
		time.Sleep(20 * time.Millisecond)
		i, err := mem.Inspect(t.Context(), "t")
		require.NoError(t, err)
		assert.EqualValues(t, 7, i.Group("g").Pending+i.Group("g").Lag)
		c.Close()
	})
}

type badError struct{ text string }

func (e *badError) Error() string { return e.text }
func (e *badError) Unwrap() error { panic("no") }

// An error that panics when it is looked at is an error all the same.
func TestAnErrorThatPanicsEndsNothing(t *testing.T) {
	bus := newBus(t)
	c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 1}))
	running(t, c, func(context.Context, echo.Message[string]) error {
		var e *badError
		return e
	})
	say(t, bus, "", "x")
	letters := subscribe(t, bus, echo.DeadLetters(texts), echo.WithGroup("look"))
	for m, err := range letters.Messages(t.Context()) {
		require.NoError(t, err)
		assert.Contains(t, m.Value.Error, "badError")
		break
	}
	responding(t, bus, func(context.Context, echo.Message[int]) (int, error) {
		var e *badError
		return 0, e
	})
	_, err := echo.Call(t.Context(), bus, squares, 1)
	assert.ErrorContains(t, err, "badError")
}

func TestALoopWhoseDeadLetterIsRefusedGivesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memstream.New(memstream.WithMaxMessages(1), memstream.WithFull(memstream.Reject), memstream.WithLease(10*time.Minute))
		defer mem.Close()
		bus := echo.New(echo.WithTransport(transport.KeepOpen(mem)))
		c := subscribe(t, bus, echo.NewTopic[int]("t"), echo.WithGroup("g"), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Second}}))
		_, err := mem.Send(t.Context(), "t.dead", []transport.Message{{ID: "x"}}) // it is full
		require.NoError(t, err)
		say(t, bus, "", "not a number")
		begin := time.Now()
		n := 0
		for _, err := range c.Messages(t.Context()) {
			require.Error(t, err)
			if n++; n == 5 {
				break
			}
		}
		assert.Equal(t, 4*time.Second, time.Since(begin).Round(time.Second))
		account, err := bus.Close(t.Context())
		require.NoError(t, err)
		assert.Zero(t, account.Abandoned)
	})
}

// A goroutine that the handler left has a handle to its attempt alone.
func TestAHandleOfAnEarlierAttemptSettlesNothing(t *testing.T) {
	bus := newBus(t)
	c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 5, Table: []time.Duration{time.Millisecond}}))
	stale := make(chan echo.Message[string], 1)
	running(t, c, func(ctx context.Context, m echo.Message[string]) error {
		if m.Attempt == 1 {
			stale <- m
		} else if m.Attempt == 3 {
			old := <-stale
			for range 10 {
				old.Nack(ctx, time.Hour)
				old.Ack(ctx)
			}
		}
		return errOops
	})
	say(t, bus, "", "x")
	require.Eventually(t, func() bool { return c.Stats().Dead == 1 }, 10*time.Second, time.Millisecond)
	assert.EqualValues(t, 5, c.Stats().Failed)
}

// A goroutine that the handler left extends the lease at any moment.
func TestAnExtensionBesideTheOutcomeStrandsNothing(t *testing.T) {
	const n = 600
	bus := newBus(t)
	numbers := echo.NewTopic[int]("n", echo.WithKeyFunc(func(i int) string { return fmt.Sprint(i % 2) }))
	c := subscribe(t, bus, numbers, echo.WithGroup("g"), echo.WithConcurrency(2), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Microsecond}, Retryable: func(error) bool {
		time.Sleep(50 * time.Microsecond)
		return true
	}}))
	var mu sync.Mutex
	last, handled := map[string]int{}, 0
	running(t, c, func(ctx context.Context, m echo.Message[int]) error {
		beating := make(chan struct{})
		go func() {
			for i := range 200 {
				m.Extend(context.Background(), time.Minute)
				if i == 0 {
					close(beating)
				}
			}
		}()
		<-beating
		mu.Lock()
		defer mu.Unlock()
		assert.LessOrEqual(t, m.Value, last[m.Key]+2, "key %s", m.Key)
		if m.Attempt < 3 {
			return errOops
		}
		assert.Equal(t, 3, m.Attempt)
		last[m.Key] = m.Value
		handled++
		return nil
	})
	for i := range n {
		require.NoError(t, echo.NewProducer(bus, numbers).Publish(t.Context(), i))
	}
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return handled == n
	}, 10*time.Second, time.Millisecond)
}

// A message whose attempts are used up is tried no more, though its dead letter
// is refused and the consumer paused.
func TestAPauseGrantsNoFurtherAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memstream.New(memstream.WithMaxMessages(1), memstream.WithFull(memstream.Reject))
		defer mem.Close()
		bus := newBus(t, echo.WithTransport(transport.KeepOpen(mem)))
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Second}}))
		_, err := mem.Send(t.Context(), "t.dead", []transport.Message{{ID: "x"}}) // it is full
		require.NoError(t, err)
		calls := 0
		running(t, c, func(context.Context, echo.Message[string]) error {
			calls++
			return errOops
		})
		say(t, bus, "k", "x")
		time.Sleep(10 * time.Second)
		for range 5 {
			c.Pause()
			time.Sleep(10 * time.Second)
			c.Resume()
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		assert.Equal(t, 3, calls)
	})
}

// Retryable that ends its goroutine does not say no.
func TestRetryableThatExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Second}, Retryable: func(error) bool {
			runtime.Goexit()
			return false
		}}))
		running(t, c, func(context.Context, echo.Message[string]) error { return errOops })
		say(t, bus, "k", "x")
		time.Sleep(time.Minute)
		assert.Equal(t, echo.ConsumerStats{Failed: 3, Dead: 1}, c.Stats())
	})
}

// Of a batch some leases were lost, and the acknowledgement of the others
// failed: they are still to be acknowledged.
func TestABatchThatIsAcknowledgedInPartIsNotDone(t *testing.T) {
	acks := 0
	bus := newBus(t, echo.WithTransport(&hooked{Transport: memstream.New(), ack: func(_ context.Context, rs []transport.Receipt) error {
		if acks++; acks == 1 {
			return errors.Join(&transport.LeaseError{Lost: rs[:1]}, errors.New("connection reset"))
		}
		return nil
	}}))
	c := subscribe(t, bus, texts, echo.WithGroup("g"))
	say(t, bus, "", "a", "b", "c")
	for batch, err := range c.Batches(t.Context(), 3, time.Second) {
		require.NoError(t, err)
		require.Len(t, batch, 3)
		require.ErrorContains(t, batch.Ack(t.Context()), "connection reset")
		require.ErrorIs(t, batch.Ack(t.Context()), echo.ErrLeaseLost, "of the first one")
		break
	}
	assert.Equal(t, 2, acks)
	assert.EqualValues(t, 2, c.Stats().Handled)
}

// failing is a transport whose first acknowledgements fail, each after a while.
func failing(n int32, slow time.Duration, opts ...memstream.Option) transport.Transport {
	var acks atomic.Int32
	return &hooked{Transport: memstream.New(opts...), ack: func(context.Context, []transport.Receipt) error {
		if acks.Add(1) > n {
			return nil
		}
		time.Sleep(slow)
		return errors.New("connection reset")
	}}
}

func TestAMessageIsGivenUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t, echo.WithTransport(failing(5, 0)))
		c := subscribe(t, bus, texts)
		running(t, c, func(context.Context, echo.Message[string]) error { return echo.Reject(errOops) })
		say(t, bus, "", "x")
		time.Sleep(time.Hour)
		assert.EqualValues(t, 1, c.Stats().GivenUp)
	})
}

func TestAMessageWhoseOwnAcknowledgementFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t, echo.WithTransport(failing(1, time.Second, memstream.WithLease(10*time.Minute))))
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Millisecond}}))
		again := make(chan time.Time, 1)
		begin := time.Now()
		running(t, c, func(_ context.Context, m echo.Message[string]) error {
			if m.Attempt == 1 {
				go m.Ack(context.Background())
				time.Sleep(100 * time.Millisecond)
				return errOops
			}
			again <- time.Now()
			return nil
		})
		say(t, bus, "", "x")
		assert.Less(t, (<-again).Sub(begin), 2*time.Second)
	})
}

func TestWhatWasAcknowledgedByHandIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(t)
		c := subscribe(t, bus, texts, echo.WithGroup("g"), echo.WithDedup(time.Hour))
		calls := 0
		running(t, c, func(ctx context.Context, m echo.Message[string]) error {
			calls++
			require.NoError(t, m.Ack(ctx))
			return errOops
		})
		for range 2 {
			require.NoError(t, echo.NewProducer(bus, texts).Publish(t.Context(), "x", echo.WithID("one")))
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		assert.Equal(t, 1, calls)
		assert.EqualValues(t, 1, c.Stats().Duplicates)
	})
}

// What was sent home for one group dies in no other.
func TestALetterSentHomeForAnotherGroupDoesNotDieInOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memstream.New(memstream.WithLease(time.Second))
		bus := newBus(t, echo.WithTransport(mem))
		a := subscribe(t, bus, texts, echo.WithGroup("a"))
		running(t, a, func(context.Context, echo.Message[string]) error { return echo.Reject(errOops) })
		b := subscribe(t, bus, texts, echo.WithGroup("b"), echo.WithRetry(echo.Retry{Attempts: 1}))
		held, err := mem.Subscribe(t.Context(), "t", transport.Options{Group: "b"})
		require.NoError(t, err)
		receive := func() transport.Message {
			msgs := make([]transport.Message, 1)
			_, err := held.Receive(t.Context(), msgs)
			require.NoError(t, err)
			return msgs[0]
		}
		say(t, bus, "", "x")
		m := receive()
		require.NoError(t, held.(transport.Acker).Ack(t.Context(), []transport.Receipt{m.Receipt()}))
		time.Sleep(time.Second)
		a.Close()
		done, err := echo.Redrive(t.Context(), bus, texts, nil, 0)
		require.NoError(t, err)
		require.Equal(t, 1, done.Sent)
		receive() // by a member of b whose process ends with it
		require.NoError(t, held.Close())
		running(t, b, func(context.Context, echo.Message[string]) error {
			t.Error("b handles it")
			return nil
		})
		time.Sleep(time.Minute)
		assert.Zero(t, b.Stats().Dead)
	})
}

func TestPausesInARowKeepTheOrderOfKeys(t *testing.T) {
	for _, concurrency := range []int{1, 2} {
		bus := newBus(t, echo.WithTransport(&hooked{Transport: memstream.New(), release: func(rs []transport.Receipt) {
			if len(rs) == 1 { // as that of one lane
				time.Sleep(2 * time.Millisecond)
			}
		}}))
		numbers := echo.NewTopic[int]("n")
		c := subscribe(t, bus, numbers, echo.WithGroup("g"), echo.WithConcurrency(concurrency))
		var mu sync.Mutex
		last := map[string]int{}
		running(t, c, func(_ context.Context, m echo.Message[int]) error {
			mu.Lock()
			defer mu.Unlock()
			assert.Equal(t, last[m.Key]+1, m.Value, "concurrency %d, key %s, attempt %d", concurrency, m.Key, m.Attempt)
			last[m.Key] = m.Value
			return nil
		})
		stop := time.Now().Add(time.Second)
		var pausing sync.WaitGroup
		pausing.Go(func() {
			for time.Now().Before(stop) {
				c.Pause()
				c.Resume()
				time.Sleep(100 * time.Microsecond)
			}
		})
		p := echo.NewProducer(bus, numbers)
		for i := 1; time.Now().Before(stop) && !t.Failed(); i++ {
			for k := range 4 {
				require.NoError(t, p.Publish(t.Context(), i, echo.WithKey(fmt.Sprint(k))))
			}
		}
		pausing.Wait()
	}
}
