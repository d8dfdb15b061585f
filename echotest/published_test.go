package echotest_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/memstream"
)

type order struct {
	ID    string
	Total float64
	Tags  []string
}

var orders = echo.NewTopic[order]("orders", echo.WithVersion(2), echo.WithKeyFunc(func(o order) string { return o.ID }))

func TestWhatWasPublishedIsThereAsItArrives(t *testing.T) {
	for name, opts := range map[string][]echotest.Option{
		"encoded":      nil,
		"by reference": {echotest.WithMemory(memstream.WithValues())},
	} {
		t.Run(name, func(t *testing.T) {
			bus := echotest.New(t, opts...)
			p := echo.NewProducer(bus.Bus, orders)
			want := order{"o-1", 12.5, []string{"new"}}
			require.NoError(t, p.Publish(t.Context(), want, echo.WithID("m-1"), echo.WithHeader("tenant", "a"), echo.WithTTL(time.Nanosecond)))
			require.NoError(t, p.Publish(t.Context(), order{ID: "o-2"}, echo.WithDelay(time.Hour)))
			require.NoError(t, p.Publish(t.Context(), order{ID: "o-3"}, echo.WithKey("k")))
			got := echotest.Published(bus, orders)
			require.Len(t, got, 3)
			assert.Equal(t, want, got[0].Value)
			assert.Equal(t, "m-1", got[0].ID)
			assert.Equal(t, "o-1", got[0].Key)
			assert.Equal(t, "orders", got[0].Topic)
			assert.Equal(t, map[string]string{"tenant": "a"}, got[0].Headers)
			assert.Equal(t, 1, got[0].Attempt)
			assert.WithinDuration(t, time.Now(), got[0].Time, time.Minute)
			assert.Equal(t, "o-2", got[1].Value.ID, "not due, and there")
			assert.Equal(t, "k", got[2].Key)
			if opts == nil {
				assert.Equal(t, 2, got[0].Version)
			}
			assert.NoError(t, got[0].Ack(t.Context()), "it is settled")
		})
	}
}

func TestPublishedDecodesByTheCodecsOfTopicAndBus(t *testing.T) {
	bus := echotest.New(t, echotest.WithBus(echo.WithCodec(echo.Text)))
	text, numbers := echo.NewTopic[string]("text"), echo.NewTopic[int]("numbers", echo.WithCodec(echo.JSON))
	publish(t, bus, text, "a", "b")
	publish(t, bus, numbers, 1, 2)
	echotest.Expect(bus, text, "a", "b")
	echotest.Expect(bus, numbers, 1, 2)
	assert.Empty(t, echotest.Published(bus, echo.NewTopic[string]("other")))
}

func TestValuesByReferenceNeedNoCodec(t *testing.T) {
	bus := echotest.New(t, echotest.WithMemory(memstream.WithValues()), echotest.WithBus(echo.WithCodec(echo.Text)))
	channels := echo.NewTopic[chan int]("channels")
	c := make(chan int)
	publish(t, bus, channels, c)
	echotest.Expect(bus, channels, c)
}

func TestMessagesOfSeveralPublishersAreInTheOrderOfTheTopic(t *testing.T) {
	bus := echotest.New(t)
	var mu sync.Mutex
	var arrived []int
	run(t, bus, second, func(_ context.Context, m echo.Message[int]) error {
		mu.Lock()
		defer mu.Unlock()
		arrived = append(arrived, m.Value)
		return nil
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 100 {
				publish(t, bus, second, i*1000+j)
			}
		})
	}
	wg.Wait()
	bus.WaitIdle(t.Context())
	assert.Equal(t, arrived, values(echotest.Published(bus, second)))
}

func TestWhatWasNotStoredIsNotPublished(t *testing.T) {
	bus := echotest.New(t, echotest.WithMemory(memstream.WithMaxMessages(2), memstream.WithFull(memstream.Reject)))
	once := echo.NewTopic[int]("once", echo.WithDedup(time.Hour))
	_, err := echo.Subscribe(t.Context(), bus.Bus, second, echo.WithGroup("g"))
	require.NoError(t, err)
	p := echo.NewProducer(bus.Bus, second)
	require.ErrorIs(t, p.PublishBatch(t.Context(), []int{1, 2, 3}), echo.ErrFull)
	echotest.Expect(bus, second, 1, 2)

	q := echo.NewProducer(bus.Bus, once)
	for i := range 2 {
		require.NoError(t, q.Publish(t.Context(), i, echo.WithIdempotencyKey("now")))
		require.NoError(t, q.Publish(t.Context(), 10+i, echo.WithIdempotencyKey("later"), echo.WithDelay(time.Minute)))
	}
	echotest.Expect(bus, once, 0, 10)
}

func TestDeadLettersSayWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t)
		run(t, bus, orders, func(_ context.Context, m echo.Message[order]) error {
			if m.Value.ID == "bad" {
				return errors.New("no such customer")
			}
			return nil
		}, echo.WithGroup("billing"), echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Second}}))
		publish(t, bus, orders, order{ID: "good"}, order{ID: "bad"})
		bus.WaitIdle(t.Context())
		dead := echotest.DeadLetters(bus, orders)
		require.Len(t, dead, 1)
		d := dead[0].Value
		assert.Equal(t, "bad", d.Value.ID)
		assert.Equal(t, echo.ReasonAttempts, d.Reason)
		assert.Equal(t, "no such customer", d.Error)
		assert.Equal(t, 3, d.Attempts)
		assert.Equal(t, "billing", d.Group)
		assert.Equal(t, echotest.Published(bus, orders)[1].ID, dead[0].ID)
	})
}

func TestExpectSaysWhatDiffers(t *testing.T) {
	r := try(func(t testing.TB) {
		bus := echotest.New(t)
		publish(t, bus, orders, order{ID: "o-1", Total: 1}, order{ID: "o-2"}, order{ID: "o-3", Tags: []string{}})
		echotest.Expect(bus, orders, order{ID: "o-1", Total: 1}, order{ID: "o-5"}, order{ID: "o-3"}, order{ID: "o-4"})
	})
	assert.True(t, r.Failed())
	assert.Equal(t, `echotest: topic orders: got 3 values, want 4
	value 1: got  {ID:o-2 Total:0 Tags:[]}
	value 1: want {ID:o-5 Total:0 Tags:[]}
	value 2: got  echotest_test.order{ID:"o-3", Total:0, Tags:[]string{}}
	value 2: want echotest_test.order{ID:"o-3", Total:0, Tags:[]string(nil)}
	value 3: got  nothing
	value 3: want {ID:o-4 Total:0 Tags:[]}`, r.text())
}

func TestExpectShowsTenDifferences(t *testing.T) {
	r := try(func(t testing.TB) {
		bus := echotest.New(t)
		publish(t, bus, second, make([]int, 12)...)
		echotest.Expect(bus, second)
	})
	assert.Contains(t, r.text(), "value 9: want nothing\n\tand 2 more")
	assert.NotContains(t, r.text(), "value 10")
}

func TestWhatCannotBeDecodedFailsTheTest(t *testing.T) {
	for name, check := range map[string]func(*echotest.Bus){
		"published": func(b *echotest.Bus) { echotest.Published(b, echo.NewTopic[int]("text")) },
		"expect":    func(b *echotest.Bus) { echotest.Expect(b, echo.NewTopic[int]("text"), 1) },
		"nil topic": func(b *echotest.Bus) { echotest.Expect[int](b, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r := try(func(t testing.TB) {
				bus := echotest.New(t)
				publish(t, bus, echo.NewTopic[string]("text"), "a")
				check(bus)
			})
			assert.True(t, r.Failed())
		})
	}
}

func TestACloseThatLeavesSomethingBehindFailsTheTest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blocked := make(chan struct{})
		r := try(func(t testing.TB) {
			bus := echotest.New(t, echotest.WithPatience(time.Second))
			run(t, bus, second, func(context.Context, echo.Message[int]) error { <-blocked; return nil }, echo.WithGroup("stuck"))
			publish(t, bus, second, 1)
			synctest.Wait()
		})
		assert.True(t, r.Failed())
		assert.Contains(t, r.text(), "1 handlers still running")
		assert.Contains(t, r.text(), "Abandoned:1")
		assert.Contains(t, r.text(), "topic second, stuck: a handler runs for 1s with message ")
		close(blocked)
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(func(t testing.TB) {
			bus := echotest.New(t)
			c, err := echo.Subscribe(context.Background(), bus.Bus, second)
			require.NoError(t, err)
			publish(t, bus, second, 1)
			for range c.Messages(context.Background()) {
				break // and nobody settles it
			}
		})
		assert.True(t, r.Failed())
		assert.Contains(t, r.text(), "Abandoned:1")
	})
	assert.False(t, try(func(t testing.TB) { echotest.New(t) }).Failed())
}

func TestWrongOptionsFailTheTest(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	for want, opts := range map[string][]echotest.Option{
		"the transport is nil":           {echotest.WithTransport(nil)},
		"WithMemory contradicts":         {echotest.WithTransport(mem), echotest.WithMemory(memstream.WithValues())},
		"WithPatience(0s)":               {echotest.WithPatience(0)},
		"WithMaxMessages(0)":             {echotest.WithMemory(memstream.WithMaxMessages(0))},
		"rate 1.5":                       {echotest.WithFaults(1, echotest.Faults{LoseAck: 1.5})},
		"MaxDelay -1ns is negative":      {echotest.WithFaults(1, echotest.Faults{MaxDelay: -1})},
		"cannot tell how its topics are": {echotest.WithTransport(blind{mem})},
	} {
		r := try(func(t testing.TB) { echotest.New(t, opts...) })
		assert.True(t, r.Failed(), want)
		assert.Contains(t, r.text(), want)
	}
}
