package redisstream_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// soaks keeps tests that take long, or machines that have more than others, for
// make soak.
func soaks(t *testing.T) {
	if os.Getenv("ECHO_SOAK") == "" {
		t.Skip("make soak runs it")
	}
}

// The end of the log is torn off, as when the power fails: what was written
// last is lost, and nothing else; nobody stops.
func TestPowerLoss(t *testing.T) {
	soaks(t)
	server := redistest.Start(t, redistest.WithAOF("everysec"), redistest.WithConfig("--aof-load-truncated", "yes"))
	tr := open(t, server.Options())
	bus := busOver(t, tr)
	l := newLedger()
	l.consume(t, bus, echo.WithLease(2*time.Second))
	for round := range 5 {
		l.publishAll(t.Context(), bus, fmt.Sprint("r", round), 500, 0)
		server.Stop()
		logs, err := filepath.Glob(filepath.Join(server.Dir(), "appendonlydir", "*.incr.aof"))
		require.NoError(t, err)
		require.NotEmpty(t, logs)
		file := logs[len(logs)-1]
		info, err := os.Stat(file)
		require.NoError(t, err)
		server.Kill()
		require.NoError(t, os.Truncate(file, info.Size()-min(info.Size()/2, 20_000)))
		require.NoError(t, server.Restart())
	}
	l.publishAll(t.Context(), bus, "after", 500, 0)
	eventually(t, 20*time.Second, "what came after the last loss", func() bool {
		for _, j := range l.missing() {
			if j.From == "after" {
				return false
			}
		}
		return true
	})
	// Whatever is missing is not in the stream any more: it was torn off, or had
	// not been written, which with everysec may wait for a slow disk. What was
	// handled twice had its acknowledgement there.
	kept := map[job]bool{}
	sub := subscribe(t, tr, jobs.Name(), transport.Options{Start: transport.Start{From: transport.Oldest}})
	for range server.Client().XLen(t.Context(), "echo:{"+jobs.Name()+"}").Val() {
		m := receive(t, sub, 1)
		var j job
		require.NoError(t, json.Unmarshal(m[0].Data, &j))
		kept[j] = true
		ack(t, sub, m...)
	}
	eventually(t, 20*time.Second, "all that the server kept", func() bool {
		return !slices.ContainsFunc(l.missing(), func(j job) bool { return kept[j] })
	})
	t.Logf("%d of %d accepted messages lost with the end of the log in 5 power failures, %d kept", len(l.missing()), len(l.accepted), len(kept))
}

// The server's clock jumps, forward and back.
func TestClockJumps(t *testing.T) {
	soaks(t)
	lib, clock := filepath.Join(t.TempDir(), "clock.so"), filepath.Join(t.TempDir(), "clock")
	out, err := exec.Command("gcc", "-shared", "-fPIC", "-O1", "-o", lib, "testdata/clock.c").CombinedOutput()
	require.NoError(t, err, "%s", out)
	set := func(offset time.Duration) {
		file, err := os.OpenFile(clock, os.O_CREATE|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		_, err = file.Write(binary.NativeEndian.AppendUint64(nil, uint64(int64(offset.Seconds()))))
		require.NoError(t, errors.Join(err, file.Close()))
	}
	set(0)
	t.Setenv("CLOCK_FILE", clock)
	t.Setenv("LD_PRELOAD", lib)
	server := redistest.Start(t)
	os.Unsetenv("LD_PRELOAD")
	tr := open(t, server.Options())
	bus := busOver(t, tr)
	l := newLedger()
	for range 2 {
		l.consume(t, bus, echo.WithLease(3*time.Second), echo.WithPrefetch(50, 1<<20))
	}
	var publishing sync.WaitGroup
	publishing.Go(func() { l.publishAll(context.Background(), bus, "p", 2000, 5*time.Millisecond) })
	for _, offset := range []time.Duration{time.Hour, 0, -time.Hour, 0} {
		time.Sleep(2 * time.Second)
		set(offset)
		now, err := server.Client().Time(t.Context()).Result()
		require.NoError(t, err)
		require.WithinDuration(t, time.Now().Add(offset), now, 10*time.Second, "the server's clock")
	}
	publishing.Wait()
	l.check(t, 20*time.Second, 4*2*50)
	assert.Zero(t, l.silent)
}

// A primary is killed and a replica takes over.
func TestSentinelFailover(t *testing.T) {
	soaks(t)
	for _, wait := range []bool{false, true} {
		t.Run(fmt.Sprintf("WithReplicas %t", wait), func(t *testing.T) {
			s := redistest.StartSentinel(t)
			opts := []redisstream.Option{redisstream.WithSendTimeout(30 * time.Second)}
			if wait {
				opts = append(opts, redisstream.WithReplicas(1, 50*time.Millisecond))
			}
			client := redis.NewFailoverClient(s.Options())
			defer client.Close()
			tr := redisstream.New(client, opts...)
			defer tr.Close()
			bus := busOver(t, tr)
			l := newLedger()
			l.consume(t, bus, echo.WithLease(2*time.Second))
			var publishing sync.WaitGroup
			stop := make(chan struct{})
			for p := range 4 {
				publishing.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
							l.publishAll(context.Background(), bus, fmt.Sprint("p", p, "-", n), 1, time.Millisecond)
						}
					}
				})
			}
			time.Sleep(2 * time.Second)
			s.Master.Kill()
			begin := time.Now()
			before := l.handledCount()
			eventually(t, 30*time.Second, "consuming to go on", func() bool { return l.handledCount() > before+100 })
			t.Logf("consuming went on %v after the primary was killed", time.Since(begin).Round(100*time.Millisecond))
			assert.Less(t, time.Since(begin), 15*time.Second)
			time.Sleep(time.Second)
			close(stop)
			publishing.Wait()
			time.Sleep(5 * time.Second)
			lost := len(l.missing())
			t.Logf("%d of %d accepted messages lost, %d unknown", lost, len(l.accepted), len(l.unknown))
			if wait { // nothing that a replica had
				assert.Zero(t, lost)
			}
		})
	}
}

// A slot moves to another node while messages flow.
func TestClusterResharding(t *testing.T) {
	soaks(t)
	cluster := redistest.StartCluster(t, 3)
	client := redis.NewClusterClient(cluster.Options())
	defer client.Close()
	tr := redisstream.New(client, redisstream.WithSendTimeout(30*time.Second))
	defer tr.Close()
	bus := busOver(t, tr)
	l := newLedger()
	for range 2 {
		l.consume(t, bus, echo.WithLease(3*time.Second))
	}
	var publishing sync.WaitGroup
	for p := range 4 {
		publishing.Go(func() { l.publishAll(context.Background(), bus, fmt.Sprint("p", p), 2000, time.Millisecond) })
	}
	slot := int(client.ClusterKeySlot(t.Context(), key).Val())
	for round := range 6 {
		time.Sleep(500 * time.Millisecond)
		owner, err := cluster.Owner(slot)
		require.NoError(t, err)
		for i, n := range cluster.Nodes {
			if n == owner {
				require.NoError(t, cluster.MoveSlot(slot, cluster.Nodes[(i+1+round%2)%3], func() { time.Sleep(300 * time.Millisecond) }))
				break
			}
		}
	}
	publishing.Wait()
	l.check(t, 20*time.Second, int(tr.Stats().Redelivered))
	assert.Zero(t, l.silent)
}

// Everything at once, for minutes.
func TestSoak(t *testing.T) {
	soaks(t)
	server := redistest.Start(t, redistest.WithAOF("always"))
	proxy, o := proxied(t, server)
	tr := open(t, o, redisstream.WithSendTimeout(30*time.Second))
	bus := busOver(t, tr)
	l := newLedger()
	crew := newCrew(t, proxy.Addr())
	for range 4 {
		crew.start("consume", "")
	}
	proxy.Storm(500*time.Millisecond, 5*time.Second, 7)
	proxy.Delay(100*time.Microsecond, 2*time.Millisecond)
	stop := make(chan struct{})
	var publishing sync.WaitGroup
	for p := range 4 {
		publishing.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					l.publishAll(context.Background(), bus, fmt.Sprint("p", p, "-", n), 10, time.Millisecond)
				}
			}
		})
	}
	killed := 0
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		switch killed++; {
		case killed%20 == 0:
			server.Kill()
			require.NoError(t, server.Restart())
		case killed%7 == 0:
			proxy.Blackhole(true)
			time.Sleep(2 * time.Second)
			proxy.Blackhole(false)
		default:
			crew.kill(killed % 4)
			crew.start("consume", "")
		}
	}
	close(stop)
	publishing.Wait()
	proxy.Storm(0, 0, 0)
	proxy.Delay(0, 0)
	crew.check(l, workerLease+30*time.Second, 1<<30)
	t.Logf("%+v", tr.Stats())
}
