package echotest_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

var (
	first  = echo.NewTopic[int]("first", echo.WithKeyFunc(func(i int) string { return fmt.Sprint(i % 3) }))
	second = echo.NewTopic[int]("second")
	third  = echo.NewTopic[int]("third")
)

// inAndOutOfBubbles runs a test in fake time and in real time.
func inAndOutOfBubbles(t *testing.T, test func(t *testing.T)) {
	t.Run("in a bubble", func(t *testing.T) { synctest.Test(t, test) })
	t.Run("in real time", test)
}

// cascade handles first into second and that into third, each in two groups or
// broadcasts, and returns how many of third were handled. Every fifth message
// fails at its first attempt, every seventh at all of them.
func cascade(t *testing.T, bus *echotest.Bus, concurrency int) *atomic.Int64 {
	retry := echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Millisecond}})
	again := echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}})
	n := echo.WithConcurrency(concurrency)
	pass := func(to *echo.Topic[int]) echo.Handler[int] {
		p := echo.NewProducer(bus.Bus, to)
		return func(ctx context.Context, m echo.Message[int]) error {
			switch {
			case m.Value%5 == 0 && m.Attempt == 1, m.Value%7 == 0:
				return errors.New("oops")
			}
			return p.Publish(ctx, m.Value)
		}
	}
	var handled atomic.Int64
	last := func(context.Context, echo.Message[int]) error { handled.Add(1); return nil }
	run(t, bus, first, pass(second), echo.WithGroup("a"), retry, n)
	run(t, bus, first, pass(second), echo.WithGroup("b"), retry, n)
	run(t, bus, second, pass(third), echo.WithGroup("a"), retry, n)
	run(t, bus, second, pass(third), again, n)
	run(t, bus, third, last, n)
	run(t, bus, third, last, echo.WithGroup("a"), n)
	return &handled
}

func TestIdleIsWhenCascadesAreDone(t *testing.T) {
	for _, concurrency := range []int{1, 8} {
		t.Run(fmt.Sprint("concurrency ", concurrency), func(t *testing.T) {
			inAndOutOfBubbles(t, func(t *testing.T) {
				bus := echotest.New(t)
				handled := cascade(t, bus, concurrency)
				for i := range 200 {
					before := handled.Load()
					publish(t, bus, first, 1, 2, 3, 4, 5, 6, 7)
					bus.WaitIdle(t.Context())
					require.EqualValues(t, 6*2*2*2, handled.Load()-before, "at iteration %d", i)
				}
				assert.Len(t, echotest.DeadLetters(bus, first), 200*2)
			})
		})
	}
}

func TestIdleIsNotWhileAHandlerIsBlocked(t *testing.T) {
	for name, opt := range map[string][]echo.SubscribeOption{"broadcast": nil, "group": {echo.WithGroup("g")}} {
		t.Run(name, func(t *testing.T) {
			inAndOutOfBubbles(t, func(t *testing.T) {
				bus := echotest.New(t)
				begun, blocked := make(chan struct{}), make(chan struct{})
				var done atomic.Bool
				run(t, bus, second, func(ctx context.Context, m echo.Message[int]) error {
					require.NoError(t, m.Ack(ctx)) // even so
					close(begun)
					<-blocked
					done.Store(true)
					return nil
				}, opt...)
				publish(t, bus, second, 1)
				<-begun
				time.AfterFunc(50*time.Millisecond, func() { close(blocked) })
				bus.WaitIdle(t.Context())
				assert.True(t, done.Load())
			})
		})
	}
}

// What keeps a bus from being idle, and how the failure tells of it.
func TestWaitIdleFailsWithWhatIsUnderWay(t *testing.T) {
	cases := []struct {
		name  string
		begin func(t testing.TB, bus *echotest.Bus)
		want  string
	}{
		{"a handler runs", func(t testing.TB, bus *echotest.Bus) {
			run(t, bus, second, func(ctx context.Context, m echo.Message[int]) error { <-ctx.Done(); return nil }, echo.WithGroup("slow"), echo.WithDrainTimeout(time.Second))
			publish(t, bus, second, 1)
		}, "topic second, slow: a handler runs for 10s with message "},
		{"a group has no members", func(t testing.TB, bus *echotest.Bus) {
			c, err := echo.Subscribe(context.Background(), bus.Bus, second, echo.WithGroup("gone"))
			require.NoError(t, err)
			require.NoError(t, c.Close())
			publish(t, bus, second, 1, 2)
		}, "topic second, group gone: lag 2, pending 0, members 0"},
		{"a message waits for its next attempt", func(t testing.TB, bus *echotest.Bus) {
			run(t, bus, first, func(context.Context, echo.Message[int]) error { return errors.New("oops") },
				echo.WithGroup("failing"), echo.WithRetry(echo.Retry{Table: []time.Duration{time.Hour}}))
			publish(t, bus, first, 1)
		}, "topic first, group failing: lag 0, pending 1 (the oldest published 10s ago), members 1"},
		{"a message was given back for later", func(t testing.TB, bus *echotest.Bus) {
			run(t, bus, second, func(ctx context.Context, m echo.Message[int]) error { return m.Nack(ctx, time.Hour) })
			publish(t, bus, second, 1)
		}, "topic second, broadcast subscription 1: pending 1"},
		{"a broadcast is not received from", func(t testing.TB, bus *echotest.Bus) {
			_, err := echo.Subscribe(context.Background(), bus.Bus, second)
			require.NoError(t, err)
			publish(t, bus, second, 1)
		}, "topic second, broadcast subscription 1: given messages up to "},
		{"a publish waits for room", func(t testing.TB, bus *echotest.Bus) {
			_, err := echo.Subscribe(context.Background(), bus.Bus, third)
			require.NoError(t, err)
			publish(t, bus, third, 1, 2, 3)
			ctx, cancel := context.WithTimeout(context.Background(), 11*time.Second)
			go func() {
				defer cancel()
				echo.NewProducer(bus.Bus, third).Publish(ctx, 4)
			}()
		}, "1 publishes under way"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				r := try(func(t testing.TB) {
					bus := echotest.New(t, echotest.WithMemory(memstream.WithMaxMessages(3)))
					c.begin(t, bus)
					synctest.Wait()
					bus.WaitIdle(t.Context())
				})
				assert.True(t, r.Failed())
				assert.Contains(t, r.text(), "echotest: wait: not idle after 10s\n")
				assert.Contains(t, r.text(), c.want)
				assert.GreaterOrEqual(t, time.Since(begin), 10*time.Second)
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestAContextWithADeadlineTakesThePlaceOfThePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		r := try(func(t testing.TB) {
			bus := echotest.New(t, echotest.WithPatience(time.Second))
			run(t, bus, second, func(context.Context, echo.Message[int]) error { time.Sleep(time.Minute); return nil })
			publish(t, bus, second, 1)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			bus.WaitIdle(ctx)
		})
		assert.False(t, r.Failed(), r.text())
		assert.WithinRange(t, time.Now(), begin.Add(time.Minute), begin.Add(time.Minute+10*time.Millisecond))
	})
}

func TestDelayedMessagesCountOnceTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t)
		var broadcast, group atomic.Int64
		count := func(n *atomic.Int64) echo.Handler[int] {
			return func(context.Context, echo.Message[int]) error { time.Sleep(time.Second); n.Add(1); return nil }
		}
		run(t, bus, second, count(&broadcast))
		run(t, bus, second, count(&group), echo.WithGroup("g"))
		p := echo.NewProducer(bus.Bus, second)
		for i := range 3 {
			require.NoError(t, p.Publish(t.Context(), i, echo.WithDelay(time.Duration(i+1)*time.Hour)))
		}
		begin := time.Now()
		bus.WaitIdle(t.Context())
		assert.Zero(t, time.Since(begin), "nothing is due")
		assert.Len(t, echotest.Published(bus, second), 3)
		for i := range 3 {
			time.Sleep(time.Until(begin.Add(time.Duration(i+1) * time.Hour)))
			bus.WaitIdle(t.Context())
			assert.EqualValues(t, i+1, broadcast.Load())
			assert.EqualValues(t, i+1, group.Load())
		}
	})
}

func TestWaitIdleEndsWithTheLastAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t)
		run(t, bus, second, func(context.Context, echo.Message[int]) error { time.Sleep(time.Second); return nil }, echo.WithGroup("g"))
		publish(t, bus, second, 1, 2, 3)
		begin := time.Now()
		bus.WaitIdle(t.Context())
		assert.WithinRange(t, time.Now(), begin.Add(3*time.Second), begin.Add(3*time.Second+10*time.Millisecond))
	})
}

func TestClosedSubscriptionsAreNotWaitedFor(t *testing.T) {
	inAndOutOfBubbles(t, func(t *testing.T) {
		bus := echotest.New(t)
		c, err := echo.Subscribe(t.Context(), bus.Bus, second)
		require.NoError(t, err)
		publish(t, bus, second, 1)
		for m, err := range c.Messages(t.Context()) {
			require.NoError(t, err)
			require.NoError(t, m.Nack(t.Context(), time.Hour))
			break
		}
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		bus.WaitIdle(t.Context())
	})
}

// inspected is a transport that does something before it tells how a topic is.
type inspected struct {
	*memstream.Transport
	before func(topic string)
}

func (i *inspected) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	i.before(topic)
	return i.Transport.Inspect(ctx, topic)
}

// A message that is never in the topic that is looked at.
func TestAMessageThatGoesToAndFroIsNotMissed(t *testing.T) {
	tr := &inspected{Transport: memstream.New()}
	bus := echotest.New(t, echotest.WithTransport(tr))
	topics := map[string]*echo.Topic[int]{"second": second, "third": third}
	other := map[string]*echo.Topic[int]{"second": third, "third": second}
	consumers := map[string]*echo.Consumer[int]{}
	for name, topic := range topics {
		var err error
		consumers[name], err = echo.Subscribe(t.Context(), bus.Bus, topic, echo.WithGroup("g"))
		require.NoError(t, err)
	}
	at, left := "second", 20
	tr.before = func(topic string) {
		if topic != at || left == 0 {
			return
		}
		for m, err := range consumers[at].Messages(t.Context()) {
			require.NoError(t, err)
			if left--; left > 0 {
				publish(t, bus, other[at], m.Value)
				at = other[at].Name()
			}
			require.NoError(t, m.Ack(t.Context()))
			break
		}
	}
	publish(t, bus, second, 1)
	bus.WaitIdle(t.Context())
	assert.Zero(t, left, "ways to go")
}

// torn is a transport whose figures are not of one moment: the first time, a
// message is given out after what is pending was counted, and before the lag.
type torn struct {
	*memstream.Transport
	begun, taken, hold chan struct{}
	looks              atomic.Int64
}

func (tr *torn) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	info, err := tr.Transport.Inspect(ctx, topic)
	if err == nil && tr.looks.Add(1) == 1 {
		close(tr.begun)
		<-tr.taken
		info.Groups[0].Lag = 0
	}
	if tr.looks.Load() == 3 {
		close(tr.hold)
	}
	return info, err
}

func (tr *torn) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	s, err := tr.Transport.Subscribe(ctx, topic, opts)
	return &tornSubscription{s, tr}, err
}

type tornSubscription struct {
	transport.Subscription
	tr *torn
}

func (s *tornSubscription) Unwrap() transport.Subscription { return s.Subscription }

func (s *tornSubscription) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	<-s.tr.begun
	n, err := s.Subscription.Receive(ctx, dst)
	if n > 0 {
		close(s.tr.taken)
		<-s.tr.hold
	}
	return n, err
}

func TestAMessageBetweenTwoFiguresIsNotMissed(t *testing.T) {
	tr := &torn{Transport: memstream.New(), begun: make(chan struct{}), taken: make(chan struct{}), hold: make(chan struct{})}
	bus := echotest.New(t, echotest.WithTransport(tr))
	var handled atomic.Bool
	run(t, bus, second, func(context.Context, echo.Message[int]) error { handled.Store(true); return nil }, echo.WithGroup("g"))
	publish(t, bus, second, 1)
	bus.WaitIdle(t.Context())
	assert.True(t, handled.Load())
}

func TestDeadLettersThatRedriveKeptAreNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t)
		var home []int
		run(t, bus, second, func(_ context.Context, m echo.Message[int]) error {
			if len(home) < 2 {
				home = append(home, m.Value)
				return echo.Reject(errors.New("oops"))
			}
			home = append(home, m.Value)
			return nil
		}, echo.WithGroup("g"))
		publish(t, bus, second, 1, 2)
		bus.WaitIdle(t.Context())
		n, err := echo.Redrive(t.Context(), bus.Bus, second, func(m echo.Message[echo.DeadLetter[int]]) bool { return m.Value.Value == 2 }, 0)
		require.NoError(t, err)
		require.Equal(t, echo.Redriven{Sent: 1, Kept: 1}, n)
		bus.WaitIdle(t.Context())
		assert.Equal(t, []int{1, 2, 2}, home)
		echotest.Expect(bus, second, 1, 2)
		assert.Len(t, echotest.DeadLetters(bus, second), 2)
	})
}
