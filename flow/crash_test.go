package flow_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
	"github.com/echobus/echo/redisstream"
)

// childOf names the variable that makes this program the one that is killed, by
// the URL of the server.
const childOf = "ECHO_FLOW_CHILD_OF"

var (
	matched = echo.NewTopic[int]("matched")
	grouped = echo.NewTopic[[]int]("grouped")
	handled = echo.NewTopic[int]("handled")
)

const crashLease = time.Second

// beKilled runs pipelines with each kind of stage, until it is killed.
func beKilled(ctx context.Context, url string) error {
	server, err := redisstream.Open(ctx, url, redisstream.WithPrefix("killed"), redisstream.WithName("child"), redisstream.WithLease(crashLease))
	if err != nil {
		return err
	}
	bus := echo.New(echo.WithTransport(server))
	subscribe := func(topic *echo.Topic[event], group string) flow.Stream[event] {
		c, e := echo.Subscribe(ctx, bus, topic, echo.WithGroup(group), echo.WithPrefetch(10_000, 64<<20), echo.WithConcurrency(4))
		if e != nil {
			err = e
			return flow.Stream[event]{}
		}
		return flow.FromTopic(c)
	}
	number := func(j flow.Joined[event, event]) int { return j.Left.N }
	join, err1 := flow.Pipe("join", flow.Via(
		flow.Join("match", subscribe(events, "join"), subscribe(others, "join"), flow.Joining[event, event]{
			Within: 300 * time.Millisecond, Late: 300 * time.Millisecond, Grace: crashLease + 3*time.Second,
		}),
		flow.Then(flow.Map("number", number), flow.ToTopic(echo.NewProducer(bus, matched)))))
	window, err2 := flow.Pipe("window", flow.Via(
		flow.Windowed(subscribe(events, "window"), flow.Windows[event]{Every: 100 * time.Millisecond, Late: 100 * time.Millisecond}),
		flow.Then(flow.Map("numbers", func(w flow.Window[event]) []int { return numbers(w.Values) }), flow.ToTopic(echo.NewProducer(bus, grouped)))))
	each, err3 := flow.Pipe("each", flow.Via(
		flow.Parallel(flow.Spread(flow.Batch(subscribe(events, "each"), 20, 10*time.Millisecond)), 4, nil),
		flow.Then(flow.Map("number", func(e event) int { return e.N }), flow.ToTopic(echo.NewProducer(bus, handled)))))
	for _, e := range []error{err, err1, err2, err3} {
		if e != nil {
			return e
		}
	}
	for _, p := range []*flow.Pipeline{join, window, each} {
		go p.Run(ctx)
	}
	time.Sleep(time.Hour)
	return nil
}

// SIGKILL, again and again, in the middle of joins, windows, batches and lanes:
// all arrives.
func TestKilledPipelinesLoseNothing(t *testing.T) {
	const n = 4000
	kills := 12
	url := server.URL()
	transport, err := redisstream.Open(t.Context(), url, redisstream.WithPrefix("killed"))
	require.NoError(t, err)
	p := plumb(t, echo.WithTransport(transport))

	var mu sync.Mutex
	seen := map[string]map[int]int{"matched": {}, "grouped": {}, "handled": {}}
	note := func(topic string, ns ...int) {
		mu.Lock()
		defer mu.Unlock()
		for _, n := range ns {
			seen[topic][n]++
		}
	}
	listen(p, matched, func(n int) { note("matched", n) })
	listen(p, handled, func(n int) { note("handled", n) })
	listen(p, grouped, func(ns []int) { note("grouped", ns...) })

	start := func() *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), childOf+"="+url)
		c.Stderr = os.Stderr
		require.NoError(t, c.Start())
		return c
	}
	published := make(chan error, 1)
	go func() {
		left, right := echo.NewProducer(p.bus, events), echo.NewProducer(p.bus, others)
		for n := range n {
			e := event{N: n, Key: fmt.Sprint(n)}
			first, second := left, right
			if n%2 == 0 {
				first, second = right, left
			}
			for _, p := range []*echo.Producer[event]{first, second} {
				if err := p.Publish(context.Background(), e); err != nil {
					published <- err
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		published <- nil
	}()
	child := start()
	defer func() { child.Process.Kill(); child.Wait() }()
	for i := range kills {
		time.Sleep(50*time.Millisecond + rand.N(1500*time.Millisecond))
		if i%4 == 0 { // long enough to give up what finds no partner
			time.Sleep(5 * time.Second)
		}
		child.Process.Kill()
		child.Wait()
		child = start()
	}
	require.NoError(t, <-published)
	assert.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen["matched"]) == n && len(seen["grouped"]) == n && len(seen["handled"]) == n
	}, 30*time.Second, 20*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	for topic, ns := range seen {
		again := 0
		for _, times := range ns {
			again += times - 1
		}
		assert.Equal(t, n, len(ns), topic)
		t.Logf("%s: %d of %d, %d of them repeated", topic, len(ns), n, again)
	}
}

// listen calls f with each value of a topic until the end of the test.
func listen[T any](p *plumbing, topic *echo.Topic[T], f func(T)) {
	c, err := echo.Subscribe(p.Context(), p.bus, topic)
	require.NoError(p, err)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(context.Background(), func(_ context.Context, m echo.Message[T]) error { f(m.Value); return nil })
	}()
	p.Cleanup(func() {
		assert.NoError(p, c.Close())
		assert.NoError(p, <-done)
	})
}
