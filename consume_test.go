package echo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
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
	"github.com/echobus/echo/transport/transporttest"
)

func TestAHandlerThatFailsGetsItsMessageAgain(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":         func() error { return errors.New("oops") },
		"panic":         func() error { panic("oops") },
		"runtime error": func() error { var v any; return v.(error) },
		"Goexit":        func() error { runtime.Goexit(); return nil },
		"Goexit, then a panic": func() error {
			defer func() { panic("oops") }()
			runtime.Goexit()
			return nil
		},
	} {
		for _, keyed := range []bool{false, true} {
			for _, concurrency := range []int{1, 4} {
				t.Run(fmt.Sprintf("%s, keyed %v, concurrency %d", name, keyed, concurrency), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var log bytes.Buffer
						bus := echo.New(echo.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
						defer bus.Close(context.Background())
						var key []echo.TopicOption
						if keyed {
							key = append(key, echo.WithKeyFunc(func(i int) string { return fmt.Sprint(i % 3) }))
						}
						topic := echo.NewTopic[int]("t", key...)
						c := subscribe(t, bus, topic, echo.WithConcurrency(concurrency), echo.WithRetry(echo.Retry{Min: time.Second, Max: time.Minute}))
						ctx, cancel := context.WithCancel(t.Context())
						var mu sync.Mutex
						attempts := map[int]int{}
						ran := make(chan error)
						go func() {
							ran <- c.Run(ctx, func(_ context.Context, m echo.Message[int]) error {
								mu.Lock()
								attempts[m.Value]++
								bad := m.Value%5 == 0 && m.Attempt < 3
								if attempts[m.Value] != m.Attempt {
									t.Errorf("value %d: attempt %d came as number %d", m.Value, m.Attempt, attempts[m.Value])
								}
								mu.Unlock()
								if bad {
									return fail()
								}
								return nil
							})
						}()
						var all []int
						for i := range 20 {
							all = append(all, i)
						}
						publish(t, bus, topic, all...)
						time.Sleep(10 * time.Minute)
						mu.Lock()
						for i := range 20 {
							want := 1
							if i%5 == 0 {
								want = 3
							}
							assert.Equal(t, want, attempts[i], "attempts of %d", i)
						}
						mu.Unlock()
						assert.Contains(t, log.String(), "handler failed")
						if name != "error" {
							assert.Contains(t, log.String(), "consume_test.go", "the stack")
						}
						cancel()
						assert.NoError(t, <-ran)
					})
				})
			}
		}
	}
}

func TestRetriesWaitForTheBackoffAndHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		defer bus.Close(context.Background())
		topic := echo.NewTopic[string]("t")
		c := subscribe(t, bus, topic, echo.WithRetry(echo.Retry{Min: time.Minute, Max: 4 * time.Minute}))
		begin := time.Now()
		var failed []time.Duration
		var fine time.Duration
		go c.Run(t.Context(), func(_ context.Context, m echo.Message[string]) error {
			if m.Value == "fine" {
				fine = time.Since(begin)
				return nil
			}
			failed = append(failed, time.Since(begin))
			return errors.New("oops")
		})
		publish(t, bus, topic, "bad", "fine")
		time.Sleep(30 * time.Minute)
		bus.Close(context.Background())
		assert.Less(t, fine, time.Second)
		require.Greater(t, len(failed), 8)
		for i := range failed[1:] {
			limit := min(time.Minute<<i, 4*time.Minute)
			wait := failed[i+1] - failed[i]
			assert.LessOrEqual(t, wait, limit+time.Second, "wait %d", i+1)
			assert.Positive(t, wait)
		}
	})
}

func TestOrderPerKeySurvivesConcurrencyAndRetries(t *testing.T) {
	const keys, each = 20, 100
	bus := newBus(t)
	topic := echo.NewTopic[int]("t", echo.WithKeyFunc(func(i int) string { return fmt.Sprint("k", i%keys) }))
	c := subscribe(t, bus, topic, echo.WithConcurrency(16), echo.WithRetry(echo.Retry{Min: time.Millisecond, Max: time.Millisecond}))
	var mu sync.Mutex
	done := map[string][]int{}
	var atOnce, most atomic.Int32
	all := make(chan struct{})
	n := 0
	running(t, c, func(_ context.Context, m echo.Message[int]) error {
		now := atOnce.Add(1)
		defer atOnce.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		if runtime.Gosched(); m.Value%7 == 0 && m.Attempt < 3 {
			return errors.New("again")
		}
		mu.Lock()
		defer mu.Unlock()
		done[m.Key] = append(done[m.Key], m.Value)
		if n++; n == keys*each {
			close(all)
		}
		return nil
	})
	for i := range keys * each {
		publish(t, bus, topic, i)
	}
	wait(t, all)
	for key, vs := range done {
		assert.True(t, slices.IsSorted(vs), "key %s: %v", key, vs)
		assert.Len(t, vs, each)
	}
	assert.LessOrEqual(t, most.Load(), int32(16), "handlers at once")
}

func wait(t testing.TB, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		require.Fail(t, "waited 20 s")
	}
}

func TestALongHandlerKeepsItsLeaseAndSoDoesWhatWaitsBehindIt(t *testing.T) {
	for _, concurrency := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			bus := echo.New()
			defer bus.Close(context.Background())
			topic := echo.NewTopic[int]("t")
			opts := []echo.SubscribeOption{echo.WithGroup("g"), echo.WithLease(3 * time.Second), echo.WithConcurrency(concurrency)}
			var mu sync.Mutex
			handled := map[int]int{}
			for range 2 {
				c := subscribe(t, bus, topic, opts...)
				go c.Run(t.Context(), func(ctx context.Context, m echo.Message[int]) error {
					mu.Lock()
					handled[m.Value]++
					mu.Unlock()
					if m.Value%100 == 99 {
						time.Sleep(time.Minute)
					}
					return ctx.Err()
				})
			}
			for i := range 1000 {
				publish(t, bus, topic, i)
			}
			time.Sleep(15 * time.Minute)
			bus.Close(context.Background())
			assert.Len(t, handled, 1000)
			for i, n := range handled {
				assert.Equal(t, 1, n, "value %d", i)
			}
		})
	}
}

// stolen is a transport whose leases can be ended.
type stolen struct {
	transport.Transport
	steal atomic.Bool
}

func (s *stolen) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	sub, err := s.Transport.Subscribe(ctx, topic, o)
	return stolenSub{sub, s}, err
}

type stolenSub struct {
	transport.Subscription
	t *stolen
}

func (s stolenSub) Unwrap() transport.Subscription { return s.Subscription }
func (s stolenSub) Lease() time.Duration           { return s.Subscription.(transport.Extender).Lease() }
func (s stolenSub) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	if s.t.steal.Load() {
		s.Subscription.(transport.Nacker).Nack(ctx, rs, time.Hour)
		return &transport.LeaseError{Lost: rs}
	}
	return s.Subscription.(transport.Extender).Extend(ctx, rs, d)
}

func TestALostLeaseEndsTheHandlersContext(t *testing.T) {
	for _, concurrency := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			tr := &stolen{Transport: memstream.New()}
			bus := echo.New(echo.WithTransport(tr))
			defer bus.Close(context.Background())
			topic := echo.NewTopic[string]("t")
			c := subscribe(t, bus, topic, echo.WithLease(30*time.Second), echo.WithConcurrency(concurrency))
			var causes []error
			var settle error
			go c.Run(t.Context(), func(ctx context.Context, m echo.Message[string]) error {
				if m.Value == "short" {
					causes = append(causes, context.Cause(ctx))
					return nil
				}
				tr.steal.Store(true)
				<-ctx.Done()
				tr.steal.Store(false)
				causes = append(causes, context.Cause(ctx))
				settle = m.Ack(ctx)
				return nil
			})
			publish(t, bus, topic, "long")
			time.Sleep(time.Minute)
			publish(t, bus, topic, "short")
			time.Sleep(time.Minute)
			bus.Close(context.Background())
			require.Len(t, causes, 2)
			assert.ErrorIs(t, causes[0], echo.ErrLeaseLost)
			assert.ErrorIs(t, settle, echo.ErrLeaseLost)
			assert.NoError(t, causes[1], "the next message has a context of its own")
		})
	}
}

func TestMessagesAreTheCallersToSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		defer bus.Close(context.Background())
		topic := echo.NewTopic[int]("t")
		c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithLease(time.Minute))
		peer := subscribe(t, bus, topic, echo.WithGroup("g"))
		ctx := t.Context()
		publish(t, bus, topic, 1, 2, 3, 4)
		msgs := take(t, c, 4)

		require.NoError(t, msgs[0].Ack(ctx))
		require.NoError(t, msgs[0].Ack(ctx), "settling twice is a no-op")
		require.NoError(t, msgs[0].Nack(ctx, 0), "whatever the second settlement is")
		require.NoError(t, msgs[0].Extend(ctx, 0))

		begin := time.Now()
		require.NoError(t, msgs[1].Nack(ctx, 5*time.Second))
		again := take(t, peer, 1)[0]
		assert.Equal(t, 2, again.Value)
		assert.Equal(t, 2, again.Attempt)
		assert.Equal(t, 5*time.Second, time.Since(begin))
		require.NoError(t, again.Ack(ctx))

		require.NoError(t, msgs[2].Extend(ctx, time.Hour))
		time.Sleep(2 * time.Minute)
		require.NoError(t, msgs[2].Ack(ctx), "an extended lease")

		assert.ErrorIs(t, msgs[3].Ack(ctx), echo.ErrLeaseLost)
		assert.ErrorIs(t, msgs[3].Ack(ctx), echo.ErrLeaseLost, "and it stays lost")
		assert.ErrorIs(t, msgs[3].Extend(ctx, 0), echo.ErrLeaseLost)
		assert.Equal(t, 4, take(t, peer, 1)[0].Value)

		assert.ErrorContains(t, msgs[3].Nack(ctx, -1), "negative")
		assert.ErrorContains(t, msgs[3].Extend(ctx, -1), "negative")
		assert.ErrorContains(t, echo.Message[int]{}.Ack(ctx), "was not received")
	})
}

func TestABrokenLoopGivesBackWhatItHadFetched(t *testing.T) {
	bus := newBus(t)
	topic := echo.NewTopic[int]("t")
	c, peer := subscribe(t, bus, topic, echo.WithGroup("g")), subscribe(t, bus, topic, echo.WithGroup("g"))
	var all []int
	for i := range 500 {
		all = append(all, i)
	}
	publish(t, bus, topic, all...)
	for _, m := range take(t, c, 300) {
		require.NoError(t, m.Ack(t.Context()))
	}
	rest := take(t, peer, 200)
	assert.Equal(t, all[300:], values(rest))
	for _, m := range rest {
		assert.Equal(t, 1, m.Attempt, "what was never started did not fail")
	}
	publish(t, bus, topic, 500)
	assert.Equal(t, 500, take(t, c, 1)[0].Value, "the consumer stays open")
}

func TestALoopEndsQuietlyWithItsContextAndWithClose(t *testing.T) {
	bus := newBus(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	c := subscribe(t, bus, orders)
	for range c.Messages(ctx) {
		t.Error("nothing was published")
	}
	time.AfterFunc(10*time.Millisecond, func() { c.Close() })
	for range c.Batches(t.Context(), 5, time.Second) {
		t.Error("nothing was published")
	}
	for range c.Messages(t.Context()) {
		t.Error("the consumer is closed")
	}
	assert.NoError(t, c.Run(t.Context(), func(context.Context, echo.Message[order]) error { return nil }))
	assert.NoError(t, c.Close(), "twice")
}

func TestAConsumerHasOneUserAtATime(t *testing.T) {
	bus := newBus(t)
	c := subscribe(t, bus, orders)
	publish(t, bus, orders, anOrder)
	for range c.Messages(t.Context()) {
		assert.ErrorContains(t, c.Run(t.Context(), func(context.Context, echo.Message[order]) error { return nil }), "in use")
		break
	}
}

func TestBatchesComeFullOrInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		defer bus.Close(context.Background())
		topic := echo.NewTopic[int]("t")
		c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithLease(10*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		begin := time.Now()
		go func() {
			for i := range 25 {
				publish(t, bus, topic, i)
			}
			for i := range 5 {
				time.Sleep(25 * time.Second)
				publish(t, bus, topic, 25+i)
			}
		}()
		var sizes []int
		var all []int
		for batch, err := range c.Batches(ctx, 10, time.Minute) {
			require.NoError(t, err)
			sizes = append(sizes, len(batch))
			all = append(all, values(batch)...)
			failed := false
			for _, m := range batch {
				if m.Value == 7 && m.Attempt == 1 {
					failed = true
					require.NoError(t, m.Nack(ctx, 0))
				}
			}
			require.NoError(t, batch.Ack(ctx))
			require.NoError(t, batch.Ack(ctx), "twice")
			if failed {
				all = slices.DeleteFunc(all, func(i int) bool { return i == 7 })
			}
			if len(all) == 30 {
				cancel()
			}
		}
		slices.Sort(all)
		for i := range 30 {
			assert.Equal(t, i, all[i])
		}
		assert.Equal(t, []int{10, 10, 8, 3}, sizes)
		assert.Less(t, time.Since(begin), 5*time.Minute)
	})
}

func TestBatchesRefuseWhatCannotBe(t *testing.T) {
	c := subscribe(t, newBus(t), orders, echo.WithPrefetch(10, 0))
	for want, seq := range map[string]func(func(echo.Batch[order], error) bool){
		"a batch of 0 messages":                          c.Batches(t.Context(), 0, 0),
		"batch of 11 messages is more than WithPrefetch": c.Batches(t.Context(), 11, 0),
		"the wait -1ns is negative":                      c.Batches(t.Context(), 1, -1),
	} {
		n := 0
		for _, err := range seq {
			n++
			assert.ErrorContains(t, err, want)
		}
		assert.Equal(t, 1, n)
	}
}

func TestUndecodableMessagesAreSetAside(t *testing.T) {
	bus := newBus(t)
	foreign := echo.NewTopic[string]("t", echo.WithCodec(echo.Text))
	topic := echo.NewTopic[order]("t")
	bad := echo.NewTopic[any]("t")
	send := func() {
		publish(t, bus, foreign, "not an order")
		publish[any](t, bus, bad, "not an order either")
		publish(t, bus, topic, anOrder)
	}

	t.Run("by Run", func(t *testing.T) {
		var seen []error
		c := subscribe(t, bus, topic, echo.WithGroup("run"), echo.WithErrorHook(func(_ context.Context, err error) error {
			seen = append(seen, err)
			return nil
		}))
		send()
		require.NoError(t, c.Run(t.Context(), func(_ context.Context, m echo.Message[order]) error {
			assert.Equal(t, anOrder, m.Value)
			return c.Close()
		}))
		require.Len(t, seen, 2)
		e, ok := errors.AsType[*echo.DecodeError](seen[0])
		require.True(t, ok)
		assert.Equal(t, "t", e.Topic)
		assert.Equal(t, "text/plain", e.Type)
		assert.Equal(t, "not an order", string(e.Data))
		assert.NotEmpty(t, e.ID)
	})
	t.Run("by Run, with a log by default", func(t *testing.T) {
		var log bytes.Buffer
		bus := newBus(t, echo.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		c := subscribe(t, bus, topic)
		publish[any](t, bus, bad, "not an order")
		publish(t, bus, topic, anOrder)
		require.NoError(t, c.Run(t.Context(), func(context.Context, echo.Message[order]) error { return c.Close() }))
		assert.Contains(t, log.String(), "message given up")
		assert.NotContains(t, log.String(), "not an order", "payloads are not logged")
	})
	t.Run("or retried, if the hook says so", func(t *testing.T) {
		n := 0
		c := subscribe(t, bus, topic, echo.WithGroup("retry"), echo.FromNewest(), echo.WithRetry(echo.Retry{Table: []time.Duration{0}}),
			echo.WithErrorHook(func(context.Context, error) error {
				if n++; n < 3 {
					return errors.New("perhaps later")
				}
				return nil
			}))
		publish[any](t, bus, bad, "not an order")
		time.AfterFunc(50*time.Millisecond, func() { publish(t, bus, topic, anOrder) })
		require.NoError(t, c.Run(t.Context(), func(context.Context, echo.Message[order]) error { return c.Close() }))
		assert.Equal(t, 3, n)
	})
	t.Run("by Messages and Batches", func(t *testing.T) {
		for name, use := range map[string]func(*echo.Consumer[order]) (errs, fine int){
			"messages": func(c *echo.Consumer[order]) (errs, fine int) {
				for m, err := range c.Messages(t.Context()) {
					if err != nil {
						assert.NotEmpty(t, m.ID)
						errs++
						continue
					}
					require.NoError(t, m.Ack(t.Context()))
					if fine++; fine == 2 {
						break
					}
				}
				return errs, fine
			},
			"batches": func(c *echo.Consumer[order]) (errs, fine int) {
				for batch, err := range c.Batches(t.Context(), 10, 10*time.Millisecond) {
					if err != nil {
						errs++
						continue
					}
					require.NoError(t, batch.Ack(t.Context()))
					if fine += len(batch); fine == 2 {
						break
					}
				}
				return errs, fine
			},
		} {
			c := subscribe(t, bus, topic, echo.WithGroup(name), echo.FromNewest())
			send()
			send()
			errs, fine := use(c)
			assert.Equal(t, 4, errs, name)
			assert.Equal(t, 2, fine, name)
			c.Close()
			c = subscribe(t, bus, topic, echo.WithGroup(name))
			publish(t, bus, topic, order{ID: "next"})
			assert.Equal(t, "next", take(t, c, 1)[0].Value.ID, "set aside for good")
			c.Close()
		}
	})
}

func TestDecodeErrorsSayWhatIsWrong(t *testing.T) {
	mem := memstream.New()
	bus := newBus(t, echo.WithTransport(mem), echo.WithLimits(echo.Limits{Payload: 1000}))
	topic := echo.NewTopic[map[string]any]("t")
	c := subscribe(t, bus, topic)
	for _, row := range []struct {
		m    transport.Message
		want string
	}{
		{transport.Message{ID: "1", Type: "application/json", Data: []byte(`{"a":`)}, "unexpected end of JSON input"},
		{transport.Message{ID: "1", Type: "application/json", Data: []byte(`{} {}`)}, "invalid character"},
		{transport.Message{ID: "1", Type: "application/json", Data: []byte(`[]`)}, "cannot unmarshal array"},
		{transport.Message{ID: "1", Type: "application/json", Data: bytes.Repeat([]byte(`{"a":`), 65)}, "deeper than 64"},
		{transport.Message{ID: "1", Type: "application/json", Data: make([]byte, 1001)}, "payload of 1001 bytes, the limit is 1000"},
		{transport.Message{ID: "1", Type: "application/x-unknown"}, `no codec for content type "application/x-unknown"`},
		{transport.Message{ID: "1", Type: "json; version=x"}, "version is not a number"},
		{transport.Message{ID: "1", Type: ""}, "content type"},
		{transport.Message{ID: "1", Type: "text/plain", Data: []byte("x")}, "codec Text carries strings"},
		{transport.Message{ID: "", Type: "application/json", Data: []byte(`{}`)}, "message ID is empty"},
		{transport.Message{ID: "1", Type: "application/json", Data: []byte(`{}`), Header: map[string]string{"a b": ""}}, "not a token"},
	} {
		if row.want == "version is not a number" {
			row.m.Type = "application/json; version=x"
		}
		_, err := mem.Send(t.Context(), "t", []transport.Message{row.m})
		require.NoError(t, err)
		for m, err := range c.Messages(t.Context()) {
			assert.ErrorContains(t, err, row.want)
			assert.Nil(t, m.Value)
			break
		}
	}
}

func TestACodecThatPanicsLosesOneMessageOnly(t *testing.T) {
	bus := newBus(t)
	topic := echo.NewTopic[fussy]("t")
	var seen error
	c := subscribe(t, bus, topic, echo.WithErrorHook(func(_ context.Context, err error) error {
		seen = err
		return nil
	}))
	publish(t, bus, topic, "bad", "good")
	require.NoError(t, c.Run(t.Context(), func(_ context.Context, m echo.Message[fussy]) error {
		assert.Equal(t, fussy("good"), m.Value)
		return c.Close()
	}))
	assert.ErrorContains(t, seen, "do not like bad")
}

type fussy string

func (f fussy) MarshalText() ([]byte, error) { return []byte(f), nil }
func (f *fussy) UnmarshalText(b []byte) error {
	if *f = fussy(b); *f == "bad" {
		panic("do not like bad")
	}
	return nil
}

func TestTwoCodecsShareATopicDuringAChange(t *testing.T) {
	bus := newBus(t)
	before := echo.NewTopic[string]("t")
	after := echo.NewTopic[string]("t", echo.WithCodec(echo.Text), echo.WithVersion(2))
	one, two := subscribe(t, bus, before), subscribe(t, bus, after)
	publish(t, bus, before, "json")
	publish(t, bus, after, "text")
	for _, c := range []*echo.Consumer[string]{one, two} {
		msgs := take(t, c, 2)
		assert.Equal(t, []string{"json", "text"}, values(msgs))
		assert.Equal(t, 0, msgs[0].Version)
		assert.Equal(t, 2, msgs[1].Version)
	}
}

func TestCodecsOfOneType(t *testing.T) {
	bus := newBus(t)
	blobs := echo.NewTopic[[]byte]("blobs", echo.WithCodec(echo.Bytes))
	c := subscribe(t, bus, blobs)
	data := []byte{0, 255, 1}
	publish(t, bus, blobs, data)
	data[0] = 9
	assert.Equal(t, []byte{0, 255, 1}, take(t, c, 1)[0].Value)

	_, err := echo.Subscribe(t.Context(), bus, echo.NewTopic[int]("t", echo.WithCodec(echo.Bytes)))
	assert.ErrorContains(t, err, "codec Bytes carries byte slices, not int")
	err = echo.NewProducer(bus, echo.NewTopic[int]("t", echo.WithCodec(echo.Text))).Publish(t.Context(), 1)
	assert.ErrorContains(t, err, "codec Text carries strings, not int")
	err = echo.NewProducer(bus, echo.NewTopic[string]("t", echo.WithCodec(echo.Text))).Publish(t.Context(), "\xff")
	assert.ErrorContains(t, err, "is not UTF-8")
}

func TestMiddlewareSurroundsHandlers(t *testing.T) {
	var calls []string
	trace := func(name string) func(echo.Handler[any]) echo.Handler[any] {
		return func(next echo.Handler[any]) echo.Handler[any] {
			return func(ctx context.Context, m echo.Message[any]) error {
				calls = append(calls, name)
				m.Headers = map[string]string{"seen": m.Headers["seen"] + name}
				return next(ctx, m)
			}
		}
	}
	bus := newBus(t, echo.WithMiddleware(trace("a"), trace("b")))
	c := subscribe(t, bus, orders, echo.WithMiddleware(trace("c")))
	publish(t, bus, orders, anOrder)
	require.NoError(t, c.Run(t.Context(), func(_ context.Context, m echo.Message[order]) error {
		assert.Equal(t, anOrder, m.Value)
		assert.Equal(t, "abc", m.Headers["seen"])
		return c.Close()
	}))
	assert.Equal(t, []string{"a", "b", "c"}, calls)
}

func TestOneProgramServesSeveralTypes(t *testing.T) {
	bus := newBus(t)
	worlds, marcos := echo.NewTopic[struct{ Name string }]("worlds"), echo.NewTopic[int]("marcos")
	publish(t, bus, worlds, struct{ Name string }{"earth"})
	publish(t, bus, marcos, 1, 2)
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int32
	count := func() {
		if n.Add(1) == 3 {
			cancel()
		}
	}
	require.NoError(t, bus.Run(ctx,
		echo.Handle(worlds, func(_ context.Context, m echo.Message[struct{ Name string }]) error {
			assert.Equal(t, "earth", m.Value.Name)
			count()
			return nil
		}, echo.WithGroup("g")),
		echo.Handle(marcos, func(context.Context, echo.Message[int]) error { count(); return nil }, echo.WithGroup("g")),
	))
	assert.Equal(t, int32(3), n.Load())

	assert.ErrorContains(t, bus.Run(t.Context()), "no routes")
	assert.ErrorContains(t, bus.Run(t.Context(), echo.Handle[int](marcos, nil)), "handle marcos: the handler is nil")
	assert.ErrorContains(t, bus.Run(t.Context(), echo.Handle(echo.NewTopic[int]("a b"), func(context.Context, echo.Message[int]) error { return nil })), `"a b"`)
}

func TestOneRouteThatFailsStopsTheOthers(t *testing.T) {
	tr, cut := transporttest.Cut(memstream.New())
	bus := newBus(t, echo.WithTransport(tr))
	time.AfterFunc(20*time.Millisecond, cut)
	h := func(context.Context, echo.Message[order]) error { return nil }
	err := bus.Run(t.Context(), echo.Handle(orders, h), echo.Handle(orders, h, echo.WithConcurrency(3)))
	assert.ErrorIs(t, err, transporttest.ErrCut)
	assert.ErrorContains(t, err, "echo: run orders: ")
}

func TestLossesAreTold(t *testing.T) {
	bus := newBus(t, echo.WithTransport(memstream.New(memstream.WithMaxMessages(10), memstream.WithFull(memstream.DropOldest))))
	topic := echo.NewTopic[int]("t")
	loop, runner := subscribe(t, bus, topic), subscribe(t, bus, topic, echo.WithErrorHook(func(_ context.Context, err error) error {
		return fmt.Errorf("giving up: %w", err)
	}))
	for i := range 35 {
		publish(t, bus, topic, i)
	}
	var lost *echo.LostError
	var got []int
	for m, err := range loop.Messages(t.Context()) {
		if err != nil {
			require.ErrorAs(t, err, &lost)
			continue
		}
		if got = append(got, m.Value); len(got) == 10 {
			break
		}
	}
	require.NotNil(t, lost)
	assert.Equal(t, uint64(25), lost.Count)
	assert.Equal(t, "t", lost.Topic)
	assert.Equal(t, 25, got[0])

	err := runner.Run(t.Context(), func(context.Context, echo.Message[int]) error { return nil })
	assert.ErrorContains(t, err, "giving up")
	assert.ErrorAs(t, err, &lost)
}

func TestConsumersBearFaultyTransports(t *testing.T) {
	for name, fault := range map[string]func(transport.Transport) transport.Transport{
		"one at a time": transporttest.OneAtATime,
		"lost acks":     func(tr transport.Transport) transport.Transport { return transporttest.DropAcks(tr, 3) },
		"duplicates":    func(tr transport.Transport) transport.Transport { return transporttest.Duplicate(tr, 5) },
		"delays":        func(tr transport.Transport) transport.Transport { return transporttest.Delay(tr, 100*time.Microsecond) },
		"reordering":    func(tr transport.Transport) transport.Transport { return transporttest.Reorder(tr, 1) },
	} {
		for _, concurrency := range []int{1, 4} {
			t.Run(fmt.Sprint(name, concurrency), func(t *testing.T) {
				bus := newBus(t, echo.WithTransport(fault(memstream.New())))
				topic := echo.NewTopic[int]("t")
				c := subscribe(t, bus, topic, echo.WithGroup("g"), echo.WithConcurrency(concurrency), echo.WithLease(100*time.Millisecond))
				var mu sync.Mutex
				seen := map[int]bool{}
				all := make(chan struct{})
				running(t, c, func(_ context.Context, m echo.Message[int]) error {
					mu.Lock()
					defer mu.Unlock()
					if seen[m.Value] = true; len(seen) == 300 {
						select {
						case <-all:
						default:
							close(all)
						}
					}
					return nil
				})
				p := echo.NewProducer(bus, topic)
				for i := range 300 {
					require.NoError(t, p.Publish(t.Context(), i))
				}
				wait(t, all)
			})
		}
	}
}

// awkward is an error that panics when it is asked what it is.
type awkward struct{}

func (awkward) Error() string { return "awkward" }
func (awkward) Is(error) bool { panic("do not ask") }

// An error that cannot be asked concerns its message alone.
func TestErrorThatPanicsWhenItIsAsked(t *testing.T) {
	bus := echo.New()
	defer bus.Close(t.Context())
	topic := echo.NewTopic[int]("numbers")
	c, err := echo.Subscribe(t.Context(), bus, topic, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Attempts: 1}))
	require.NoError(t, err)
	require.NoError(t, echo.NewProducer(bus, topic).PublishBatch(t.Context(), []int{1, 2}))
	require.NoError(t, c.Run(t.Context(), func(_ context.Context, m echo.Message[int]) error {
		if m.Value == 1 {
			return awkward{}
		}
		return c.Close()
	}))
	assert.EqualValues(t, 1, c.Stats().Dead)
}
