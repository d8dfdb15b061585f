package migrate_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
)

// job is what is published in a move; jobs of one key are in order.
type job struct {
	Key string
	N   int
}

var jobs = echo.NewTopic[job]("t", echo.WithKeyFunc(func(j job) string { return j.Key }))

// move is a live topic: publishers that never pause for long, and a consumer.
type move struct {
	t         *testing.T
	ctx       context.Context
	published atomic.Int64

	mu       sync.Mutex // guards the rest
	accepted map[job]bool
	handled  map[job]int
	last     map[string]int // of first handlings, by key
	disorder []job
}

func newMove(t *testing.T, ctx context.Context) *move {
	return &move{t: t, ctx: ctx, accepted: map[job]bool{}, handled: map[job]int{}, last: map[string]int{}}
}

// publisher is a process that publishes, and can be restarted over another transport.
type publisher struct {
	m     *move
	keys  []string
	n     int
	pause sync.Mutex // held while it publishes, and while it is restarted
	bus   *echo.Bus
}

func (p *publisher) run() {
	for p.m.ctx.Err() == nil {
		p.pause.Lock()
		out := echo.NewProducer(p.bus, jobs)
		for range 20 {
			j := job{p.keys[p.n%len(p.keys)], p.n}
			p.n++
			p.m.accept(j)
			assert.NoError(p.m.t, out.Publish(context.Background(), j))
		}
		p.pause.Unlock()
		<-time.After(time.Millisecond) // as a process has other things to do
	}
}

func (p *publisher) restart(tr transport.Transport) {
	p.pause.Lock()
	defer p.pause.Unlock()
	p.m.close(p.bus)
	p.bus = echo.New(echo.WithTransport(tr))
}

func (m *move) close(bus *echo.Bus) {
	if bus != nil {
		_, err := bus.Close(context.Background())
		assert.NoError(m.t, err)
	}
}

func (m *move) accept(j job) {
	m.published.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accepted[j] = true
}

func (m *move) handle(j job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handled[j]++; m.handled[j] > 1 {
		return
	}
	if last, ok := m.last[j.Key]; ok && last > j.N {
		m.disorder = append(m.disorder, j)
	}
	m.last[j.Key] = j.N
}

func (m *move) missing() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for j := range m.accepted {
		if m.handled[j] == 0 {
			n++
		}
	}
	return n
}

// consume starts a process that consumes.
func (m *move) consume(tr transport.Transport) *echo.Bus {
	bus := echo.New(echo.WithTransport(tr))
	c, err := echo.Subscribe(m.t.Context(), bus, jobs, echo.WithGroup("g"), echo.WithConcurrency(4))
	require.NoError(m.t, err)
	go func() {
		assert.NoError(m.t, c.Run(context.Background(), func(_ context.Context, msg echo.Message[job]) error {
			m.handle(msg.Value)
			return nil
		}))
	}()
	return bus
}

// more waits until some more was published.
func (m *move) more(n int64) {
	m.t.Helper()
	until := m.published.Load() + n
	eventually(m.t, 30*time.Second, "more to be published", func() bool { return m.published.Load() >= until })
}

// A topic moves while it is used: processes are restarted one after another, and
// publishing never stops for long. A consumer that is restarted at any moment gives
// back what it holds, which keeps no order with what others get; so order is
// looked at where it has nothing to give back.
func TestLiveTopicMovesWithoutLosingAMessage(t *testing.T) {
	for name, ends := range map[string][2]func() transport.Transport{
		"from memory to memory": {inMemory, inMemory},
		"from memory to Redis":  {inMemory, inRedis},
		"from Redis to memory":  {inRedis, inMemory},
		"from Redis to Redis":   {inRedis, inRedis},
	} {
		for _, orderly := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " in order"}[orderly], func(t *testing.T) {
				goThrough(t, opened(t, ends[0]()), opened(t, ends[1]()), orderly)
			})
		}
	}
}

func goThrough(t *testing.T, a, b transport.Transport, orderly bool) {
	ctx, cancel := context.WithCancel(t.Context())
	m := newMove(t, ctx)
	old, new := func() transport.Transport { return transport.KeepOpen(a) }, func() transport.Transport { return transport.KeepOpen(b) }
	drains := func() *migrate.Draining {
		return migrate.Drainover(old(), new(), migrate.WithQuiet(300*time.Millisecond))
	}
	var publishing sync.WaitGroup
	var ps []*publisher
	for _, keys := range [][]string{{"a", "b", "c"}, {"d", "e"}} {
		p := &publisher{m: m, keys: keys, bus: echo.New(echo.WithTransport(old()))}
		ps = append(ps, p)
		publishing.Go(p.run)
	}
	consumer := m.consume(old())
	replace := func(tr transport.Transport) {
		if orderly {
			for _, p := range ps {
				p.pause.Lock()
				defer p.pause.Unlock()
			}
			eventually(t, 30*time.Second, "all to be handled", func() bool { return m.missing() == 0 })
		}
		m.close(consumer)
		consumer = m.consume(tr)
	}
	everyPublisher := func(over func() transport.Transport) {
		for _, p := range ps {
			p.restart(over())
			m.more(300)
		}
	}

	m.more(500)
	everyPublisher(func() transport.Transport { return migrate.Tee(old(), new()) }) // both have it from now on
	draining := drains()
	replace(draining)
	m.more(300)
	everyPublisher(func() transport.Transport { return drains() }) // old dries up
	teed := inspect(t, b, "t").Messages
	eventually(t, 30*time.Second, "what is on both to be passed by", func() bool {
		s := draining.Stats()
		return s.New+s.Repeated >= uint64(teed)
	})
	replace(new())
	everyPublisher(new)

	cancel()
	publishing.Wait()
	eventually(t, 30*time.Second, "all to be handled", func() bool { return m.missing() == 0 })
	m.close(consumer)
	for _, p := range ps {
		m.close(p.bus)
	}
	m.check(draining.Stats(), orderly)
}

func inMemory() transport.Transport { return memstream.New() }
func inRedis() transport.Transport  { return overRedis() }

func (m *move) check(s migrate.DrainStats, orderly bool) {
	repeated := 0
	for j, n := range m.handled {
		assert.True(m.t, m.accepted[j], "%v was never published", j)
		repeated += n - 1
	}
	m.t.Logf("%d published, %d handled, %d repetitions; %+v", len(m.accepted), len(m.handled), repeated, s)
	if !orderly {
		m.disorder = nil
	}
	assert.Empty(m.t, m.disorder, "first handlings of a key are in order")
	assert.Zero(m.t, repeated, "nothing failed, so nothing is handled twice")
	assert.NotZero(m.t, s.Repeated, "some were on both")
	assert.Zero(m.t, s.Late)
}
