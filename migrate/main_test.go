package migrate_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silent{})
	if os.Getenv(workerAddr) != "" {
		worker() // a child process of a test
		return
	}
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

var prefixes atomic.Int64

func prefix() string { return fmt.Sprint("echo:test", prefixes.Add(1)) }

// overRedis returns a transport with keys of its own.
func overRedis(opts ...redisstream.Option) *redisstream.Transport {
	client := redis.NewClient(shared.Options())
	defer client.Close() // which the transport does not use
	return redisstream.New(client, append([]redisstream.Option{redisstream.WithPrefix(prefix())}, opts...)...)
}

// opened closes a transport with the test.
func opened[T transport.Transport](t testing.TB, tr T) T {
	t.Cleanup(func() { tr.Close() })
	return tr
}

func message(id string) transport.Message {
	return transport.Message{ID: id, Type: "text/plain", Time: time.Now().UTC(), Data: []byte(id)}
}

func messages(ids ...string) []transport.Message {
	var msgs []transport.Message
	for _, id := range ids {
		msgs = append(msgs, message(id))
	}
	return msgs
}

// numbered are n IDs.
func numbered(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return ids
}

func send(t testing.TB, tr transport.Transport, topic string, ids ...string) []transport.Message {
	t.Helper()
	msgs := messages(ids...)
	n, err := tr.Send(t.Context(), topic, msgs)
	require.NoError(t, err)
	require.Equal(t, len(ids), n)
	return msgs
}

func subscribe(t testing.TB, tr transport.Transport, topic string, o transport.Options) transport.Subscription {
	t.Helper()
	s, err := tr.Subscribe(t.Context(), topic, o)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func group(t testing.TB, tr transport.Transport, topic string) transport.Subscription {
	t.Helper()
	return subscribe(t, tr, topic, transport.Options{Group: "g"})
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

// take receives and acknowledges n messages, and returns their IDs.
func take(t testing.TB, s transport.Subscription, n int) []string {
	t.Helper()
	var got []string
	for len(got) < n {
		msgs := receive(t, s, 1)
		ack(t, s, msgs...)
		got = append(got, ids(msgs)...)
	}
	return got
}

// nothing checks that no message comes for d.
func nothing(t testing.TB, s transport.Subscription, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var dst [1]transport.Message
	n, err := s.Receive(ctx, dst[:])
	require.Zero(t, n, dst[0].ID)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func ids(msgs []transport.Message) []string {
	ids := make([]string, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	return ids
}

func receipts(msgs []transport.Message) []transport.Receipt {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	return rs
}

func ack(t testing.TB, s transport.Subscription, msgs ...transport.Message) {
	t.Helper()
	require.NoError(t, s.(transport.Acker).Ack(t.Context(), receipts(msgs)))
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

func inspect(t testing.TB, tr transport.Transport, topic string) transport.Info {
	t.Helper()
	i, ok := transport.As[transport.Inspector](tr)
	require.True(t, ok)
	info, err := i.Inspect(t.Context(), topic)
	require.NoError(t, err)
	return info
}
