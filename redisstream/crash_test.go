package redisstream_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// times is how often a fault is repeated: fewer with -short, more as
// ECHO_SOAK says.
func times(n int) int {
	if testing.Short() {
		return max(1, n/10)
	}
	if factor, err := strconv.Atoi(os.Getenv("ECHO_SOAK")); err == nil {
		return n * factor
	}
	return n
}

// held is how many messages a worker may be in the middle of.
const held = 32

// Consumers are killed at random points of their work, again and again.
func TestConsumersKilledAtRandom(t *testing.T) {
	server := redistest.Start(t)
	crew := newCrew(t, server.Addr())
	for range 3 {
		crew.start("consume", "")
	}
	bus := busOver(t, open(t, server.Options()))
	l := newLedger()
	publishing := make(chan struct{})
	stop, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(publishing)
		for n := 0; stop.Err() == nil; n++ {
			l.publishAll(t.Context(), bus, "p"+strconv.Itoa(n), 20, time.Millisecond)
		}
	}()
	kills := times(200)
	for range kills {
		time.Sleep(time.Duration(20+rand.IntN(80)) * time.Millisecond)
		crew.kill(rand.IntN(3))
		crew.start("consume", "")
	}
	cancel()
	<-publishing
	crew.check(l, workerLease+10*time.Second, kills*held)
	eventually(t, 10*time.Second, "all to be settled", func() bool { return pending(t, server, key, "g") == 0 })
}

// A worker that dies between handling and acknowledging has its work done
// again, and the repetition says so.
func TestConsumerKilledBeforeItAcknowledges(t *testing.T) {
	server := redistest.Start(t)
	crew := newCrew(t, server.Addr())
	bus := busOver(t, open(t, server.Options()))
	l := newLedger()
	l.publishAll(t.Context(), bus, "p", 1, 0)
	crew.start("dies after handling", "")
	eventually(t, 10*time.Second, "the first handling", func() bool { return len(crew.lines("handled")) == 1 })
	crew.start("consume", "")
	eventually(t, 10*time.Second, "the second handling", func() bool { return len(crew.lines("handled")) == 2 })
	for i, f := range crew.lines("handled") {
		assert.Equal(t, strconv.Itoa(i+1), f[3], "attempt")
	}
	crew.check(l, 0, 1)
}

// A worker with a name takes up at once what it held when it was killed.
func TestNamedConsumerTakesUpWhatItHeld(t *testing.T) {
	const lease = time.Minute
	server := redistest.Start(t)
	first := open(t, server.Options(), redisstream.WithName("worker-7"), redisstream.WithLease(lease))
	s := subscribe(t, first, "t", transport.Options{Group: "g"})
	send(t, first, "t", numbered("m", 5)...)
	ack(t, s, receive(t, s, 5)[:2]...)

	other := open(t, server.Options(), redisstream.WithName("worker-70"), redisstream.WithLease(lease))
	o := subscribe(t, other, "t", transport.Options{Group: "g"})
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := o.Receive(ctx, make([]transport.Message, 5))
	require.ErrorIs(t, err, context.DeadlineExceeded, "a consumer of another name waits for the lease")

	// A start of the same name, while the first one never said good-bye.
	again := open(t, server.Options(), redisstream.WithName("worker-7"), redisstream.WithLease(lease))
	s2 := subscribe(t, again, "t", transport.Options{Group: "g"})
	begin := time.Now()
	msgs := receive(t, s2, 3)
	assert.Less(t, time.Since(begin), time.Second)
	assert.Equal(t, []string{"m-2", "m-3", "m-4"}, ids(msgs))
	for _, m := range msgs {
		assert.Equal(t, 2, m.Attempt)
	}
	ack(t, s2, msgs...)
}

func TestNamedConsumersOfOneStartAreNotEachOthersFormer(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options(), redisstream.WithName("worker-7"), redisstream.WithLease(time.Minute))
	one := subscribe(t, tr, "t", transport.Options{Group: "g"})
	send(t, tr, "t", numbered("m", 5)...)
	msgs := receive(t, one, 5)
	two := subscribe(t, tr, "t", transport.Options{Group: "g"})
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := two.Receive(ctx, make([]transport.Message, 5))
	require.ErrorIs(t, err, context.DeadlineExceeded, "the other one is at work")
	ack(t, one, msgs...)
}

// A job that kills every process that handles it comes again with a higher
// attempt each time, and keeps nothing else from being done.
func TestPoison(t *testing.T) {
	server := redistest.Start(t)
	crew := newCrew(t, server.Addr())
	bus := busOver(t, open(t, server.Options()))
	l := newLedger()
	l.publishAll(t.Context(), bus, "p", 50, 0)
	for range 3 {
		crew.start("poisoned", "")
		p := crew.workers[0]
		_, err := p.Wait()
		require.NoError(t, err)
		crew.workers = nil
	}
	crew.start("poisoned", "")
	crew.check(l, 15*time.Second, 3*held)
	assert.Len(t, crew.lines("poison"), 3)
	for i, f := range crew.lines("poison") {
		assert.Equal(t, strconv.Itoa(i+1), f[0], "attempt")
	}
}

// Members come and go, killed or with a good-bye.
func TestRebalancing(t *testing.T) {
	server := redistest.Start(t)
	crew := newCrew(t, server.Addr())
	bus := busOver(t, open(t, server.Options()))
	l := newLedger()
	publishing := make(chan struct{})
	stop, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(publishing)
		for n := 0; stop.Err() == nil; n++ {
			l.publishAll(t.Context(), bus, "p"+strconv.Itoa(n), 20, 2*time.Millisecond)
		}
	}()
	killed := 0
	for range times(40) {
		switch n := len(crew.workers); {
		case n == 0, n < 8 && rand.IntN(2) == 0:
			crew.start("consume", "")
		case rand.IntN(3) == 0:
			crew.kill(rand.IntN(n))
			killed++
		default:
			crew.retire(rand.IntN(n))
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
	}
	cancel()
	<-publishing
	if len(crew.workers) == 0 {
		crew.start("consume", "")
	}
	crew.check(l, workerLease+10*time.Second, killed*held)
	for len(crew.workers) > 1 {
		crew.retire(0)
	}
	consumers, err := server.Client().XInfoConsumers(t.Context(), key, "g").Result()
	require.NoError(t, err)
	assert.LessOrEqual(t, len(consumers), killed+2, "who says good-bye leaves no name")
}

// A process that is stopped for longer than its lease finds out: its handler's
// context ends, and what it settles too late is not settled.
func TestProcessStoppedForLongerThanItsLease(t *testing.T) {
	server := redistest.Start(t)
	crew := newCrew(t, server.Addr())
	bus := busOver(t, open(t, server.Options()))
	l := newLedger()
	l.publishAll(t.Context(), bus, "p", 1, 0)
	crew.start("frozen", "")
	eventually(t, 10*time.Second, "the job to be held", func() bool { return len(crew.lines("holds")) == 1 })
	time.Sleep(2 * workerLease)
	require.Empty(t, crew.lines("lost"), "while it runs, its lease is kept")
	require.NoError(t, crew.workers[0].Signal(syscall.SIGSTOP))
	crew.start("consume", "")
	eventually(t, 10*time.Second, "the job to be done by another", func() bool { return len(crew.lines("handled")) == 1 })
	require.NoError(t, crew.workers[0].Signal(syscall.SIGCONT))
	eventually(t, 10*time.Second, "the loss to be noticed", func() bool { return len(crew.lines("lost")) == 1 })
	assert.Equal(t, [][]string{{"true"}}, crew.lines("lost"))
	assert.Equal(t, "2", crew.lines("handled")[0][3], "attempt")
	crew.check(l, 0, 0)
}

// Publishers, consumers and the server are killed, whoever it hits. What was
// accepted is handled.
func TestAnyProcessKilledAtAnyTime(t *testing.T) {
	server := redistest.Start(t, redistest.WithAOF("always"))
	crew := newCrew(t, server.Addr())
	for range 3 {
		crew.start("publish", "")
		crew.start("consume", "")
	}
	kinds := []string{"publish", "consume", "publish", "consume", "publish", "consume"}
	killed := 0
	for i := range times(60) {
		time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond)
		if i%10 == 9 {
			server.Kill()
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			require.NoError(t, server.Restart())
			killed += 3
			continue
		}
		k := rand.IntN(len(kinds))
		kind := kinds[k]
		crew.kill(k)
		crew.start(kind, "")
		kinds = append(append(kinds[:k:k], kinds[k+1:]...), kind)
		if kind == "consume" {
			killed++
		}
	}
	for i := len(kinds) - 1; i >= 0; i-- {
		if kinds[i] == "publish" {
			crew.kill(i)
		}
	}
	crew.check(nil, workerLease+15*time.Second, killed*held)
}
