package redisstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"

	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// A reply that is lost must not make a second entry. That go-redis makes one
// where it is left to itself shows that the test would notice.
func TestReplyLostAfterXADD(t *testing.T) {
	server := redistest.Start(t)
	proxy, o := proxied(t, server)
	length := func() int64 { return server.Client().XLen(t.Context(), "echo:{t}").Val() }

	t.Run("go-redis alone makes a duplicate", func(t *testing.T) {
		client := redis.NewClient(o)
		defer client.Close()
		require.NoError(t, client.Ping(t.Context()).Err())
		dropped := proxy.DropReply("XADD")
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: "plain", Values: []string{"a", "b"}}).Err())
		<-dropped
		require.EqualValues(t, 2, server.Client().XLen(t.Context(), "plain").Val())
	})

	t.Run("one of a pipeline", func(t *testing.T) {
		tr := open(t, o)
		send(t, tr, "t", "first")
		dropped := proxy.DropReply("XADD")
		n, err := tr.Send(t.Context(), "t", []transport.Message{message("a"), message("b"), message("c")})
		<-dropped
		require.ErrorIs(t, err, transport.ErrPublishUnknown)
		require.NotErrorIs(t, err, transport.ErrNotPublished)
		require.Zero(t, n)
		require.EqualValues(t, 4, length(), "the pipeline was executed once")
		require.EqualValues(t, 3, tr.Stats().Unknown)
		require.Zero(t, tr.Stats().Resent)
	})

	t.Run("a single one", func(t *testing.T) {
		tr := open(t, o)
		send(t, tr, "t", "second")
		before := length()
		dropped := proxy.DropReply("XADD")
		_, err := tr.Send(t.Context(), "t", []transport.Message{message("a")})
		<-dropped
		require.ErrorIs(t, err, transport.ErrPublishUnknown)
		require.Equal(t, before+1, length())
	})

	t.Run("sent again on request", func(t *testing.T) {
		tr := open(t, o, redisstream.WithResend(1))
		s := subscribe(t, tr, "again", transport.Options{Group: "g"})
		send(t, tr, "again", "first")
		dropped := proxy.DropReply("XADD")
		n, err := tr.Send(t.Context(), "again", []transport.Message{message("twice")})
		<-dropped
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.EqualValues(t, 1, tr.Stats().Resent)
		require.Equal(t, []string{"first", "twice", "twice"}, ids(receive(t, s, 3)), "two entries with one ID, by which consumers tell")
	})
}

// A request that is lost cannot be told from a reply that is.
func TestRequestLost(t *testing.T) {
	server := redistest.Start(t)
	proxy, o := proxied(t, server)
	tr := open(t, o)
	send(t, tr, "t", "first")
	dropped := proxy.DropRequest("XADD")
	n, err := tr.Send(t.Context(), "t", []transport.Message{message("a")})
	<-dropped
	require.Zero(t, n)
	require.ErrorIs(t, err, transport.ErrPublishUnknown)
	require.EqualValues(t, 1, server.Client().XLen(t.Context(), "echo:{t}").Val())
	send(t, tr, "t", "second") // and it goes on
}

func TestServerThatCannotBeReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := l.Addr().String()
	l.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, in the kernel, and says nothing
	require.NoError(t, err)
	defer silent.Close()

	for what, addr := range map[string]string{"nobody listens": nobody, "nobody answers": silent.Addr().String()} {
		t.Run(what, func(t *testing.T) {
			tr := open(t, &redis.Options{Addr: addr})
			const deadline = 300 * time.Millisecond
			bounded := func(f func(ctx context.Context)) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				begin := time.Now()
				f(ctx)
				assert.Less(t, time.Since(begin), deadline+200*time.Millisecond)
			}
			bounded(func(ctx context.Context) {
				n, err := tr.Send(ctx, "t", []transport.Message{message("a")})
				assert.Zero(t, n)
				assert.ErrorIs(t, err, transport.ErrNotPublished, "it is known that nothing was sent")
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
			bounded(func(ctx context.Context) {
				_, err := tr.Subscribe(ctx, "t", transport.Options{Group: "g"})
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
			bounded(func(ctx context.Context) {
				_, err := redisstream.Open(ctx, "redis://user:s3cret@"+addr)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.NotContains(t, err.Error(), "s3cret")
			})
			bounded(func(ctx context.Context) { assert.Error(t, tr.Ping(ctx)) })
			assert.False(t, tr.Stats().Connected)
			assert.NotEmpty(t, tr.Stats().LastError)
		})
	}
	t.Run("without a deadline", func(t *testing.T) {
		tr := open(t, &redis.Options{Addr: nobody}, redisstream.WithSendTimeout(200*time.Millisecond))
		begin := time.Now()
		_, err := tr.Send(context.Background(), "t", []transport.Message{message("a")})
		assert.ErrorIs(t, err, transport.ErrNotPublished)
		assert.ErrorContains(t, err, "connection refused")
		assert.Less(t, time.Since(begin), 2*time.Second)
	})
}

// What the server refuses for good is told at once, with command and key, and
// is surely not published.
func TestPermanentRefusals(t *testing.T) {
	server := redistest.Start(t, redistest.WithPassword("right"))
	admin := server.Client()
	require.NoError(t, admin.Do(t.Context(), "ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+ping", "+client", "+hello").Err())
	require.NoError(t, admin.Set(t.Context(), "echo:{text}", "not a stream", 0).Err())
	as := func(user, password string) *redis.Options {
		o := server.Options()
		o.Username, o.Password = user, password
		return o
	}
	for _, c := range []struct {
		what, topic string
		o           *redis.Options
		says        []string
	}{
		{"wrong password", "t", as("", "wr0ng"), []string{"WRONGPASS"}},
		{"no password", "t", as("", ""), []string{"NOAUTH"}},
		{"no rights", "t", as("reader", "pw"), []string{"NOPERM", "echo:{t}"}},
		{"a key of another type", "text", as("", "right"), []string{"WRONGTYPE", "echo:{text}"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			tr := open(t, c.o)
			begin := time.Now()
			n, err := tr.Send(t.Context(), c.topic, []transport.Message{message("a")})
			assert.Zero(t, n)
			assert.ErrorIs(t, err, transport.ErrNotPublished)
			_, errSub := tr.Subscribe(t.Context(), c.topic, transport.Options{Group: "g"})
			require.Error(t, errSub)
			for _, text := range c.says {
				assert.ErrorContains(t, err, text)
				assert.ErrorContains(t, errSub, text)
			}
			assert.NotContains(t, err.Error()+errSub.Error(), "wr0ng")
			assert.Less(t, time.Since(begin), time.Second, "no retries")
		})
	}

	t.Run("while receiving", func(t *testing.T) {
		tr := open(t, as("", "right"))
		s := subscribe(t, tr, "turns", transport.Options{Group: "g"})
		failed := make(chan error, 1)
		go func() {
			_, err := s.Receive(t.Context(), make([]transport.Message, 1))
			failed <- err
		}()
		time.Sleep(50 * time.Millisecond)
		_, err := admin.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
			p.Del(t.Context(), "echo:{turns}")
			p.Set(t.Context(), "echo:{turns}", "text", 0)
			return nil
		})
		require.NoError(t, err)
		select {
		case err := <-failed:
			assert.ErrorContains(t, err, "WRONGTYPE")
			assert.ErrorContains(t, err, "echo:{turns}")
		case <-time.After(5 * time.Second):
			t.Fatal("Receive did not tell of the key's type")
		}
		_, err = s.Receive(t.Context(), make([]transport.Message, 1))
		assert.ErrorContains(t, err, "WRONGTYPE", "it is final")
	})
}

// What the server refuses for a while is tried again, never stored twice, and
// known not to be published when time is up.
func TestTemporaryRefusals(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client()
	config := func(name, value string) { require.NoError(t, admin.ConfigSet(t.Context(), name, value).Err()) }
	for _, c := range []struct {
		what, says string
		begin, end func()
	}{
		{"out of memory", "OOM", func() { config("maxmemory", "1") }, func() { config("maxmemory", "0") }},
		{"too few replicas", "NOREPLICAS", func() { config("min-replicas-to-write", "1") }, func() { config("min-replicas-to-write", "0") }},
		{"read-only replica", "READONLY", func() { require.NoError(t, admin.ReplicaOf(t.Context(), "127.0.0.1", "1").Err()) }, func() { require.NoError(t, admin.ReplicaOf(t.Context(), "NO", "ONE").Err()) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			tr := open(t, server.Options())
			topic := strings.ReplaceAll(c.what, " ", "-")
			s := subscribe(t, tr, topic, transport.Options{Group: "g"})
			send(t, tr, topic, "before")

			c.begin()
			ended := false
			defer func() {
				if !ended {
					c.end()
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			n, err := tr.Send(ctx, topic, []transport.Message{message("refused")})
			assert.Zero(t, n)
			assert.ErrorIs(t, err, transport.ErrNotPublished)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.ErrorContains(t, err, c.says)

			patient := make(chan error, 1)
			go func() {
				_, err := tr.Send(context.Background(), topic, []transport.Message{message("in the end")})
				patient <- err
			}()
			time.Sleep(200 * time.Millisecond)
			if c.says == "OOM" { // what is there can still be consumed
				ack(t, s, receive(t, s, 1)...)
			}
			c.end()
			ended = true
			require.NoError(t, <-patient)
			want := []string{"before", "in the end"}
			if c.says == "OOM" {
				want = want[1:]
			}
			got := receive(t, s, len(want))
			assert.Equal(t, want, ids(got))
			ack(t, s, got...)
			assert.True(t, tr.Stats().Connected)
		})
	}
}

// A server that loads its data is waited for.
func TestServerThatLoads(t *testing.T) {
	server := redistest.Start(t, redistest.WithAOF("always"), redistest.WithConfig("--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"))
	tr := open(t, server.Options())
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	want := numbered("m", 2000)
	msgs := make([]transport.Message, len(want))
	for i := range msgs {
		msgs[i] = message(want[i])
	}
	_, err := tr.Send(t.Context(), "t", msgs)
	require.NoError(t, err)
	server.Kill()
	require.NoError(t, server.Begin())
	send(t, tr, "t", "after")
	assert.Equal(t, append(want, "after"), ids(receive(t, s, len(want)+1)))
}

func TestTooManyClients(t *testing.T) {
	server := redistest.Start(t, redistest.WithConfig("--maxclients", "4"))
	var taken []*redis.Client
	for range 4 {
		c := redis.NewClient(server.Options())
		defer c.Close()
		taken = append(taken, c)
		conn := c.Conn()
		defer conn.Close()
		conn.Ping(t.Context())
	}
	tr := open(t, server.Options())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := tr.Send(ctx, "t", []transport.Message{message("a")})
	require.ErrorIs(t, err, transport.ErrNotPublished)
	for _, c := range taken {
		c.Close()
	}
	send(t, tr, "t", "b")
}

// A stopped server holds nobody longer than the context says, and what became
// of the message is unknown.
func TestStoppedServer(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	send(t, tr, "t", "a")
	server.Stop()
	for what, cancelled := range map[string]bool{"deadline": false, "cancelled": true} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if cancelled {
			ctx, cancel = context.WithCancel(t.Context())
			time.AfterFunc(200*time.Millisecond, cancel)
		}
		begin := time.Now()
		_, err := tr.Send(ctx, "t", []transport.Message{message(what)})
		assert.Less(t, time.Since(begin), 400*time.Millisecond)
		assert.Error(t, err)
		if what == "deadline" && !errors.Is(err, transport.ErrNotPublished) {
			assert.ErrorIs(t, err, transport.ErrPublishUnknown)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := s.Receive(ctx, make([]transport.Message, 1))
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(begin), 400*time.Millisecond)
	server.Continue()
	send(t, tr, "t", "after")
	eventually(t, 10*time.Second, "what was sent after", func() bool {
		for _, m := range receive(t, s, 1) {
			if m.ID == "after" {
				return true
			}
		}
		return false
	})
}

func TestReplicas(t *testing.T) {
	server := redistest.Start(t)
	replica := redistest.Start(t, redistest.WithReplicaOf(server))
	tr := open(t, server.Options(), redisstream.WithReplicas(1, 200*time.Millisecond))
	eventually(t, 10*time.Second, "the replica to be in step", func() bool {
		_, err := tr.Send(t.Context(), "t", []transport.Message{message("a"), message("b")})
		return err == nil
	})
	assert.Equal(t, server.Client().XLen(t.Context(), "echo:{t}").Val(), replica.Client().XLen(t.Context(), "echo:{t}").Val())

	replica.Stop()
	unreplied := tr.Stats().Unreplied
	before := server.Client().XLen(t.Context(), "echo:{t}").Val()
	n, err := tr.Send(t.Context(), "t", []transport.Message{message("c")})
	replica.Continue()
	require.Zero(t, n)
	missing, ok := errors.AsType[*redisstream.ReplicaError](err)
	require.True(t, ok, err)
	assert.Equal(t, redisstream.ReplicaError{Want: 1, Got: 0}, *missing)
	assert.ErrorIs(t, err, transport.ErrPublishUnknown)
	assert.NotErrorIs(t, err, transport.ErrNotPublished)
	assert.Equal(t, before+1, server.Client().XLen(t.Context(), "echo:{t}").Val(), "the primary has it")
	assert.EqualValues(t, 1, tr.Stats().Unreplied-unreplied)
}

// Readers that wait take no connection from those who publish, however small
// the pool.
func TestManySubscribersAndASmallPool(t *testing.T) {
	o := shared.Options()
	o.PoolSize = 1
	tr := fresh(o)
	defer tr.Close()
	var receiving sync.WaitGroup
	defer receiving.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string, 100)
	for i := range 50 {
		o := transport.Options{Group: "g"}
		if i%2 == 0 {
			o.Group = ""
		}
		s := subscribe(t, tr, fmt.Sprint("t", i), o)
		receiving.Go(func() {
			dst := make([]transport.Message, 1)
			for {
				if _, err := s.Receive(ctx, dst); err != nil {
					return
				}
				s.(transport.Acker).Ack(ctx, []transport.Receipt{dst[0].Receipt()})
				got <- dst[0].ID
			}
		})
	}
	begin := time.Now()
	for i := range 50 {
		send(t, tr, fmt.Sprint("t", i), fmt.Sprint("m", i))
	}
	for range 50 {
		select {
		case <-got:
		case <-time.After(5 * time.Second):
			t.Fatal("a subscriber got nothing")
		}
	}
	assert.Less(t, time.Since(begin), 2*time.Second)
}

func TestOpenEnv(t *testing.T) {
	host, port, _ := net.SplitHostPort(shared.Addr())
	t.Setenv("REDIS_URL", "")
	t.Setenv("REDIS_HOST", host)
	t.Setenv("REDIS_PORT", port)
	t.Setenv("REDIS_PASSWORD", "")
	tr, err := redisstream.OpenEnv(t.Context(), redisstream.WithPrefix(prefix()))
	require.NoError(t, err)
	send(t, tr, "t", "a")
	require.NoError(t, tr.Close())
	t.Setenv("REDIS_URL", shared.URL())
	t.Setenv("REDIS_HOST", "not.this.one.invalid")
	tr, err = redisstream.OpenEnv(t.Context())
	require.NoError(t, err)
	require.NoError(t, tr.Close())
}
