package echo_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
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

func TestCloseLetsHandlersFinishAndAccountsForEveryMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := shared(t)
		topic, results := echo.NewTopic[int]("t"), echo.NewTopic[int]("results")
		c := subscribe(t, one, topic, echo.WithGroup("g"))
		seen := subscribe(t, two, results)
		var ctxErr error
		go c.Run(t.Context(), func(ctx context.Context, m echo.Message[int]) error {
			if m.Value < 3 {
				return nil // quick ones, so that some are fetched ahead
			}
			time.Sleep(time.Minute)
			ctxErr = ctx.Err()
			return echo.NewProducer(one, results).Publish(ctx, m.Value)
		})
		publish(t, one, topic, 0, 1, 2, 3, 4, 5, 6, 7)
		time.Sleep(time.Second)

		begin := time.Now()
		acc, err := one.Close(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 59*time.Second, time.Since(begin))
		assert.NoError(t, ctxErr, "the handler's context lasts")
		assert.Equal(t, 1, acc.Completed)
		assert.Equal(t, 1, acc.Acknowledged)
		assert.Zero(t, acc.Abandoned)
		assert.Equal(t, 3, take(t, seen, 1)[0].Value, "a handler may publish during the close")

		rest := take(t, subscribe(t, two, topic, echo.WithGroup("g")), 4)
		assert.Equal(t, []int{4, 5, 6, 7}, values(rest))
		for _, m := range rest {
			assert.Equal(t, 1, m.Attempt, "they were never started")
		}
		again, err := one.Close(t.Context())
		assert.Equal(t, acc, again)
		assert.NoError(t, err)
		_, err = echo.Subscribe(t.Context(), one, topic)
		assert.ErrorIs(t, err, echo.ErrClosed)
	})
}

func TestCloseGivesUpWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		topic := echo.NewTopic[int]("t")
		c := subscribe(t, bus, topic, echo.WithConcurrency(3))
		stuck := make(chan struct{})
		var cause error
		ran := make(chan error)
		go func() {
			ran <- c.Run(t.Context(), func(ctx context.Context, m echo.Message[int]) error {
				<-ctx.Done()
				cause = context.Cause(ctx)
				<-stuck
				return nil
			})
		}()
		publish(t, bus, topic, 1)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		acc, err := bus.Close(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "1 handlers still running")
		assert.Equal(t, 1, acc.Abandoned)
		close(stuck)
		assert.NoError(t, <-ran)
		assert.ErrorIs(t, cause, echo.ErrClosed)
	})
}

func TestRunDrainsWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := shared(t)
		topic := echo.NewTopic[int]("t")
		for _, drain := range []time.Duration{time.Hour, time.Second} {
			c := subscribe(t, one, topic, echo.WithGroup("g"), echo.WithDrainTimeout(drain))
			ctx, cancel := context.WithCancel(t.Context())
			var ended error
			ran := make(chan error)
			go func() {
				ran <- c.Run(ctx, func(ctx context.Context, m echo.Message[int]) error {
					select {
					case <-time.After(time.Minute):
					case <-ctx.Done():
						ended = ctx.Err()
					}
					return ended
				})
			}()
			publish(t, two, topic, 1)
			time.Sleep(time.Second)
			begin := time.Now()
			cancel()
			require.NoError(t, <-ran)
			if drain == time.Hour {
				assert.NoError(t, ended)
				assert.Equal(t, 59*time.Second, time.Since(begin))
			} else {
				assert.ErrorIs(t, ended, context.Canceled)
				assert.Equal(t, drain, time.Since(begin))
			}
		}
		assert.Equal(t, 2, take(t, subscribe(t, two, topic, echo.WithGroup("g")), 1)[0].Attempt, "of the one that was cut short")
	})
}

func TestAHandlerMayCloseItsConsumer(t *testing.T) {
	bus := newBus(t)
	for _, n := range []int{1, 4} {
		c := subscribe(t, bus, orders, echo.WithConcurrency(n))
		publish(t, bus, orders, anOrder, anOrder, anOrder)
		require.NoError(t, c.Run(t.Context(), func(context.Context, echo.Message[order]) error { return c.Close() }))
	}
}

func TestWrongOptionsAreErrorsAtConstruction(t *testing.T) {
	bus := newBus(t)
	for want, opts := range map[string][]echo.SubscribeOption{
		"WithConcurrency(0): at least one":                                      {echo.WithConcurrency(0)},
		"WithConcurrency(8) needs more messages than WithPrefetch(4)":           {echo.WithConcurrency(8), echo.WithPrefetch(4, 0)},
		"WithPrefetch(0, 0)":                                                    {echo.WithPrefetch(0, 0)},
		"FromNewest contradicts FromOldest":                                     {echo.FromOldest(), echo.FromNewest()},
		"WithLease(-1s): a lease must be positive":                              {echo.WithLease(-time.Second)},
		"WithRetry: Retry.Min 2s and Max 1s: want 0 ≤ Min ≤ Max":                {echo.WithRetry(echo.Retry{Min: 2 * time.Second, Max: time.Second})},
		"WithRetry: Retry.Min -1s and Max 1s":                                   {echo.WithRetry(echo.Retry{Min: -time.Second, Max: time.Second})},
		"Retry.Attempts -1 is negative":                                         {echo.WithRetry(echo.Retry{Attempts: -1})},
		"Retry.Table takes the place":                                           {echo.WithRetry(echo.Retry{Table: []time.Duration{1}, Max: 2})},
		"has a negative wait":                                                   {echo.WithRetry(echo.Retry{Table: []time.Duration{-1}})},
		"Retry.Timeout -1s is negative":                                         {echo.WithRetry(echo.Retry{Timeout: -time.Second})},
		"WithRetry gives an attempt 1m0s, and WithDrainTimeout(1s)":             {echo.WithRetry(echo.Retry{Timeout: time.Minute}), echo.WithDrainTimeout(time.Second)},
		"Retry.Attempts 1 leaves nothing":                                       {echo.WithRetry(echo.Retry{Attempts: 1, Min: 1})},
		"Retry.Table has 2 waits, and 2 attempts":                               {echo.WithRetry(echo.Retry{Attempts: 2, Table: []time.Duration{1, 2}})},
		"WithDrainTimeout(-1s)":                                                 {echo.WithDrainTimeout(-time.Second)},
		`group name "a b" may not have " "`:                                     {echo.WithGroup("a b")},
		"group name is empty":                                                   {echo.WithGroup("")},
		"FromID: the ID is empty":                                               {echo.FromID("")},
		"message not found: topic orders keeps no message with ID \"x\" to sta": {echo.FromID("x")},
		"WithErrorHook: the function is nil":                                    {echo.WithErrorHook(nil)},
		"WithMiddleware: function 1 of 1 is nil":                                {echo.WithMiddleware(nil)},
	} {
		_, err := echo.Subscribe(t.Context(), bus, orders, opts...)
		assert.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, "echo: subscribe orders: ")
	}
	for want, opt := range map[string]echo.BusOption{
		"WithTransport: the transport is nil":                 echo.WithTransport(nil),
		"WithCodec: the codec is nil":                         echo.WithCodec(nil),
		"WithLogger: the logger is nil":                       echo.WithLogger(nil),
		"WithPublishHook: function 1 of 1 is nil":             echo.WithPublishHook(nil),
		"WithLimits: Key is negative: -1":                     echo.WithLimits(echo.Limits{Key: -1}),
		"HeaderValue 4096 exceeds HeaderTotal 100":            echo.WithLimits(echo.Limits{HeaderTotal: 100}),
		"memstream: WithLease(0s): a lease must be positive":  echo.WithTransport(memstream.New(memstream.WithLease(0))),
		"WithMaxMessages(-5): a topic keeps at least one":     echo.WithTransport(memstream.New(memstream.WithMaxMessages(-5))),
		"WithMaxAge: the age must be positive":                echo.WithTransport(memstream.New(memstream.WithMaxAge(0))),
		"WithFull(Full(9)): no such policy":                   echo.WithTransport(memstream.New(memstream.WithFull(9))),
		"WithMaxBytes(0): a topic keeps at least one byte":    echo.WithTransport(memstream.New(memstream.WithMaxBytes(0))),
		"WithMiddleware: function 1 of 1 is nil":              echo.WithMiddleware(nil),
		"content type \"\" of echo_test.namelessCodec is not": echo.WithCodec(namelessCodec{}),
	} {
		bus := newBus(t, opt)
		_, err := echo.Subscribe(t.Context(), bus, orders)
		assert.ErrorContains(t, err, want)
		assert.ErrorContains(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder), want)
	}
	twice := newBus(t, echo.WithTransport(memstream.New()), echo.WithTransport(memstream.New()))
	assert.ErrorContains(t, echo.NewProducer(twice, orders).Publish(t.Context(), anOrder), "WithTransport is given twice")
	assert.ErrorContains(t, subscribe(t, bus, orders).Run(t.Context(), nil), "echo: run orders: the handler is nil")
}

type namelessCodec struct{ echo.Codec }

func (namelessCodec) ContentType() string { return "" }

func TestWrongTopicsSurfaceAtFirstUse(t *testing.T) {
	bus := newBus(t)
	for want, topic := range map[string]*echo.Topic[order]{
		`topic name "a b" may not have " " at byte 1`:            echo.NewTopic[order]("a b"),
		`topic name is empty`:                                    echo.NewTopic[order](""),
		`has 201 bytes, at most 200 are allowed`:                 echo.NewTopic[order](strings.Repeat("a", 201)),
		`carries echo_test.order, but WithKeyFunc got a func(in`: echo.NewTopic[order]("t", echo.WithKeyFunc(func(int) string { return "" })),
		`WithKeyFunc: the function is nil`:                       echo.NewTopic[order]("t", echo.WithKeyFunc[order](nil)),
		`WithVersion(0): versions begin at 1`:                    echo.NewTopic[order]("t", echo.WithVersion(0)),
		`WithCodec: the codec is nil`:                            echo.NewTopic[order]("t", echo.WithCodec(nil)),
		`topic is nil`:                                           nil,
	} {
		err := echo.NewProducer(bus, topic).Publish(t.Context(), anOrder)
		assert.ErrorContains(t, err, want)
		assert.ErrorIs(t, err, echo.ErrNotPublished)
		_, err = echo.Subscribe(t.Context(), bus, topic)
		assert.ErrorContains(t, err, want)
	}
	assert.ErrorContains(t, echo.NewProducer(nil, orders).Publish(t.Context(), anOrder), "bus is nil")
	_, err := echo.Subscribe(t.Context(), nil, orders)
	assert.ErrorContains(t, err, "bus is nil")
}

func TestATransportThatCannotSettleIsRefused(t *testing.T) {
	bus := newBus(t, echo.WithTransport(bare{memstream.New()}))
	_, err := echo.Subscribe(t.Context(), bus, orders)
	assert.ErrorIs(t, err, errors.ErrUnsupported)
}

// bare is a transport without capabilities.
type bare struct{ *memstream.Transport }

type bareSub struct{ transport.Subscription }

func (b bare) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	s, err := b.Transport.Subscribe(ctx, topic, o)
	return bareSub{s}, err
}

func TestValuesTravelByReference(t *testing.T) {
	bus := valueBus(t)
	topic := echo.NewTopic[*order]("t")
	c := subscribe(t, bus, topic)
	o := &order{ID: "o-1"}
	publish(t, bus, topic, o)
	assert.Same(t, o, take(t, c, 1)[0].Value)

	publish(t, bus, echo.NewTopic[string]("t"), "not an order")
	for _, err := range c.Messages(t.Context()) {
		assert.ErrorContains(t, err, "value carried by reference is a *string, want **echo_test.order")
		break
	}
}

func TestValueModeAllocatesAtMostOncePerMessage(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const n = 200_000
	bus := valueBus(t)
	var got atomic.Int64
	running(t, subscribe(t, bus, orders), func(context.Context, echo.Message[order]) error {
		got.Add(1)
		return nil
	})
	ctx, p := context.Background(), echo.NewProducer(bus, orders)
	burst := func(n int64) {
		for range n {
			p.Publish(ctx, anOrder)
		}
		for start := time.Now(); got.Load() < n && time.Since(start) < 20*time.Second; {
			time.Sleep(time.Millisecond)
		}
		got.Add(-n)
	}
	burst(n) // until the log is as large as it gets
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	burst(n)
	runtime.ReadMemStats(&after)
	perMessage := float64(after.Mallocs-before.Mallocs) / n
	assert.LessOrEqual(t, perMessage, 1.0, "allocations per message published and delivered")
	t.Logf("%.3f allocations per message published and delivered", perMessage)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func TestAMillionMessagesStayWithinTheTopicsBound(t *testing.T) {
	n := 1_000_000
	if raceEnabled {
		n /= 10
	}
	bus := newBus(t, echo.WithTransport(memstream.New(memstream.WithMaxMessages(10_000))))
	topic := echo.NewTopic[[]byte]("t", echo.WithCodec(echo.Bytes))
	var got atomic.Int64
	running(t, subscribe(t, bus, topic), func(context.Context, echo.Message[[]byte]) error {
		got.Add(1)
		return nil
	})
	before, most := heap(), int64(0)
	p, data := echo.NewProducer(bus, topic), make([]byte, 1<<10)
	for i := range n {
		if err := p.Publish(t.Context(), data); err != nil {
			t.Fatal(err)
		}
		if i%(n/10) == n/20 {
			most = max(most, heap()-before)
		}
	}
	for start := time.Now(); got.Load() < int64(n) && time.Since(start) < time.Minute; {
		time.Sleep(time.Millisecond)
	}
	assert.Equal(t, int64(n), got.Load())
	assert.LessOrEqual(t, most, int64(64<<20), "bytes over where the heap began")
	t.Logf("%.1f MiB over where the heap began", float64(most)/(1<<20))
}

func TestTenThousandIdleTopicsAreCheap(t *testing.T) {
	const n = 10_000
	bus := newBus(t)
	before, goroutines := heap(), runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, n)
	for i := range n {
		c := subscribe(t, bus, echo.NewTopic[order](fmt.Sprint("topic-", i)))
		go func() { ran <- c.Run(ctx, func(context.Context, echo.Message[order]) error { return nil }) }()
	}
	time.Sleep(100 * time.Millisecond) // so that they wait, most of them
	var m runtime.MemStats
	cost := heap() - before
	runtime.ReadMemStats(&m)
	assert.LessOrEqual(t, runtime.NumGoroutine(), goroutines+n, "goroutines")
	if !raceEnabled { // the stacks, 4 KiB each, are the goroutines' of those who subscribe
		assert.LessOrEqual(t, cost-int64(m.StackInuse), int64(64<<20), "bytes of heap")
	}
	t.Logf("%d bytes each, stacks included", cost/n)
	cancel()
	for range n {
		require.NoError(t, <-ran)
	}
}

func TestCloseEndsSoonAfterItsContextThoughTheTransportHangs(t *testing.T) {
	bus := echo.New(echo.WithTransport(&hooked{Transport: memstream.New(), ack: func(ctx context.Context, _ []transport.Receipt) error {
		<-ctx.Done()
		return ctx.Err()
	}}))
	topic := echo.NewTopic[int]("t")
	c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithConcurrency(4))
	publish(t, bus, topic, 0, 1, 2, 3, 4, 5, 6, 7) // one is handled, three are, and four wait
	busy := make(chan struct{}, 10)
	running := make(chan error, 1)
	go func() {
		running <- c.Run(context.Background(), func(ctx context.Context, m echo.Message[int]) error {
			if m.Value > 0 {
				busy <- struct{}{}
				<-ctx.Done()
			}
			return nil
		})
	}()
	for range 3 {
		<-busy
	}
	time.Sleep(30 * time.Millisecond) // the lane of the first hangs in its acknowledgement
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		bus.Close(ctx)
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		require.Fail(t, "Close did not return")
	}
	require.NoError(t, <-running)
}

func TestCloseWithAContextThatHasEndedAcknowledgesWhatWasHandled(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	topic := echo.NewTopic[int]("t")
	for range 20 {
		bus := echo.New(echo.WithTransport(transport.KeepOpen(mem)))
		c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithConcurrency(4))
		publish(t, bus, topic, 1, 2, 3, 4)
		handled := make(chan int, 10)
		running := make(chan error, 1)
		go func() {
			running <- c.Run(context.Background(), func(_ context.Context, m echo.Message[int]) error {
				handled <- m.Attempt
				return nil
			})
		}()
		for range 4 {
			assert.Equal(t, 1, <-handled, "what an earlier bus handled does not come again")
		}
		require.Eventually(t, func() bool { return c.Stats().Handled == 4 }, 5*time.Second, time.Microsecond)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		bus.Close(ctx)
		<-running
	}
}

func TestASubscriptionThatOpensWhileTheBusClosesIsClosed(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	var closed atomic.Int32
	bus := echo.New(echo.WithTransport(&hooked{
		Transport: transport.KeepOpen(memstream.New()),
		subscribed: func() {
			close(begun)
			<-goOn
		},
		closed: func() { closed.Add(1) },
	}))
	failed := make(chan error, 1)
	go func() {
		_, err := echo.Subscribe(context.Background(), bus, echo.NewTopic[int]("t"))
		failed <- err
	}()
	<-begun
	_, err := bus.Close(t.Context())
	require.NoError(t, err)
	close(goOn)
	require.ErrorIs(t, <-failed, echo.ErrClosed)
	require.EqualValues(t, 1, closed.Load())
}

// stuck is a transport that takes one message and then waits for its end.
type stuck struct {
	transport.Transport
	sends atomic.Int32
	gone  chan struct{}
}

func (s *stuck) Unwrap() transport.Transport { return s.Transport }

func (s *stuck) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if s.sends.Add(1) == 1 {
		time.Sleep(50 * time.Millisecond) // so that others queue up
		return len(msgs), nil
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-s.gone:
		return 0, transport.ErrClosed
	}
}

func (s *stuck) Close() error {
	close(s.gone)
	return s.Transport.Close()
}

func TestCloseEndsThoughPublishingHangs(t *testing.T) {
	s := &stuck{Transport: memstream.New(), gone: make(chan struct{})}
	bus := echo.New(echo.WithTransport(s))
	p := echo.NewProducer(bus, echo.NewTopic[int]("t"))
	published := make(chan error, 3)
	for range 3 {
		go func() { published <- p.Publish(context.Background(), 1) }()
		time.Sleep(10 * time.Millisecond)
	}
	require.NoError(t, <-published)
	require.Eventually(t, func() bool { return s.sends.Load() == 2 }, 5*time.Second, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	begin := time.Now()
	bus.Close(ctx)
	assert.Less(t, time.Since(begin), 5*time.Second)
	for range 2 {
		require.Error(t, <-published)
	}
}

func TestACloseDuringAnotherEndsWithItsContext(t *testing.T) {
	bus := echo.New()
	topic := echo.NewTopic[int]("t")
	c := subscribe(t, bus, topic, echo.WithGroup("g"))
	handling, closing := make(chan struct{}), make(chan struct{})
	second := make(chan error, 1)
	running := make(chan error, 1)
	go func() {
		running <- c.Run(context.Background(), func(context.Context, echo.Message[int]) error {
			close(handling)
			<-closing
			time.Sleep(10 * time.Millisecond) // the first one has begun
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_, err := bus.Close(ctx)
			second <- err
			return nil
		})
	}()
	publish(t, bus, topic, 1)
	<-handling
	close(closing)
	account, err := bus.Close(context.Background())
	require.NoError(t, err)
	require.ErrorIs(t, <-second, context.DeadlineExceeded)
	require.NoError(t, <-running)
	again, err := bus.Close(t.Context())
	require.NoError(t, err)
	require.Equal(t, account, again)
}

func TestAnIdleConsumerIsNoHandlerStillRunning(t *testing.T) {
	for range 20 {
		bus := echo.New()
		c := subscribe(t, bus, echo.NewTopic[int]("t"), echo.WithGroup("g"))
		running := make(chan error, 1)
		go func() {
			running <- c.Run(context.Background(), func(context.Context, echo.Message[int]) error { return nil })
		}()
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		account, err := bus.Close(ctx)
		require.NoError(t, err)
		require.Zero(t, account)
		require.NoError(t, <-running)
	}
}

func TestCloseIsTheLimitAlsoOfAConsumerThatWasStoppedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		topic := echo.NewTopic[int]("t")
		c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithDrainTimeout(time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		finished := make(chan error, 1)
		go c.Run(ctx, func(ctx context.Context, m echo.Message[int]) error {
			select {
			case <-time.After(time.Minute):
				finished <- nil
			case <-ctx.Done():
				finished <- context.Cause(ctx)
			}
			return nil
		})
		publish(t, bus, topic, 1)
		synctest.Wait()
		cancel()
		synctest.Wait()
		_, err := bus.Close(context.Background())
		require.NoError(t, err)
		require.NoError(t, <-finished)
	})
}
