package redisstream_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/faultproxy"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) {
	if work := os.Getenv("ECHO_TEST_WORKER"); work != "" {
		worker(work) // a child process of a test
		return
	}
	redis.SetLogger(silent{})
	server, err := redistest.New()
	if err != nil {
		log.Fatal(err)
	}
	shared = server
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		server.Close()
		os.Exit(code)
	}), goleak.IgnoreAnyFunction("github.com/echobus/echo/internal/redistest.launch.func1"))
}

// silent keeps go-redis, which prints what its users' code is told anyway, quiet.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// shared is a server for tests that do it no harm. Each has a prefix of its own.
var shared *redistest.Server

// job is what tests publish.
type job struct {
	N    int
	From string
}

var jobs = echo.NewTopic[job]("jobs")

// open returns a transport over a server, which the test closes, at its
// address or through a proxy.
func open(t testing.TB, o *redis.Options, opts ...redisstream.Option) *redisstream.Transport {
	t.Helper()
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	tr := redisstream.New(client, opts...)
	require.NoError(t, tr.Err())
	t.Cleanup(func() { tr.Close() })
	return tr
}

// proxied starts a proxy before a server, and returns options that go through it.
func proxied(t testing.TB, s *redistest.Server) (*faultproxy.Proxy, *redis.Options) {
	t.Helper()
	p, err := faultproxy.New(s.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	o := s.Options()
	o.Addr = p.Addr()
	return p, o
}

func busOver(t testing.TB, tr transport.Transport) *echo.Bus {
	bus := echo.New(echo.WithTransport(transport.KeepOpen(tr)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		bus.Close(ctx)
	})
	return bus
}

// ledger is the oracle: what was accepted, what may have been, what was handled.
type ledger struct {
	mu       sync.Mutex
	accepted map[job]bool
	unknown  map[job]bool
	handled  map[job]int
	silent   int // repetitions that said Attempt 1
	first    map[string]bool
}

func newLedger() *ledger {
	return &ledger{accepted: map[job]bool{}, unknown: map[job]bool{}, handled: map[job]int{}, first: map[string]bool{}}
}

// published notes the outcome of a publish.
func (l *ledger) published(j job, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.accepted[j] = true
	case isUnknown(err):
		l.unknown[j] = true
	}
}

func (l *ledger) handle(j job, id string, attempt int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handled[j]++; attempt == 1 {
		if l.first[id] {
			l.silent++
		}
		l.first[id] = true
	}
}

// missing are the accepted ones that nobody has handled.
func (l *ledger) missing() (jobs []job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for j := range l.accepted {
		if l.handled[j] == 0 {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// check waits until all that was accepted is handled (P1, P5), and checks that
// nothing else was (P2) and how much was repeated (P3).
func (l *ledger) check(t testing.TB, within time.Duration, repeated int) {
	t.Helper()
	begin := time.Now()
	for len(l.missing()) > 0 && time.Since(begin) < within {
		time.Sleep(5 * time.Millisecond)
	}
	if m := l.missing(); len(m) > 0 {
		t.Errorf("no loss: %d of %d accepted messages were not handled within %v, such as %+v", len(m), len(l.accepted), within, m[:min(3, len(m))])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for j, k := range l.handled {
		if !l.accepted[j] && !l.unknown[j] {
			t.Errorf("no phantom: %+v was handled and never accepted", j)
		}
		n += k - 1
	}
	if n > repeated {
		t.Errorf("bounded duplicates: %d repetitions, want at most %d", n, repeated)
	}
	t.Logf("%d accepted, %d unknown, %d handled, %d repetitions, drained %v after the last fault", len(l.accepted), len(l.unknown), len(l.handled), n, time.Since(begin).Round(time.Millisecond))
}

func (l *ledger) handledCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.handled)
}

func isUnknown(err error) bool {
	return err != nil && errors.Is(err, transport.ErrPublishUnknown)
}

// consume runs a consumer of group g that handles everything.
func (l *ledger) consume(t testing.TB, bus *echo.Bus, opts ...echo.SubscribeOption) {
	t.Helper()
	c, err := echo.Subscribe(t.Context(), bus, jobs, append([]echo.SubscribeOption{echo.WithGroup("g")}, opts...)...)
	require.NoError(t, err)
	go c.Run(context.Background(), func(_ context.Context, m echo.Message[job]) error {
		l.handle(m.Value, m.ID, m.Attempt)
		return nil
	})
}

// publishAll publishes n jobs one by one and notes the outcomes.
func (l *ledger) publishAll(ctx context.Context, bus *echo.Bus, from string, n int, pause time.Duration) {
	p := echo.NewProducer(bus, jobs)
	for i := range n {
		j := job{i, from}
		c, cancel := context.WithTimeout(ctx, 15*time.Second)
		err := p.Publish(c, j)
		cancel()
		l.published(j, err)
		if pause > 0 {
			time.Sleep(pause)
		}
	}
}

// eventually waits until done returns true.
func eventually(t testing.TB, within time.Duration, what string, done func() bool) {
	t.Helper()
	for begin := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > within {
			t.Fatalf("waited %v for %s", within, what)
		}
	}
}

// pending is how many messages of a group are not settled.
func pending(t testing.TB, s *redistest.Server, key, group string) int {
	p, err := s.Client().XPending(context.Background(), key, group).Result()
	if redis.HasErrorPrefix(err, "NOGROUP") {
		return 0
	}
	require.NoError(t, err)
	return int(p.Count)
}

// key is the stream of jobs.
const key = "echo:{jobs}"

func message(id string) transport.Message {
	return transport.Message{ID: id, Type: "text/plain", Time: time.Now(), Data: []byte(id)}
}

// receive receives n messages and leaves them unsettled.
func receive(t testing.TB, s transport.Subscription, n int) []transport.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	msgs := make([]transport.Message, 0, n)
	for len(msgs) < n {
		k, err := s.Receive(ctx, msgs[len(msgs):n])
		require.NoError(t, err, "after %d of %d messages", len(msgs), n)
		msgs = msgs[:len(msgs)+k]
	}
	return msgs
}

func ids(msgs []transport.Message) []string {
	ids := make([]string, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	return ids
}

func ack(t testing.TB, s transport.Subscription, msgs ...transport.Message) {
	t.Helper()
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	require.NoError(t, s.(transport.Acker).Ack(t.Context(), rs))
}

func subscribe(t testing.TB, tr transport.Transport, topic string, o transport.Options) transport.Subscription {
	t.Helper()
	s, err := tr.Subscribe(t.Context(), topic, o)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func send(t testing.TB, tr transport.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := tr.Send(t.Context(), topic, []transport.Message{message(id)})
		require.NoError(t, err)
	}
}

// numbered are n IDs.
func numbered(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return ids
}
