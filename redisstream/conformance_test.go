package redisstream_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/policytest"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport { return fresh(shared.Options()) })
}

func TestPolicies(t *testing.T) {
	policytest.Run(t, func(t testing.TB) transport.Transport { return fresh(shared.Options()) })
}

// fresh returns a transport with keys of its own.
func fresh(o *redis.Options, opts ...redisstream.Option) *redisstream.Transport {
	client := redis.NewClient(o)
	defer client.Close() // which the transport does not use
	return redisstream.New(client, append([]redisstream.Option{redisstream.WithPrefix(prefix())}, opts...)...)
}

var prefixes atomic.Int64

func prefix() string { return "echo:test" + time.Duration(prefixes.Add(1)).String() }

// The rights of docs/redis-acl.conf suffice, and each of them is needed.
func TestConformanceWithLeastRights(t *testing.T) {
	acl, err := os.ReadFile("../docs/redis-acl.conf")
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(acl)) {
		if !strings.HasPrefix(line, "#") { // comments are for redis.conf alone
			lines = append(lines, line)
		}
	}
	file := filepath.Join(t.TempDir(), "users.acl")
	require.NoError(t, os.WriteFile(file, []byte(strings.Join(lines, "")+"user root on nopass ~* &* +@all\n"), 0o600))
	server := redistest.Start(t, redistest.WithACL(file))
	o := server.Options()
	o.Username, o.Password = "echo", "change-me"
	open := func(t testing.TB) transport.Transport { return fresh(o) }
	transporttest.Run(t, open)
	t.Run("policies", func(t *testing.T) { policytest.Run(t, open) })

	client := redis.NewClient(o)
	defer client.Close()
	for _, refused := range [][]any{{"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"KEYS", "*"}, {"XADD", "other", "*", "a", "b"}, {"XGROUP", "DESTROY", "echo:x", "g"},
		{"EVAL", "return redis.call('FLUSHALL')", 0}, {"EVAL", "return redis.call('XADD', 'other', '*', 'a', 'b')", 0}} {
		err := client.Do(t.Context(), refused...).Err()
		require.Error(t, err, refused)
		require.Regexp(t, "perm|can't run this command|can't access", err.Error(), refused)
	}
}

func TestConformanceOnCluster(t *testing.T) {
	cluster := redistest.StartCluster(t, 3)
	open := func(t testing.TB) transport.Transport {
		client := redis.NewClusterClient(cluster.Options())
		defer client.Close()
		return redisstream.New(client, redisstream.WithPrefix(prefix()))
	}
	transporttest.Run(t, open)
	t.Run("policies", func(t *testing.T) { policytest.Run(t, open) })
}

func TestConformanceWithTLS(t *testing.T) {
	server := redistest.Start(t, redistest.WithTLS(), redistest.WithPassword("pass:word@x"))
	transporttest.Run(t, func(t testing.TB) transport.Transport { return fresh(server.Options()) })

	o := server.Options()
	o.TLSConfig = o.TLSConfig.Clone()
	o.TLSConfig.RootCAs = nil
	tr := open(t, o, redisstream.WithSendTimeout(time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := tr.Send(ctx, "t", []transport.Message{message("a")})
	require.ErrorIs(t, err, transport.ErrNotPublished)
	require.ErrorContains(t, err, "certificate")
}

// Slow and stuttering networks change no promise. The rows that measure time
// need a network faster than this one, so a few milliseconds have to do.
func TestConformanceOverABadNetwork(t *testing.T) {
	proxy, o := proxied(t, shared)
	proxy.Delay(200*time.Microsecond, time.Millisecond)
	proxy.Chunk(700)
	open := func(t testing.TB) transport.Transport { return fresh(o) }
	transporttest.Run(t, open)
	t.Run("policies", func(t *testing.T) { policytest.Run(t, open) })
}
