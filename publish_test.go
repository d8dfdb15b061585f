package echo_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
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

func TestMessageArrivesWhole(t *testing.T) {
	bus := newBus(t)
	topic := echo.NewTopic[order]("orders", echo.WithVersion(3), echo.WithKeyFunc(func(o order) string { return o.Customer }))
	c := subscribe(t, bus, topic)
	p := echo.NewProducer(bus, topic)
	ctx := t.Context()
	before := time.Now().Add(-time.Millisecond)
	require.NoError(t, p.Publish(ctx, anOrder))
	require.NoError(t, p.Publish(ctx, anOrder, echo.WithKey("k"), echo.WithID("id-2"), echo.WithHeader("tenant", "blue"), echo.WithHeader("a", "")))

	msgs := take(t, c, 2)
	first, second := msgs[0], msgs[1]
	assert.Equal(t, anOrder, first.Value)
	assert.Equal(t, "orders", first.Topic)
	assert.Equal(t, "alice", first.Key)
	assert.Equal(t, 3, first.Version)
	assert.Equal(t, 1, first.Attempt)
	assert.Nil(t, first.Headers)
	assert.WithinRange(t, first.Time, before, time.Now().Add(time.Millisecond))
	assert.Equal(t, time.UTC, first.Time.Location())
	assert.Equal(t, "k", second.Key)
	assert.Equal(t, "id-2", second.ID)
	assert.Equal(t, map[string]string{"tenant": "blue", "a": ""}, second.Headers)
}

func TestHeadersAreEachReceiversOwn(t *testing.T) {
	bus := newBus(t)
	one, two := subscribe(t, bus, orders), subscribe(t, bus, orders)
	require.NoError(t, echo.NewProducer(bus, orders).Publish(t.Context(), anOrder, echo.WithHeader("a", "b")))
	take(t, one, 1)[0].Headers["a"] = "changed"
	assert.Equal(t, "b", take(t, two, 1)[0].Headers["a"])
}

func TestIDsAreUUIDs7(t *testing.T) {
	bus := newBus(t)
	c := subscribe(t, bus, orders)
	p := echo.NewProducer(bus, orders)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 250 {
				assert.NoError(t, p.Publish(context.Background(), anOrder))
			}
		})
	}
	wg.Wait()
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for _, m := range take(t, c, 1000) {
		require.Regexp(t, form, m.ID)
		require.False(t, seen[m.ID], "ID %s came twice", m.ID)
		seen[m.ID] = true
		var milli int64
		fmt.Sscanf(strings.ReplaceAll(m.ID[:13], "-", ""), "%x", &milli)
		require.Equal(t, m.Time.UnixMilli(), milli, "the time in the ID")
	}
}

func TestIDsOfOneProducerAscendFromMillisecondToMillisecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New()
		defer bus.Close(context.Background())
		c := subscribe(t, bus, orders)
		p := echo.NewProducer(bus, orders)
		for range 50 {
			for range 3 {
				require.NoError(t, p.Publish(t.Context(), anOrder))
			}
			time.Sleep(time.Millisecond)
		}
		var ids []string
		for _, m := range take(t, c, 150) {
			ids = append(ids, m.ID[:18])
		}
		assert.True(t, slices.IsSorted(ids))
	})
}

func TestLimitsAreNamedWhenExceeded(t *testing.T) {
	bus := newBus(t, echo.WithLimits(echo.Limits{Payload: 100, Key: 10, Headers: 2, HeaderName: 5, HeaderValue: 20, HeaderTotal: 30}))
	topic := echo.NewTopic[string]("t")
	c := subscribe(t, bus, topic)
	p := echo.NewProducer(bus, topic)
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, row := range []struct {
		what  string
		value string
		opts  []echo.PublishOption
		want  string // "" when it is allowed
	}{
		{"payload at the limit", long(98), nil, ""},
		{"payload over the limit", long(99), nil, "payload of 101 bytes, the limit is 100"},
		{"key at the limit", "", []echo.PublishOption{echo.WithKey(long(10))}, ""},
		{"key over the limit", "", []echo.PublishOption{echo.WithKey(long(11))}, "key of 11 bytes, the limit is 10"},
		{"headers at the limit", "", []echo.PublishOption{echo.WithHeader("a", long(20)), echo.WithHeader("b", long(8))}, ""},
		{"too many headers", "", []echo.PublishOption{echo.WithHeader("a", ""), echo.WithHeader("b", ""), echo.WithHeader("c", "")}, "3 headers, the limit is 2"},
		{"header name over the limit", "", []echo.PublishOption{echo.WithHeader("abcdef", "")}, "header name of 6 bytes, the limit is 5"},
		{"header value over the limit", "", []echo.PublishOption{echo.WithHeader("a", long(21))}, "header a of 21 bytes, the limit is 20"},
		{"headers over the limit together", "", []echo.PublishOption{echo.WithHeader("a", long(20)), echo.WithHeader("b", long(9))}, "headers of 31 bytes, the limit is 30"},
		{"ID over the limit", "", []echo.PublishOption{echo.WithID(long(129))}, "message ID of 129 bytes, the limit is 128"},
	} {
		t.Run(row.what, func(t *testing.T) {
			err := p.Publish(t.Context(), row.value, row.opts...)
			if row.want == "" {
				require.NoError(t, err)
				require.NoError(t, take(t, c, 1)[0].Ack(t.Context()))
				return
			}
			assert.ErrorIs(t, err, echo.ErrTooLarge)
			assert.ErrorIs(t, err, echo.ErrNotPublished)
			assert.ErrorContains(t, err, row.want)
			assert.ErrorContains(t, err, "echo: publish t: ")
		})
	}
}

func TestWrongOptionsOfPublishAreRefused(t *testing.T) {
	p := echo.NewProducer(newBus(t), orders)
	for want, opt := range map[string]echo.PublishOption{
		`header name "a b" is not a token`:                  echo.WithHeader("a b", ""),
		`header name "" is not a token`:                     echo.WithHeader("", ""),
		`header a: value "x\ny" is not UTF-8 without contr`: echo.WithHeader("a", "x\ny"),
		`header a: value "\xff" is not UTF-8`:               echo.WithHeader("a", "\xff"),
		`the prefix "echo-" is reserved`:                    echo.WithHeader("echo-x", ""),
		`message ID is empty`:                               echo.WithID(""),
		`message ID "a\x00" is not UTF-8 without control`:   echo.WithID("a\x00"),
		`key "\xff" is not UTF-8`:                           echo.WithKey("\xff"),
	} {
		err := p.Publish(t.Context(), anOrder, opt)
		assert.ErrorIs(t, err, echo.ErrNotPublished)
		assert.ErrorContains(t, err, want)
	}
	err := p.PublishBatch(t.Context(), []order{anOrder, anOrder}, echo.WithID("x"))
	assert.ErrorContains(t, err, "WithID gives one ID, PublishBatch has 2 values")
}

func TestPublishHasThreeOutcomes(t *testing.T) {
	refusal := fmt.Errorf("%w: no room at the inn", echo.ErrNotPublished)
	lost := errors.New("connection reset")
	for _, row := range []struct {
		err, outcome, other error
	}{
		{refusal, echo.ErrNotPublished, echo.ErrPublishUnknown},
		{lost, echo.ErrPublishUnknown, echo.ErrNotPublished},
	} {
		bus := newBus(t, echo.WithTransport(transporttest.FailAfter(memstream.New(), 3, row.err)))
		p := echo.NewProducer(bus, orders)
		require.NoError(t, p.Publish(t.Context(), anOrder))

		err := p.PublishBatch(t.Context(), []order{anOrder, anOrder, anOrder, anOrder})
		e, ok := errors.AsType[*echo.PublishError](err)
		require.True(t, ok, "got a %T", err)
		assert.Equal(t, 2, e.Accepted)
		assert.Equal(t, 4, e.Total)
		assert.ErrorContains(t, err, "2 of 4 accepted")

		err = p.Publish(t.Context(), anOrder)
		assert.ErrorIs(t, err, row.outcome)
		assert.NotErrorIs(t, err, row.other)
		assert.ErrorIs(t, err, row.err)
	}
}

func TestNothingOfABatchIsPublishedWhenAValueCannotBeEncoded(t *testing.T) {
	bus := newBus(t)
	topic := echo.NewTopic[any]("t")
	c := subscribe(t, bus, topic)
	p := echo.NewProducer(bus, topic)
	err := p.PublishBatch(t.Context(), []any{1, 2, make(chan int)})
	assert.ErrorIs(t, err, echo.ErrNotPublished)
	assert.ErrorContains(t, err, "value 2: encode: json: unsupported type: chan int")
	require.NoError(t, p.Publish(t.Context(), "after"))
	assert.Equal(t, "after", take(t, c, 1)[0].Value)
	assert.NoError(t, p.PublishBatch(t.Context(), nil), "an empty batch")
}

func TestPublishHonoursItsContext(t *testing.T) {
	for name, tr := range map[string]transport.Transport{
		"immediate":    memstream.New(),
		"group commit": transporttest.Delay(memstream.New(), time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			p := echo.NewProducer(newBus(t, echo.WithTransport(tr)), orders)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := p.Publish(ctx, anOrder)
			assert.ErrorIs(t, err, context.Canceled)
			assert.ErrorIs(t, err, echo.ErrNotPublished)
		})
	}
}

// slowSends counts the sends of a transport that takes a while for each.
type slowSends struct {
	transport.Transport
	mu    sync.Mutex
	sends []int
}

func (s *slowSends) Unwrap() transport.Transport { return s.Transport }
func (s *slowSends) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	s.mu.Lock()
	s.sends = append(s.sends, len(msgs))
	s.mu.Unlock()
	return s.Transport.Send(ctx, topic, msgs)
}

func TestConcurrentPublishersShareASend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowSends{Transport: memstream.New()}
		bus := echo.New(echo.WithTransport(slow))
		defer bus.Close(context.Background())
		c := subscribe(t, bus, orders)
		p := echo.NewProducer(bus, orders)
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() { assert.NoError(t, p.Publish(t.Context(), anOrder)) })
		}
		wg.Wait()
		assert.Len(t, take(t, c, 500), 500)
		assert.LessOrEqual(t, len(slow.sends), 3, "sends of %v messages", slow.sends)

		begin := time.Now()
		require.NoError(t, p.Publish(t.Context(), anOrder))
		assert.Equal(t, time.Millisecond, time.Since(begin), "alone nobody waits for company")
	})
}

func TestAPublisherMayLeaveTheQueueAndTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowSends{Transport: memstream.New()}
		bus := echo.New(echo.WithTransport(slow))
		defer bus.Close(context.Background())
		p := echo.NewProducer(bus, orders)
		var wg sync.WaitGroup
		publish := func(limit time.Duration, check func(error)) {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				check(p.Publish(ctx, anOrder))
			})
			synctest.Wait()
		}
		publish(time.Second, func(err error) { assert.NoError(t, err) }) // alone, sends
		publish(time.Second, func(err error) { assert.NoError(t, err) }) // in the next batch
		publish(500*time.Microsecond, func(err error) {                  // leaves the queue
			assert.ErrorIs(t, err, echo.ErrNotPublished)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		publish(1500*time.Microsecond, func(err error) { // leaves the batch while it is sent
			assert.ErrorIs(t, err, echo.ErrPublishUnknown)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		wg.Wait()
		c := subscribe(t, bus, orders, echo.FromOldest())
		take(t, c, 3) // the one that left the queue was not sent
	})
}

// One publisher's message that is too large is no other's concern.
func TestARefusedMessageDoesNotFailItsBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echo.New(echo.WithTransport(&slowSends{Transport: memstream.New(memstream.WithMaxBytes(1000))}))
		defer bus.Close(context.Background())
		topic := echo.NewTopic[string]("t")
		p := echo.NewProducer(bus, topic)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if i%5 == 4 {
					assert.ErrorIs(t, p.Publish(t.Context(), strings.Repeat("x", 2000)), echo.ErrTooLarge)
				} else {
					assert.NoError(t, p.Publish(t.Context(), "small"))
				}
			})
		}
		wg.Wait()
		take(t, subscribe(t, bus, topic, echo.FromOldest()), 16)
	})
}

func TestPublishHooksSeeEveryPublish(t *testing.T) {
	var calls []string
	hook := func(name string) func(echo.SendFunc) echo.SendFunc {
		return func(next echo.SendFunc) echo.SendFunc {
			return func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
				for i := range msgs {
					if msgs[i].Header == nil {
						msgs[i].Header = map[string]string{}
					}
					msgs[i].Header["trace"] += name
				}
				n, err := next(ctx, topic, msgs)
				calls = append(calls, fmt.Sprint(name, " ", topic, " ", len(msgs), " ", n, " ", err))
				return n, err
			}
		}
	}
	bus := newBus(t, echo.WithPublishHook(hook("a"), hook("b")))
	c := subscribe(t, bus, orders)
	publish(t, bus, orders, anOrder, anOrder)
	assert.Equal(t, "ab", take(t, c, 2)[1].Headers["trace"])
	assert.Equal(t, []string{"b orders 2 2 <nil>", "a orders 2 2 <nil>"}, calls)
}

func TestPublishAfterClose(t *testing.T) {
	bus := echo.New()
	p := echo.NewProducer(bus, orders)
	_, err := bus.Close(t.Context())
	require.NoError(t, err)
	for _, err := range []error{p.Publish(t.Context(), anOrder), p.PublishBatch(t.Context(), []order{anOrder})} {
		assert.ErrorIs(t, err, echo.ErrClosed)
		assert.ErrorIs(t, err, echo.ErrNotPublished)
	}
}
