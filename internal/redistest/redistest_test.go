package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("REDISTEST_CHILD") != "" {
		child()
	}
	goleak.VerifyTestMain(m)
}

// child starts a server, says where, and waits to be killed.
func child() {
	s, err := New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.Pid(), s.Dir())
	time.Sleep(time.Minute)
	os.Exit(1)
}

// client returns a client that gives up at once.
func client(t *testing.T, o *redis.Options) *redis.Client {
	o.MaxRetries, o.DialerRetries = -1, 1
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestServerKeepsItsDataWhenItIsKilled(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t, WithAOF("always"))
	addr, pid := s.Addr(), s.Pid()
	require.NoError(t, s.Client().Set(ctx, "k", "v", 0).Err())

	s.Kill()
	require.Error(t, client(t, s.Options()).Ping(ctx).Err())
	require.Equal(t, pid, s.Pid())
	s.Kill() // no harm

	require.NoError(t, s.Restart())
	require.Equal(t, addr, s.Addr())
	require.NotEqual(t, pid, s.Pid())
	require.Equal(t, "v", s.Client().Get(ctx, "k").Val())

	require.NoError(t, s.Restart(), "while it runs")
	require.Equal(t, "v", s.Client().Get(ctx, "k").Val())
	require.Contains(t, s.Log(), "Ready to accept connections")
}

func TestServerWithoutAppendOnlyFileForgets(t *testing.T) {
	t.Parallel()
	s := Start(t)
	require.NoError(t, s.Client().Set(t.Context(), "k", "v", 0).Err())
	require.NoError(t, s.Restart())
	require.ErrorIs(t, s.Client().Get(t.Context(), "k").Err(), redis.Nil)
}

func TestBeginDoesNotWaitForTheData(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t, WithAOF("no"), WithConfig("--key-load-delay", "200"))
	pipe := s.Client().Pipeline()
	for i := range 4000 {
		pipe.Set(ctx, strconv.Itoa(i), "v", 0)
	}
	_, err := pipe.Exec(ctx)
	require.NoError(t, err)

	require.NoError(t, s.Begin())
	require.True(t, redis.IsLoadingError(client(t, s.Options()).Get(ctx, "1").Err()))
	require.NoError(t, s.Restart())
	require.Equal(t, int64(4000), s.Client().DBSize(ctx).Val())
}

func TestStoppedServerAnswersWhenItContinues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t)
	o := s.Options()
	o.ReadTimeout = 100 * time.Millisecond
	c := client(t, o)
	require.NoError(t, c.Ping(ctx).Err())
	s.Stop()
	require.ErrorIs(t, c.Set(ctx, "k", "v", 0).Err(), os.ErrDeadlineExceeded)
	s.Continue()
	require.Equal(t, "v", s.Client().Get(ctx, "k").Val())
	s.Stop()
	s.Kill()
	require.NoError(t, s.Restart())
}

func TestPassword(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t, WithPassword("se cret/@"))
	require.NoError(t, s.Client().Ping(ctx).Err())
	o, err := redis.ParseURL(s.URL())
	require.NoError(t, err)
	require.NoError(t, client(t, o).Ping(ctx).Err())
	require.ErrorContains(t, client(t, &redis.Options{Addr: s.Addr()}).Ping(ctx).Err(), "NOAUTH")
}

func TestACL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "users.acl")
	require.NoError(t, os.WriteFile(file, []byte("user default off\nuser bob on >pw ~* &* +@all\n"), 0o600))
	s := Start(t, WithACL(file))
	require.ErrorContains(t, s.Client().Ping(ctx).Err(), "NOAUTH")
	o := s.Options()
	o.Username, o.Password = "bob", "pw"
	require.NoError(t, client(t, o).Ping(ctx).Err())
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t, WithTLS())
	require.FileExists(t, s.CAFile())
	require.True(t, strings.HasPrefix(s.URL(), "rediss://"), s.URL())
	require.NoError(t, s.Client().Set(ctx, "k", "v", 0).Err())

	plain := s.Options()
	plain.TLSConfig = nil
	require.Error(t, client(t, plain).Ping(ctx).Err())
	other := s.Options()
	other.TLSConfig = Start(t, WithTLS()).TLS()
	require.ErrorContains(t, client(t, other).Ping(ctx).Err(), "certificate")

	replica := Start(t, WithReplicaOf(s))
	require.Eventually(t, func() bool { return replica.Client().Get(ctx, "k").Val() == "v" }, 5*time.Second, 10*time.Millisecond)
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	s, err := New()
	require.NoError(t, err)
	require.NoError(t, s.Client().Ping(t.Context()).Err())
	s.Stop()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.NoDirExists(t, s.Dir())
	_, err = net.Dial("tcp", s.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.ErrorIs(t, s.Client().Ping(t.Context()).Err(), redis.ErrClosed)
	require.EqualError(t, s.Restart(), "redistest: the server was closed")
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	_, err := New(WithConfig("--maxmemory", "lots"))
	require.ErrorContains(t, err, "redistest: redis-server ended: exit status 1\n")
	require.ErrorContains(t, err, "argument must be a memory value")
}

func TestTakenPort(t *testing.T) {
	t.Parallel()
	s := Start(t)
	other := Start(t)
	s.Kill()
	port := s.port
	s.port = other.port
	conf, err := os.ReadFile(s.file("redis.conf"))
	require.NoError(t, err)
	conf = []byte(strings.ReplaceAll(string(conf), strconv.Itoa(port), strconv.Itoa(other.port)))
	require.NoError(t, os.WriteFile(s.file("redis.conf"), conf, 0o600))
	require.ErrorIs(t, s.Restart(), errPortTaken)
}

func TestMissingBinary(t *testing.T) {
	defer func(name string) { binary = name }(binary)
	binary = "redis-server-that-is-missing"
	_, err := New()
	require.EqualError(t, err, "redistest: redis-server-that-is-missing is not installed; run scripts/setup, or: apt-get install redis-server")
}

func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := StartCluster(t, 3, WithAOF("always"), WithPassword("pw"))
	client := redis.NewClusterClient(c.Options())
	t.Cleanup(func() { client.Close() })
	for i := range 100 {
		require.NoError(t, client.Set(ctx, strconv.Itoa(i), i, 0).Err())
	}

	keys := []string{"{a}1", "{a}2", "{a}3", "{a}4"}
	for _, k := range keys {
		require.NoError(t, client.Set(ctx, k, k, 0).Err())
	}
	slot := int(client.ClusterKeySlot(ctx, "{a}").Val())
	from, err := c.Owner(slot)
	require.NoError(t, err)
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	check := func() {
		for _, k := range keys {
			require.Equal(t, k, client.Get(ctx, k).Val())
		}
	}
	called := false
	err = c.MoveSlot(slot, to, func() {
		called = true
		check()
		require.Equal(t, int64(2), from.Client().ClusterCountKeysInSlot(ctx, slot).Val())
		require.ErrorContains(t, from.Client().Get(ctx, "{a}new").Err(), "ASK ")
		require.NoError(t, client.Set(ctx, "{a}new", "{a}new", 0).Err())
	})
	require.NoError(t, err)
	require.True(t, called)
	keys = append(keys, "{a}new")
	check()
	require.ErrorContains(t, from.Client().Get(ctx, "{a}1").Err(), "MOVED ")
	owner, err := c.Owner(slot)
	require.NoError(t, err)
	require.Equal(t, to.Addr(), owner.Addr())

	to.Kill()
	require.NoError(t, to.Restart())
	require.Eventually(t, func() bool { return client.Get(ctx, "{a}1").Val() == "{a}1" }, 10*time.Second, 50*time.Millisecond)
	check()
}

func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := StartSentinel(t)
	o := s.Options()
	o.DialerRetries = 1
	client := redis.NewFailoverClient(o)
	t.Cleanup(func() { client.Close() })
	require.NoError(t, client.Set(ctx, "k", "v", 0).Err())
	require.Equal(t, int64(1), s.Master.Client().Wait(ctx, 1, time.Second).Val())
	s.Master.Kill()
	begin := time.Now()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return client.Set(ctx, "k2", "v", 0).Err() == nil
	}, 15*time.Second, 50*time.Millisecond)
	t.Logf("failed over after %v", time.Since(begin))
	require.Equal(t, "v", s.Replica.Client().Get(ctx, "k").Val())
}
