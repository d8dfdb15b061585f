package flow_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
	"github.com/echobus/echo/transport"
)

type event struct {
	N    int
	Key  string
	At   time.Time
	Kind string
}

var (
	events  = echo.NewTopic[event]("events", echo.WithKeyFunc(func(e event) string { return e.Key }))
	others  = echo.NewTopic[event]("others", echo.WithKeyFunc(func(e event) string { return e.Key }))
	outputs = echo.NewTopic[event]("outputs")
)

// plumbing is a bus and what tests of streams do with it.
type plumbing struct {
	*testing.T
	bus *echo.Bus
}

func plumb(t *testing.T, opts ...echo.BusOption) *plumbing {
	p := &plumbing{t, echo.New(opts...)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := p.bus.Close(ctx)
		assert.NoError(t, err)
	})
	return p
}

func (p *plumbing) consumer(topic *echo.Topic[event], opts ...echo.SubscribeOption) *echo.Consumer[event] {
	p.Helper()
	c, err := echo.Subscribe(p.Context(), p.bus, topic, append([]echo.SubscribeOption{echo.WithGroup("flow"),
		echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Millisecond}})}, opts...)...)
	require.NoError(p, err)
	return c
}

func (p *plumbing) publish(topic *echo.Topic[event], es ...event) {
	p.Helper()
	require.NoError(p, echo.NewProducer(p.bus, topic).PublishBatch(p.Context(), es))
}

// run runs a pipeline until stop is called.
func run[T any](p *plumbing, s flow.Stream[T]) (pipe *flow.Pipeline, stop func()) {
	p.Helper()
	pipe, err := flow.Pipe("test", s)
	require.NoError(p, err)
	ctx, cancel := context.WithCancel(p.Context())
	done := make(chan error, 1)
	go func() { done <- pipe.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			assert.NoError(p, err)
		case <-time.After(20 * time.Second):
			assert.Fail(p, "Run did not return")
		}
	})
	p.Cleanup(stop)
	return pipe, stop
}

// settled waits until the group has settled all messages, so many as dead letters.
func (p *plumbing) settled(topic *echo.Topic[event], dead int) {
	p.Helper()
	require.Eventually(p, func() bool {
		in, err := p.bus.Inspect(p.Context(), topic.Name())
		require.NoError(p, err)
		g := in.Group("flow")
		return g.Pending == 0 && g.Lag == 0 && in.DeadLetters == int64(dead)
	}, 10*time.Second, 5*time.Millisecond, "what came in is not settled")
}

// gathered is what came out.
type gathered[T any] struct {
	mu  sync.Mutex
	all []T
}

func (g *gathered[T]) step(name string) flow.Step[T, T] {
	return flow.Tap(name, func(_ context.Context, v T) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.all = append(g.all, v)
		return nil
	})
}

func (g *gathered[T]) list() []T {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.all)
}

func (g *gathered[T]) await(p *plumbing, n int) []T {
	p.Helper()
	if !assert.Eventually(p, func() bool { return len(g.list()) >= n }, 10*time.Second, time.Millisecond) {
		require.Failf(p, "too few came out", "%d of %d: %v", len(g.list()), n, g.list())
	}
	return g.list()
}

func count(from, to int) (es []event) {
	for n := from; n < to; n++ {
		es = append(es, event{N: n})
	}
	return es
}

func numbers(es []event) (ns []int) {
	for _, e := range es {
		ns = append(ns, e.N)
	}
	return ns
}

func upTo(n int) []int { return numbers(count(0, n)) }

var errFails = errors.New("it fails")

func TestStreamFromTopicToTopic(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		out, err := echo.Subscribe(t.Context(), p.bus, outputs, echo.WithGroup("look"))
		require.NoError(t, err)
		odd := flow.Filter("odd", func(e event) bool { return e.N%2 == 1 })
		tenfold := flow.Map("tenfold", func(e event) event { e.N *= 10; return e })
		pipe, stop := run(p, flow.Via(flow.FromTopic(p.consumer(events)), flow.Then3(odd, tenfold, flow.ToTopic(echo.NewProducer(p.bus, outputs)))))
		p.publish(events, count(0, 10)...)
		var got []int
		for m, err := range out.Messages(t.Context()) {
			require.NoError(t, err)
			require.NoError(t, m.Ack(t.Context()))
			if got = append(got, m.Value.N); len(got) == 5 {
				break
			}
		}
		assert.Equal(t, []int{10, 30, 50, 70, 90}, got)
		p.settled(events, 0)
		stop()
		assert.Equal(t, "from events | odd | tenfold | to outputs", pipe.String())
		s := pipe.Sight()
		assert.EqualValues(t, 10, s.Children[0].Counts.Calls)
		assert.Equal(t, flow.TopicKind, s.Children[0].Kind)
		assert.Contains(t, s.Mermaid(), `n0[("events`)
		assert.Contains(t, s.DOT(), "shape=cylinder")
		assert.ErrorIs(t, pipe.Run(t.Context()), echo.ErrClosed)
	})
}

// An input is acknowledged after every output has accepted what came of it.
func TestStreamAcknowledgesAfterAllOutputs(t *testing.T) {
	var down atomic.Bool
	p := plumb(t, echo.WithPublishHook(func(next echo.SendFunc) echo.SendFunc {
		return func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			if topic == outputs.Name() && down.Load() {
				return 0, fmt.Errorf("%w: %w", echo.ErrNotPublished, errFails)
			}
			return next(ctx, topic, msgs)
		}
	}))
	down.Store(true)
	var g gathered[event]
	write := flow.All("write", g.step("there"), flow.ToTopic(echo.NewProducer(p.bus, outputs)))
	pipe, _ := run(p, flow.Via(flow.FromTopic(p.consumer(events, echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}}))), write))
	p.publish(events, event{N: 1})
	g.await(p, 5)
	in, err := p.bus.Inspect(t.Context(), "events")
	require.NoError(t, err)
	assert.EqualValues(t, 1, in.Groups[0].Pending, "it waits to be tried again")
	down.Store(false)
	p.settled(events, 0)
	assert.Positive(t, pipe.Sight().Children[1].Children[1].Counts.Failed)
}

// What is published again has the same key, and is stored once.
func TestStreamThatRepeatsIsStoredOnce(t *testing.T) {
	p := plumb(t)
	once := echo.NewTopic[event]("once", echo.WithDedup(time.Minute))
	var tried atomic.Int32
	fails := flow.Tap("fails", func(context.Context, event) error {
		if tried.Add(1) < 3 {
			return errFails
		}
		return nil
	})
	publish := flow.ToTopicFunc(echo.NewProducer(p.bus, once), func(e event) []echo.PublishOption {
		return []echo.PublishOption{echo.WithIdempotencyKey(fmt.Sprint("event ", e.N))}
	})
	run(p, flow.Via(flow.FromTopic(p.consumer(events)), flow.Then(publish, fails)))
	p.publish(events, count(0, 3)...)
	p.settled(events, 0)
	in, err := p.bus.Inspect(t.Context(), "once")
	require.NoError(t, err)
	assert.EqualValues(t, 3, in.Messages)
	assert.EqualValues(t, 2, in.Duplicates)
}

func TestStreamKeepsTheOrderOfKeys(t *testing.T) {
	for name, through := range map[string]func(p *plumbing) flow.Stream[event]{
		"of messages": func(p *plumbing) flow.Stream[event] {
			return flow.FromTopic(p.consumer(events, echo.WithConcurrency(8)))
		},
		"of its own": func(p *plumbing) flow.Stream[event] {
			return flow.Parallel(flow.FromTopic(p.consumer(events)), 8, func(e event) string { return fmt.Sprint(e.N % 10) })
		},
		"of messages, later": func(p *plumbing) flow.Stream[event] {
			return flow.Parallel(flow.FromTopic(p.consumer(events)), 8, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plumb(t)
			var running, most atomic.Int32
			var g gathered[event]
			work := flow.Tap("work", func(context.Context, event) error {
				now := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
				}
				time.Sleep(rand.N(2 * time.Millisecond))
				return nil
			})
			_, stop := run(p, flow.Via(through(p), flow.Then(work, g.step("done"))))
			var es []event
			for n := range 300 {
				es = append(es, event{N: n, Key: fmt.Sprint(n % 10)})
			}
			p.publish(events, es...)
			g.await(p, 300)
			p.settled(events, 0)
			stop()
			assert.Greater(t, most.Load(), int32(2), "at the same time")
			last := map[string]int{}
			for _, e := range g.list() {
				assert.GreaterOrEqual(t, e.N, last[e.Key])
				last[e.Key] = e.N
			}
		})
	}
}

func TestStreamInBatches(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[[]event]
		_, stop := run(p, flow.Via(flow.Batch(flow.FromTopic(p.consumer(events)), 4, time.Second), g.step("store")))
		p.publish(events, count(0, 10)...)
		batches := g.await(p, 3)
		for i, want := range [][]int{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}} {
			assert.Equal(t, want, numbers(batches[i]))
		}
		p.settled(events, 0)
		stop()
	})
}

// What a batch waits with is done when the pipeline stops.
func TestBatchesAreDoneAtTheEnd(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[[]event]
		pipe, stop := run(p, flow.Via(flow.Batch(flow.FromTopic(p.consumer(events)), 1000, time.Hour), g.step("store")))
		p.publish(events, count(0, 10)...)
		require.Eventually(t, func() bool { return pipe.Sight().Children[0].Counts.Calls == 10 }, time.Second, time.Millisecond)
		assert.Empty(t, g.list())
		stop()
		require.Len(t, g.list(), 1)
		assert.Equal(t, upTo(10), numbers(g.list()[0]))
		p.settled(events, 0)
	})
}

// One that cannot be handled takes no others of its batch along.
func TestBatchWithPoison(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[[]event]
		check := flow.Tap("check", func(_ context.Context, es []event) error {
			for _, e := range es {
				switch e.N {
				case 5:
					return errFails
				case 6:
					panic("six")
				case 7:
					runtime.Goexit()
				}
			}
			return nil
		})
		run(p, flow.Via(flow.Batch(flow.FromTopic(p.consumer(events)), 10, 20*time.Millisecond), flow.Then(check, g.step("store"))))
		p.publish(events, count(0, 30)...)
		p.settled(events, 3)
		var got []int
		for _, b := range g.list() {
			got = append(got, numbers(b)...)
		}
		slices.Sort(got)
		assert.Equal(t, slices.DeleteFunc(upTo(30), func(n int) bool { return n >= 5 && n <= 7 }), got)
	})
}

func TestSpread(t *testing.T) {
	var g gathered[event]
	var failed atomic.Int32
	parts := flow.Map("parts", func(e event) []event {
		return []event{{N: 10 * e.N}, {N: 10*e.N + 1}, {N: 10*e.N + 2}}
	})
	fails := flow.Tap("fails", func(_ context.Context, e event) error {
		if e.N == 11 && failed.Add(1) < 3 {
			return errFails
		}
		return nil
	})
	for name, after := range map[string]func(flow.Stream[event]) flow.Stream[event]{
		"at once": func(s flow.Stream[event]) flow.Stream[event] { return s },
		"kept":    func(s flow.Stream[event]) flow.Stream[event] { return flow.Parallel(s, 3, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			failed.Store(0)
			g.all = nil
			p := plumb(t)
			_, stop := run(p, flow.Via(after(flow.Spread(flow.Via(flow.FromTopic(p.consumer(events)), parts))), flow.Then(fails, g.step("done"))))
			p.publish(events, count(0, 3)...)
			p.settled(events, 0)
			stop()
			got := numbers(g.list())
			slices.Sort(got)
			assert.EqualValues(t, 3, failed.Load())
			assert.Equal(t, []int{0, 1, 2, 10, 11, 12, 20, 21, 22}, slices.Compact(got))
		})
	}
}

func TestUnion(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[event]
		pipe, stop := run(p, flow.Via(flow.Union(flow.FromTopic(p.consumer(events)), flow.Via(flow.FromTopic(p.consumer(others)), flow.Map("ten", func(e event) event { e.N += 10; return e }))), g.step("done")))
		p.publish(events, count(0, 5)...)
		p.publish(others, count(0, 5)...)
		g.await(p, 10)
		p.settled(events, 0)
		p.settled(others, 0)
		stop()
		got := numbers(g.list())
		slices.Sort(got)
		assert.Equal(t, []int{0, 1, 2, 3, 4, 10, 11, 12, 13, 14}, got)
		assert.Equal(t, "(from events, (from others | ten)) | done", pipe.String())
	})
}

// What is slow at the end keeps messages in the topic.
func TestBackPressureReachesTheSource(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		gate := make(chan struct{})
		slow := flow.Tap("slow", func(ctx context.Context, _ []event) error {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return ctx.Err()
		})
		run(p, flow.Via(flow.Batch(flow.FromTopic(p.consumer(events, echo.WithPrefetch(20, 1<<20))), 5, time.Second), slow))
		p.publish(events, count(0, 100)...)
		time.Sleep(100 * time.Millisecond)
		in, err := p.bus.Inspect(t.Context(), "events")
		require.NoError(t, err)
		assert.LessOrEqual(t, in.Groups[0].Pending, int64(20))
		assert.GreaterOrEqual(t, in.Groups[0].Lag, int64(80))
		close(gate)
		p.settled(events, 0)
	})
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// at is an event so many seconds after noon.
func at(seconds float64, key string) event {
	return event{At: noon.Add(time.Duration(seconds * float64(time.Second))), Key: key}
}

func minutes(w flow.Windows[event]) flow.Windows[event] {
	w.Time = func(e event) time.Time { return e.At }
	w.Every = time.Minute
	return w
}

func describe(ws []flow.Window[event]) (all []string) {
	for _, w := range ws {
		late := ""
		if w.Again {
			late = " again"
		}
		all = append(all, fmt.Sprintf("%s%v-%v:%d%s", w.Key, w.Start.Sub(noon).Seconds(), w.End.Sub(noon).Seconds(), len(w.Values), late))
	}
	return all
}

func TestWindowsByTime(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[flow.Window[event]]
		_, stop := run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)),
			minutes(flow.Windows[event]{Late: 10 * time.Second, Idle: time.Second})), g.step("store")))
		p.publish(events, at(1, ""), at(59.9, ""), at(61, ""), at(58, ""), at(69.9, ""))
		time.Sleep(50 * time.Millisecond)
		assert.Empty(t, g.list(), "ten seconds late are not over")
		p.publish(events, at(70, ""))
		assert.Equal(t, []string{"0-60:3"}, describe(g.await(p, 1)))
		p.publish(events, at(30, ""), at(31, "")) // too late
		assert.Equal(t, []string{"0-60:2 again", "60-120:3"}, describe(g.await(p, 3))[1:], "when nothing more comes")
		p.settled(events, 0)
		stop()
	})
}

func TestWindowsByCountAndKey(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var g gathered[flow.Window[event]]
		_, stop := run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)), flow.Windows[event]{
			Count: 3,
			Key:   func(e event) string { return e.Key },
			Time:  func(e event) time.Time { return e.At },
		}), g.step("store")))
		p.publish(events, at(1, "a"), at(2, "b"), at(3, "a"), at(4, "c"), at(5, "a"), at(6, "b"), at(7, "b"))
		assert.Equal(t, []string{"a1-5:3", "b2-7:3"}, describe(g.await(p, 2)))
		stop() // c's goes back
		p.publish(events, at(8, "c"), at(9, "c"))
		_, stop = run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)), flow.Windows[event]{
			Count: 3,
			Key:   func(e event) string { return e.Key },
			Time:  func(e event) time.Time { return e.At },
		}), g.step("store")))
		assert.Equal(t, "c4-9:3", describe(g.await(p, 3))[2])
		p.settled(events, 0)
		stop()
	})
}

// Windows that are open when the pipeline stops are whole where it goes on.
func TestWindowsGoBackAndComeAgain(t *testing.T) {
	for name, stopping := range map[string]func(p *plumbing, c *echo.Consumer[event], stop func()){
		"stopped": func(_ *plumbing, _ *echo.Consumer[event], stop func()) { stop() },
		"closed":  func(p *plumbing, c *echo.Consumer[event], _ func()) { assert.NoError(p, c.Close()); <-c.Done() },
	} {
		t.Run(name, func(t *testing.T) {
			p := plumb(t)
			var g gathered[flow.Window[event]]
			w := minutes(flow.Windows[event]{Idle: time.Hour})
			c := p.consumer(events)
			pipe, stop := run(p, flow.Via(flow.Windowed(flow.FromTopic(c), w), g.step("store")))
			p.publish(events, at(1, ""), at(2, ""), at(3, ""))
			require.Eventually(t, func() bool { return pipe.Sight().Children[0].Counts.Calls == 3 }, time.Second, time.Millisecond)
			begin := time.Now()
			stopping(p, c, stop)
			stop()
			assert.Less(t, time.Since(begin), 5*time.Second, "nothing waits for windows that would not end")
			assert.Empty(t, g.list())
			_, stop = run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events, echo.WithRetry(echo.Retry{Attempts: 1}))), w), g.step("store")))
			p.publish(events, at(4, ""), at(60, ""))
			assert.Equal(t, []string{"0-60:4"}, describe(g.await(p, 1)), "and this was no attempt")
			stop()
		})
	}
}

// A window that fails is tried again as a whole, and in the end its messages are
// dead letters.
func TestWindowsThatFail(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		var tried atomic.Int32
		var g gathered[flow.Window[event]]
		fails := flow.Tap("fails", func(_ context.Context, w flow.Window[event]) error {
			switch {
			case w.Start.Equal(noon) && tried.Add(1) < 3:
				return errFails
			case w.Start.Equal(noon.Add(time.Minute)):
				return echo.Reject(errFails)
			case w.Start.Equal(noon.Add(2 * time.Minute)):
				panic("always")
			}
			return nil
		})
		pipe, _ := run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)), minutes(flow.Windows[event]{Attempts: 3})), flow.Then(fails, g.step("store"))))
		p.publish(events, at(1, ""), at(2, ""), at(61, ""), at(62, ""), at(121, ""), at(181, ""), at(241, ""))
		assert.Equal(t, []string{"0-60:2", "180-240:1"}, describe(g.await(p, 2)))
		require.Eventually(t, func() bool {
			in, err := p.bus.Inspect(t.Context(), "events")
			return err == nil && in.DeadLetters == 3
		}, 5*time.Second, 5*time.Millisecond)
		assert.EqualValues(t, 4, pipe.Sight().Children[1].Counts.Retried)
	})
}

func TestJoin(t *testing.T) {
	j := flow.Joining[event, event]{
		Within: time.Minute, LeftTime: func(e event) time.Time { return e.At }, RightTime: func(e event) time.Time { return e.At },
		Idle: 1500 * time.Millisecond, Grace: time.Millisecond,
	}
	text := func(all []flow.Joined[event, event]) (texts []string) {
		sec := func(e *event) string {
			if e == nil {
				return "nobody"
			}
			return fmt.Sprint(e.At.Sub(noon).Seconds())
		}
		for _, j := range all {
			texts = append(texts, fmt.Sprintf("%s %s+%s", j.Key, sec(j.Left), sec(j.Right)))
		}
		slices.Sort(texts)
		return texts
	}
	for _, outer := range []bool{false, true} {
		t.Run(fmt.Sprint("outer ", outer), func(t *testing.T) {
			p := plumb(t)
			j.Outer = outer
			var g gathered[flow.Joined[event, event]]
			pipe, stop := run(p, flow.Via(flow.Join("match", flow.FromTopic(p.consumer(events)), flow.FromTopic(p.consumer(others)), j), g.step("store")))
			p.publish(events, at(0, "a"), at(30, "a"), at(0, "b"), at(300, "c"), at(20, ""))
			p.publish(others, at(20, "a"), at(61, "a"), at(61, "b"), at(361, "c"), at(300, "d"), at(20, ""))
			want := []string{"a 0+20", "a 30+20", "a 30+61"}
			if outer {
				want = append([]string{" 20+nobody", " nobody+20"}, want...)
				want = append(want, "b 0+nobody", "b nobody+61", "c 300+nobody", "c nobody+361", "d nobody+300")
			}
			got := g.await(p, len(want))
			p.settled(events, 0)
			p.settled(others, 0)
			stop()
			assert.Equal(t, want, text(got))
			if !outer {
				assert.EqualValues(t, 7, pipe.Sight().Children[0].Counts.Skipped)
			}
			assert.Equal(t, "match(from events, from others) | store", pipe.String())
			assert.Contains(t, pipe.Sight().DOT(), "n0 -> n2")
		})
	}
}

// Whatever fails and however often it stops, all pairs come out, and nothing is left.
func TestJoinThatFailsAndStops(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		const n = 200
		var mu sync.Mutex
		pairs := map[string]bool{}
		store := flow.Tap("store", func(_ context.Context, j flow.Joined[event, event]) error {
			if rand.N(10) == 0 {
				return errFails
			}
			mu.Lock()
			defer mu.Unlock()
			pairs[j.Key] = true
			return nil
		})
		for _, n := range rand.Perm(n) {
			p.publish(events, event{N: n, Key: fmt.Sprint(n)})
		}
		for _, n := range rand.Perm(n) {
			p.publish(others, event{N: n, Key: fmt.Sprint(n)})
		}
		j := flow.Joining[event, event]{Within: time.Hour}
		for range 5 {
			_, stop := run(p, flow.Via(flow.Join("match", flow.FromTopic(p.consumer(events)), flow.FromTopic(p.consumer(others)), j), store))
			time.Sleep(rand.N(200 * time.Millisecond))
			stop()
		}
		run(p, flow.Via(flow.Join("match", flow.FromTopic(p.consumer(events)), flow.FromTopic(p.consumer(others)), j), store))
		assert.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(pairs) == n }, 20*time.Second, 5*time.Millisecond)
	})
}

// A long way: steps before and after each kind of stage fail at random, and the
// pipeline stops again and again. All arrives, and nothing stays behind.
func TestStreamLosesNothing(t *testing.T) {
	overEach(t, func(p *plumbing) {
		t := p.T
		const n = 600
		var mu sync.Mutex
		arrived := map[int]int{}
		fails := func(name string) flow.Step[event, event] {
			return flow.Tap(name, func(context.Context, event) error {
				switch rand.N(60) {
				case 0:
					return errFails
				case 1:
					panic("now and then")
				case 2:
					runtime.Goexit()
				}
				return nil
			})
		}
		store := flow.Tap("store", func(_ context.Context, es []event) error {
			if rand.N(20) == 0 {
				return errFails
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range es {
				arrived[e.N]++
			}
			return nil
		})
		pipeline := func() flow.Stream[[]event] {
			forever := echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}})
			s := flow.Via(flow.FromTopic(p.consumer(events, echo.WithConcurrency(4), echo.WithPrefetch(100, 1<<20), forever)), fails("a"))
			windows := flow.Windowed(s, flow.Windows[event]{Every: 20 * time.Millisecond, Count: 30, Attempts: 100})
			each := flow.Spread(flow.Via(windows, flow.Map("values", func(w flow.Window[event]) []event { return w.Values })))
			return flow.Via(flow.Batch(flow.Via(flow.Parallel(each, 3, nil), fails("b")), 7, 5*time.Millisecond), store)
		}
		go func() {
			for i := range n {
				if i%10 == 0 {
					time.Sleep(time.Millisecond)
				}
				p.publish(events, event{N: i, Key: fmt.Sprint(i % 20)})
			}
		}()
		for range 8 {
			_, stop := run(p, pipeline())
			time.Sleep(rand.N(60 * time.Millisecond))
			stop()
		}
		run(p, pipeline())
		assert.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(arrived) == n }, 20*time.Second, 5*time.Millisecond)
		p.settled(events, 0)
	})
}

func TestPipelineEndsWithItsConsumers(t *testing.T) {
	p := plumb(t)
	c := p.consumer(others)
	pipe, err := flow.Pipe("test", flow.Union(flow.FromTopic(p.consumer(events)), flow.FromTopic(c)))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- pipe.Run(t.Context()) }()
	require.NoError(t, c.Close())
	require.NoError(t, <-done)
}

func TestStreamDefinitionsThatAreWrong(t *testing.T) {
	p := plumb(t)
	from := func() flow.Stream[event] { return flow.FromTopic(p.consumer(events)) }
	c := p.consumer(events)
	for name, tt := range map[string]struct {
		stream flow.Stream[event]
		says   string
	}{
		"no stream":        {flow.Stream[event]{}, "flow p: a stream is missing"},
		"no consumer":      {flow.FromTopic[event](nil), "flow p: FromTopic: the consumer is nil"},
		"no union":         {flow.Union[event](), "flow p: a union has no streams"},
		"one twice":        {flow.Union(flow.FromTopic(c), flow.FromTopic(c)), "flow p/events: the consumer is a source already"},
		"no step":          {flow.Via(from(), flow.Step[event, event]{}), "flow p: a step is missing"},
		"no producer":      {flow.Via(from(), flow.ToTopic[event](nil)), "flow p/a topic: the function is nil"},
		"no options":       {flow.Via(from(), flow.ToTopicFunc(echo.NewProducer(p.bus, events), nil)), "flow p/events: the function is nil"},
		"no lanes":         {flow.Parallel(from(), 0, nil), "Parallel needs at least one goroutine, not 0"},
		"no batch":         {flow.Spread(flow.Batch(from(), 0, time.Second)), "a batch needs at least one element, not 0"},
		"no wait":          {flow.Spread(flow.Batch(from(), 2, 0)), "and some time, not 0s"},
		"endless windows":  {windowed(from(), flow.Windows[event]{}), "neither Every nor Count"},
		"negative windows": {windowed(from(), flow.Windows[event]{Every: -1}), "is negative"},
		"late counts":      {windowed(from(), flow.Windows[event]{Count: 1, Late: 1}), "Windows.Late means nothing without Every"},
		"a join":           {joined(flow.Join("", from(), from(), flow.Joining[event, event]{Within: 1})), "a join has no name"},
		"a join of none":   {joined(flow.Join("j", from(), from(), flow.Joining[event, event]{})), "flow p/j: Joining.Within is 0s"},
		"a negative join":  {joined(flow.Join("j", from(), from(), flow.Joining[event, event]{Within: 1, Late: -1})), "is negative"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := flow.Pipe("p", tt.stream)
			assert.ErrorContains(t, err, tt.says)
			assert.ErrorIs(t, err, flow.ErrDefinition)
		})
	}
}

func windowed(s flow.Stream[event], w flow.Windows[event]) flow.Stream[event] {
	return flow.Via(flow.Windowed(s, w), flow.Map("first", func(w flow.Window[event]) event { return w.Values[0] }))
}

func joined(s flow.Stream[flow.Joined[event, event]]) flow.Stream[event] {
	return flow.Via(s, flow.Map("left", func(j flow.Joined[event, event]) event { return *j.Left }))
}

// What is wrong only when it runs keeps the input from being acknowledged.
func TestStreamOfNames(t *testing.T) {
	var r flow.Registry
	require.NoError(t, r.Register("double", func(n int) int { return 2 * n }, []string{"n"}, "sum"))
	require.NoError(t, r.Register("square", func(n int) int { return n * n }, []string{"n"}, "sum"))
	named, err := r.Parse("arithmetic", "double, square")
	require.NoError(t, err)
	p := plumb(t)
	values := echo.NewTopic[flow.Values]("values")
	c, err := echo.Subscribe(t.Context(), p.bus, values, echo.WithGroup("flow"), echo.WithRetry(echo.Retry{Attempts: 2, Table: []time.Duration{time.Millisecond}}))
	require.NoError(t, err)
	var g gathered[flow.Values]
	ints := flow.Map("ints", func(v flow.Values) flow.Values { return flow.Values{"n": int(v["n"].(float64))} })
	_, stop := run(p, flow.Via(flow.FromTopic(c), flow.Then3(ints, named.Step(), g.step("done"))))
	require.NoError(t, echo.NewProducer(p.bus, values).PublishBatch(t.Context(), []flow.Values{{"n": 2}, {"n": 3}, {"n": 0}, {"n": "three"}}))
	require.Eventually(t, func() bool {
		in, err := p.bus.Inspect(t.Context(), "values")
		return err == nil && in.DeadLetters == 2
	}, 5*time.Second, 5*time.Millisecond)
	assert.Equal(t, []flow.Values{{"sum": 4}, {"sum": 0}}, g.await(p, 2))
	stop()
	dead, err := echo.Subscribe(t.Context(), p.bus, echo.DeadLetters(values), echo.WithGroup("look"))
	require.NoError(t, err)
	var says []string
	for m, err := range dead.Messages(t.Context()) {
		require.NoError(t, err)
		if says = append(says, m.Value.Error); len(says) == 2 {
			break
		}
	}
	slices.Sort(says)
	assert.Equal(t, "flow test/arithmetic: sum is 6 by double and 9 by square", says[0])
	assert.Contains(t, says[1], "flow test/ints: panic: ")
}

// A window that was closed because nothing came is followed by one that says so.
func TestWindowsThatAreClosedEarly(t *testing.T) {
	p := plumb(t)
	var g gathered[flow.Window[event]]
	run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)), minutes(flow.Windows[event]{Idle: 50 * time.Millisecond})), g.step("store")))
	p.publish(events, at(1, ""))
	g.await(p, 1)
	p.publish(events, at(2, ""))
	g.await(p, 2)
	p.publish(events, at(61, ""))
	assert.Equal(t, []string{"0-60:1", "0-60:1 again", "60-120:1"}, describe(g.await(p, 3)))
}

// Elements of a window that are spread again fail together, and are tried together.
func TestWindowsThatAreSpread(t *testing.T) {
	p := plumb(t)
	var tried atomic.Int32
	var g gathered[event]
	fails := flow.Tap("fails", func(_ context.Context, e event) error {
		if e.N == 2 && tried.Add(1) < 4 {
			return errFails
		}
		return nil
	})
	values := flow.Map("values", func(w flow.Window[event]) []event { return w.Values })
	windows := flow.Windowed(flow.FromTopic(p.consumer(events)), flow.Windows[event]{Count: 3})
	run(p, flow.Via(flow.Spread(flow.Via(windows, values)), flow.Then(fails, g.step("done"))))
	p.publish(events, count(0, 3)...)
	p.settled(events, 0)
	assert.Equal(t, []int{0, 1, 0, 1, 0, 1, 0, 1, 2}, numbers(g.list()), "more often than its consumer would try")
}

// The two of a pair are acknowledged together: what stays behind would seem to
// have no partner.
func TestOuterJoinThatStops(t *testing.T) {
	p := plumb(t)
	var g gathered[flow.Joined[event, event]]
	start := func() (stop func()) {
		_, stop = run(p, flow.Via(flow.Join("match", flow.FromTopic(p.consumer(events)), flow.FromTopic(p.consumer(others)), flow.Joining[event, event]{
			Within: time.Minute, LeftTime: func(e event) time.Time { return e.At }, RightTime: func(e event) time.Time { return e.At },
			Outer: true, Grace: time.Millisecond, Idle: time.Hour,
		}), g.step("store")))
		return stop
	}
	stop := start()
	p.publish(events, at(0, "a"), at(130, "x"))
	p.publish(others, at(50, "a"), at(130, "x"))
	g.await(p, 2)
	time.Sleep(1500 * time.Millisecond) // the left one is past its partners, the right one is not
	stop()
	start()
	p.publish(events, at(500, "y"))
	p.publish(others, at(500, "y"))
	for _, j := range g.await(p, 5) { // two pairs, again, and a new one
		require.NotNil(t, j.Left)
		require.NotNil(t, j.Right)
	}
}

// To wait for a stage is no attempt, however long it takes.
func TestWaitingForAStageIsNoAttempt(t *testing.T) {
	p := plumb(t)
	var g gathered[[]event]
	slow := flow.Tap("slow", func(context.Context, []event) error { time.Sleep(100 * time.Millisecond); return nil })
	c := p.consumer(events, echo.WithRetry(echo.Retry{Attempts: 1, Timeout: 10 * time.Millisecond}))
	run(p, flow.Via(flow.Batch(flow.FromTopic(c), 1, time.Second), flow.Then(slow, g.step("done"))))
	p.publish(events, count(0, 5)...)
	p.settled(events, 0)
	assert.Len(t, g.list(), 5)
}

// echo.ErrLater is for handlers: nobody would settle what a step keeps.
func TestStepThatKeeps(t *testing.T) {
	p := plumb(t)
	keeps := flow.Tap("keeps", func(context.Context, event) error { return fmt.Errorf("wrapped: %w", echo.ErrLater) })
	run(p, flow.Via(flow.FromTopic(p.consumer(events)), keeps))
	p.publish(events, event{N: 1})
	p.settled(events, 1)
}

// A clock that is wrong closes nobody's window.
func TestWindowsAndTimesToCome(t *testing.T) {
	p := plumb(t)
	var g gathered[flow.Window[event]]
	run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events)), flow.Windows[event]{
		Every: time.Hour, Idle: time.Second, Time: func(e event) time.Time { return e.At },
	}), g.step("store")))
	now := time.Now()
	p.publish(events, event{N: 1, At: now}, event{N: 2, At: now.AddDate(100, 0, 0)}, event{N: 3, At: now})
	ws := g.await(p, 2)
	assert.Equal(t, []int{1, 3}, numbers(ws[0].Values))
	assert.Equal(t, []int{2}, numbers(ws[1].Values))
	assert.False(t, ws[0].Again || ws[1].Again)
}

// Many windows are open at once, and what comes finds its own.
func TestManyWindows(t *testing.T) {
	p := plumb(t)
	const keys, each = 2000, 5
	var g gathered[flow.Window[event]]
	run(p, flow.Via(flow.Windowed(flow.FromTopic(p.consumer(events, echo.WithPrefetch(2*keys*each, 64<<20))), flow.Windows[event]{
		Every: time.Minute, Late: time.Minute, Idle: time.Hour,
		Time: func(e event) time.Time { return e.At }, Key: func(e event) string { return e.Key },
	}), g.step("store")))
	for n := range each {
		var es []event
		for k := range keys {
			es = append(es, at(float64(n), fmt.Sprint(k)))
		}
		p.publish(events, es...)
	}
	p.publish(events, at(120, "last"))
	for _, w := range g.await(p, keys) {
		assert.Len(t, w.Values, each)
	}
}

// A pair that is rejected, or tried too often, is two dead letters.
func TestJoinsThatFail(t *testing.T) {
	for name, fails := range map[string]error{"rejected": echo.Reject(errFails), "tried": errFails} {
		t.Run(name, func(t *testing.T) {
			p := plumb(t)
			var tried atomic.Int32
			store := flow.Tap("store", func(context.Context, flow.Joined[event, event]) error { tried.Add(1); return fails })
			run(p, flow.Via(flow.Join("match", flow.FromTopic(p.consumer(events)), flow.FromTopic(p.consumer(others)),
				flow.Joining[event, event]{Within: 50 * time.Millisecond, Grace: time.Millisecond, Attempts: 2}), store))
			p.publish(events, event{Key: "a"})
			p.publish(others, event{Key: "a"})
			p.settled(events, 1)
			p.settled(others, 1)
			assert.EqualValues(t, map[string]int32{"rejected": 1, "tried": 2}[name], tried.Load())
		})
	}
}

func TestPipelineEndsWithItsBus(t *testing.T) {
	bus := echo.New()
	c, err := echo.Subscribe(t.Context(), bus, events, echo.WithGroup("flow"))
	require.NoError(t, err)
	pipe, err := flow.Pipe("test", flow.Windowed(flow.FromTopic(c), flow.Windows[event]{Count: 10}))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- pipe.Run(t.Context()) }()
	require.NoError(t, echo.NewProducer(bus, events).PublishBatch(t.Context(), count(0, 5)))
	require.Eventually(t, func() bool { return pipe.Sight().Children[0].Counts.Calls == 5 }, 5*time.Second, time.Millisecond)
	begin := time.Now()
	account, err := bus.Close(t.Context())
	require.NoError(t, err)
	require.NoError(t, <-done)
	assert.Zero(t, account.Abandoned)
	assert.Less(t, time.Since(begin), 5*time.Second)
}
