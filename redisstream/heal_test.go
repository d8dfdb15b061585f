package redisstream_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// A server that is killed and started again loses nothing that was
// acknowledged, if it writes before it answers.
func TestServerKilled(t *testing.T) {
	for fsync, lossless := range map[string]bool{"always": true, "everysec": true} {
		t.Run("appendfsync "+fsync, func(t *testing.T) {
			server := redistest.Start(t, redistest.WithAOF(fsync))
			tr := open(t, server.Options())
			bus := busOver(t, tr)
			l := newLedger()
			l.consume(t, bus, echo.WithLease(2*time.Second))
			var publishing sync.WaitGroup
			for p := range 8 {
				publishing.Go(func() { l.publishAll(context.Background(), bus, fmt.Sprint("p", p), 400, 2*time.Millisecond) })
			}
			for range 3 {
				time.Sleep(200 * time.Millisecond)
				server.Kill()
				time.Sleep(100 * time.Millisecond)
				require.NoError(t, server.Restart())
			}
			publishing.Wait()
			require.True(t, lossless)
			l.check(t, 10*time.Second, 3*1024)
			eventually(t, 10*time.Second, "all to be acknowledged", func() bool { return pending(t, server, key, "g") == 0 })
			assert.Zero(t, l.silent, "repetitions that said they were the first")
			assert.Zero(t, tr.Stats().GroupsRecreated)
		})
	}
}

// A server that comes back without its data is gone on with, and that is told.
func TestServerKilledWithoutPersistence(t *testing.T) {
	server := redistest.Start(t)
	var log logged
	tr := open(t, server.Options(), redisstream.WithLogger(log.logger()))
	bus := busOver(t, tr)
	l := newLedger()
	l.consume(t, bus)
	l.publishAll(t.Context(), bus, "before", 100, 0)
	l.check(t, 5*time.Second, 0)
	server.Kill()
	require.NoError(t, server.Restart())
	l.publishAll(t.Context(), bus, "after", 100, 0)
	l.check(t, 10*time.Second, 0)
	assert.EqualValues(t, 1, tr.Stats().GroupsRecreated)
	assert.Contains(t, log.String(), "the group was lost and made again")
	assert.Contains(t, log.String(), "no append-only file", "the warning at the start")
}

// Connections that die all the time lose nothing and repeat no more than what
// was in flight.
func TestConnectionsThatDie(t *testing.T) {
	server := redistest.Start(t)
	proxy, o := proxied(t, server)
	tr := open(t, o, redisstream.WithLease(3*time.Second))
	bus := busOver(t, tr)
	l := newLedger()
	for range 3 {
		l.consume(t, bus, echo.WithPrefetch(200, 1<<20))
	}
	proxy.Storm(50*time.Millisecond, 500*time.Millisecond, 1)
	n := 20_000
	if testing.Short() {
		n = 2_000
	}
	var publishing sync.WaitGroup
	for p := range 20 {
		publishing.Go(func() { l.publishAll(context.Background(), bus, fmt.Sprint("p", p), n/20, 0) })
	}
	publishing.Wait()
	for begin := time.Now(); time.Since(begin) < 3*time.Second; {
		l.publishAll(context.Background(), bus, fmt.Sprint("late", time.Since(begin)), 10, 5*time.Millisecond)
	}
	proxy.Storm(0, 0, 0)
	l.check(t, 15*time.Second, int(tr.Stats().Redelivered)+int(tr.Stats().Resent))
	assert.Positive(t, tr.Stats().Reconnects)
	assert.Zero(t, l.silent, "repetitions that said they were the first")
	eventually(t, 10*time.Second, "all to be acknowledged", func() bool { return pending(t, server, key, "g") == 0 })
}

// A connection that swallows everything is given up, and what the server gave
// to it comes back.
func TestBlackhole(t *testing.T) {
	server := redistest.Start(t)
	proxy, o := proxied(t, server)
	tr := open(t, o, redisstream.WithLease(2*time.Second))
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	direct := open(t, server.Options())
	send(t, direct, "t", "before")
	ack(t, s, receive(t, s, 1)...)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan transport.Message, 10)
	go func() {
		dst := make([]transport.Message, 1)
		for {
			if _, err := s.Receive(ctx, dst); err != nil {
				return
			}
			got <- dst[0]
		}
	}()
	time.Sleep(100 * time.Millisecond) // so that it blocks in the server
	for _, mode := range []func(bool){proxy.Blackhole, proxy.BlackholeReplies} {
		mode(true)
		begin := time.Now()
		send(t, direct, "t", "into the hole") // which the server gives to the dead connection
		time.Sleep(1500 * time.Millisecond)
		proxy.Cut()
		mode(false)
		select {
		case m := <-got:
			assert.Equal(t, "into the hole", m.ID)
			assert.Less(t, time.Since(begin), 10*time.Second)
			ack(t, s, m)
		case <-time.After(15 * time.Second):
			t.Fatal("what went into the hole did not come back")
		}
	}
	// And by itself, without a cut: the reader gives up on a silent server.
	proxy.Blackhole(true)
	reconnects := tr.Stats().Reconnects
	eventually(t, 6*time.Second, "the reader to give up", func() bool { return tr.Stats().Reconnects > reconnects })
	begin := time.Now()
	require.NoError(t, s.Close())
	assert.Less(t, time.Since(begin), 200*time.Millisecond, "Close with a server that does not answer")
	begin = time.Now()
	require.NoError(t, tr.Close())
	assert.Less(t, time.Since(begin), 300*time.Millisecond, "Close with a server that does not answer")
}

// The server is stopped for longer than the lease.
func TestServerStoppedForLongerThanTheLease(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options(), redisstream.WithSendTimeout(20*time.Second))
	bus := busOver(t, tr)
	l := newLedger()
	for range 2 {
		l.consume(t, bus, echo.WithLease(500*time.Millisecond), echo.WithPrefetch(50, 1<<20))
	}
	var publishing sync.WaitGroup
	publishing.Go(func() { l.publishAll(context.Background(), bus, "p", 500, 5*time.Millisecond) })
	for _, pause := range []time.Duration{time.Second, 3 * time.Second} {
		time.Sleep(300 * time.Millisecond)
		server.Stop()
		time.Sleep(pause)
		server.Continue()
	}
	publishing.Wait()
	l.check(t, 10*time.Second, 2*2*50)
	assert.Zero(t, l.silent)
}

// Streams and groups that vanish are made again; nobody stops, nobody spins.
func TestGroundThatGoes(t *testing.T) {
	for what, destroy := range map[string]func(ctx context.Context, c *redis.Client, key string) error{
		"FLUSHALL": func(ctx context.Context, c *redis.Client, key string) error { return c.FlushAll(ctx).Err() },
		"DEL":      func(ctx context.Context, c *redis.Client, key string) error { return c.Del(ctx, key).Err() },
		"RENAME": func(ctx context.Context, c *redis.Client, key string) error {
			return c.Rename(ctx, key, "elsewhere").Err()
		},
		"XGROUP DESTROY": func(ctx context.Context, c *redis.Client, key string) error {
			return c.XGroupDestroy(ctx, key, "g").Err()
		},
		"DEL and XADD at once": func(ctx context.Context, c *redis.Client, key string) error {
			_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Del(ctx, key)
				p.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"m", "1 7 10 foreign text/plain\nx"}})
				return nil
			})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			server := redistest.Start(t)
			tr := open(t, server.Options())
			topic := "t"
			key := "echo:{t}"
			for _, state := range []string{"idle", "blocked", "holding"} {
				s, err := tr.Subscribe(t.Context(), topic, transport.Options{Group: "g"})
				require.NoError(t, err)
				send(t, tr, topic, "before")
				var held []transport.Message
				for len(held) == 0 || held[len(held)-1].ID != "before" {
					held = append(held, receive(t, s, 1)...)
				}
				if state != "holding" {
					ack(t, s, held...)
				}
				got := make(chan error, 1)
				var after transport.Message
				wait := func() {
					dst := make([]transport.Message, 1)
					for after.ID != "after" {
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						n, err := s.Receive(ctx, dst)
						cancel()
						if err != nil || n == 0 {
							got <- err
							return
						}
						after = dst[0]
					}
					got <- nil
				}
				if state == "blocked" {
					go wait()
					time.Sleep(50 * time.Millisecond)
				}
				require.NoError(t, destroy(t.Context(), server.Client(), key))
				if state == "holding" {
					err := s.(transport.Acker).Ack(t.Context(), []transport.Receipt{held[len(held)-1].Receipt()})
					assert.ErrorIs(t, err, transport.ErrLeaseLost, "the server knows nothing of the delivery")
				}
				if state == "blocked" {
					eventually(t, 5*time.Second, "the group to be there again", func() bool {
						return server.Client().XInfoGroups(t.Context(), key).Err() == nil && len(server.Client().XInfoGroups(t.Context(), key).Val()) > 0
					})
				}
				send(t, tr, topic, "after")
				if state != "blocked" {
					go wait()
				}
				require.NoError(t, <-got, state)
				require.NoError(t, s.Close())
				require.NoError(t, server.Client().Del(t.Context(), key, "elsewhere").Err())
			}
			assert.EqualValues(t, 3, tr.Stats().GroupsRecreated)
		})
	}
}

// Where a lost group is made again is a choice.
func TestGroupLost(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	for _, c := range []struct {
		policy redisstream.GroupLost
		want   []string
	}{
		{redisstream.Replay, []string{"a", "b", "c", "d"}},
		{redisstream.Resume, []string{"b", "c", "d"}}, // b was not settled
		{redisstream.Fail, nil},
	} {
		client.FlushAll(t.Context())
		tr := open(t, server.Options(), redisstream.WithGroupLost(c.policy))
		s := subscribe(t, tr, "t", transport.Options{Group: "g"})
		send(t, tr, "t", "a", "b", "c")
		msgs := receive(t, s, 3)
		ack(t, s, msgs[0], msgs[2])
		require.NoError(t, client.XGroupDestroy(t.Context(), "echo:{t}", "g").Err())
		send(t, tr, "t", "d")
		if c.policy == redisstream.Fail {
			_, err := s.Receive(t.Context(), make([]transport.Message, 1))
			require.ErrorIs(t, err, redisstream.ErrGroupLost)
			_, err = s.Receive(t.Context(), make([]transport.Message, 1))
			require.ErrorIs(t, err, redisstream.ErrGroupLost, "it is final")
			continue
		}
		assert.Equal(t, c.want, ids(receive(t, s, len(c.want))))
	}
}

// An evicted stream takes its groups with it. There is a warning at the start,
// and no hot loop afterwards.
func TestEviction(t *testing.T) {
	server := redistest.Start(t, redistest.WithConfig("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"))
	var log logged
	tr := open(t, server.Options(), redisstream.WithLogger(log.logger()))
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	assert.Contains(t, log.String(), "allkeys-lru")
	send(t, tr, "t", "a")
	ack(t, s, receive(t, s, 1)...)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 1)
	var receiving sync.WaitGroup
	receiving.Go(func() {
		dst := make([]transport.Message, 1)
		for {
			if _, err := s.Receive(ctx, dst); err != nil {
				return
			}
			got <- dst[0].ID
		}
	})
	filler := strings.Repeat("x", 50_000)
	for i := 0; server.Client().Exists(t.Context(), "echo:{t}").Val() == 1 && i < 2000; i++ {
		require.NoError(t, server.Client().Set(t.Context(), fmt.Sprint("filler", i), filler, 0).Err())
	}
	before := server.Client().Info(t.Context(), "commandstats").Val()
	time.Sleep(2 * time.Second)
	rate := calls(server.Client().Info(t.Context(), "commandstats").Val()) - calls(before)
	assert.Less(t, rate, 40, "commands within two seconds after the eviction")
	server.Client().ConfigSet(t.Context(), "maxmemory", "0")
	eventually(t, 10*time.Second, "a message after the eviction", func() bool {
		send(t, tr, "t", "after")
		select {
		case id := <-got:
			return id == "after"
		case <-time.After(100 * time.Millisecond):
			return false
		}
	})
	cancel()
	receiving.Wait()
}

// calls counts the commands of this transport that INFO commandstats tells of.
func calls(info string) (n int) {
	for line := range strings.Lines(info) {
		var k int
		name, rest, _ := strings.Cut(line, ":")
		if fmt.Sscanf(rest, "calls=%d", &k); strings.HasPrefix(name, "cmdstat_x") || name == "cmdstat_evalsha" {
			n += k
		}
	}
	return n
}

// What is trimmed before a group or a broadcast had it is counted and told.
func TestTrimmedFromOutside(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	client := server.Client()

	t.Run("pending and undelivered", func(t *testing.T) {
		s := subscribe(t, tr, "t", transport.Options{Group: "g", Lease: 200 * time.Millisecond})
		send(t, tr, "t", numbered("m", 10)...)
		require.Len(t, receive(t, s, 3), 3) // and forgotten
		require.NoError(t, client.XTrimMaxLen(t.Context(), "echo:{t}", 2).Err())
		lost := uint64(0)
		var got []transport.Message
		eventually(t, 10*time.Second, "all losses to be told", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			dst := make([]transport.Message, 5)
			n, err := s.Receive(ctx, dst)
			if e, ok := err.(*transport.LostError); ok {
				lost += e.Count
			}
			got = append(got, dst[:n]...)
			if n > 0 {
				ack(t, s, dst[:n]...)
			}
			return lost == 8
		})
		assert.Equal(t, []string{"m-8", "m-9"}, ids(got))
		assert.EqualValues(t, 8, tr.Stats().Lost)
		assert.Zero(t, pending(t, server, "echo:{t}", "g"), "what is gone is not pending for ever")
	})
	t.Run("broadcast", func(t *testing.T) {
		s := subscribe(t, tr, "b", transport.Options{MaxPending: 1})
		send(t, tr, "b", "first")
		ack(t, s, receive(t, s, 1)...)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // silent for long enough to know how many there were
		_, err := s.Receive(ctx, make([]transport.Message, 1))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		send(t, tr, "b", numbered("m", 5)...)
		require.NoError(t, client.XTrimMaxLen(t.Context(), "echo:{b}", 1).Err())
		m := receive(t, s, 1)
		require.Equal(t, "m-4", m[0].ID)
		ack(t, s, m...)
		ctx, cancel = context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		_, err = s.Receive(ctx, make([]transport.Message, 1))
		lost, ok := err.(*transport.LostError)
		require.True(t, ok, err)
		assert.EqualValues(t, 4, lost.Count)
	})
}

// Cancelling right when a message comes strands none.
func TestCancelWhenEntriesArrive(t *testing.T) {
	tr := fresh(shared.Options(), redisstream.WithLease(time.Minute))
	defer tr.Close()
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	n := 3000
	if testing.Short() {
		n = 300
	}
	seen := map[string]int{}
	dst := make([]transport.Message, 4)
	take := func(ctx context.Context) {
		k, err := s.Receive(ctx, dst)
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		for _, m := range dst[:k] {
			seen[m.ID]++
		}
		if k > 0 {
			ack(t, s, dst[:k]...)
		}
	}
	for i := range n {
		ctx, cancel := context.WithCancel(t.Context())
		var racing sync.WaitGroup
		racing.Go(func() {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			cancel()
		})
		racing.Go(func() {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			tr.Send(context.Background(), "t", []transport.Message{message(fmt.Sprint(i))})
		})
		take(ctx)
		racing.Wait()
	}
	eventually(t, 10*time.Second, "every message", func() bool {
		if len(seen) < n {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(20*time.Millisecond, cancel)
			take(ctx)
		}
		return len(seen) == n
	})
	for id, k := range seen {
		assert.Equal(t, 1, k, id)
	}
}

// Subscriptions that come and go in a crowd, over the typed layer.
func TestCancelStorm(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	bus := busOver(t, tr)
	l := newLedger()
	n := 200
	if testing.Short() {
		n = 40
	}
	var crowd sync.WaitGroup
	for i := range n {
		crowd.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(400))*time.Millisecond)
			defer cancel()
			c, err := echo.Subscribe(context.Background(), bus, jobs, echo.WithGroup("g"), echo.WithPrefetch(8, 1<<20))
			if err != nil {
				t.Error(err)
				return
			}
			c.Run(ctx, func(_ context.Context, m echo.Message[job]) error {
				l.handle(m.Value, m.ID, m.Attempt)
				return nil
			})
			if i%2 == 0 {
				c.Close()
			}
		})
	}
	l.publishAll(t.Context(), bus, "p", 500, time.Millisecond)
	crowd.Wait()
	l.consume(t, bus)
	l.check(t, 10*time.Second, int(tr.Stats().Redelivered))
	assert.Zero(t, l.silent)
}

// logged is what a logger was told.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
