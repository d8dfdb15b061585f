package redisstream_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/redisstream"
)

// Tests start this binary again as a worker: a process that publishes or
// consumes, and writes down what it did, line by line, each on the disk before
// the next. Its arguments are in the environment.
const (
	workerAddr   = "ECHO_TEST_ADDR"
	workerLedger = "ECHO_TEST_LEDGER"
	workerName   = "ECHO_TEST_NAME"
)

const workerLease = time.Second

// worker is the main function of a worker.
func worker(work string) {
	log.SetPrefix("worker " + work + ": ")
	redis.SetLogger(silent{})
	book, err := os.OpenFile(os.Getenv(workerLedger), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		log.Fatal(err)
	}
	note := func(format string, args ...any) {
		if _, err := fmt.Fprintf(book, format+"\n", args...); err != nil {
			log.Fatal(err)
		}
		if err := book.Sync(); err != nil {
			log.Fatal(err)
		}
	}
	opts := []redisstream.Option{redisstream.WithLease(workerLease), redisstream.WithSendTimeout(20 * time.Second)}
	if name := os.Getenv(workerName); name != "" {
		opts = append(opts, redisstream.WithName(name))
	}
	bus := echo.New(echo.WithTransport(redisstream.New(redis.NewClient(&redis.Options{Addr: os.Getenv(workerAddr)}), opts...)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	note("started %d", os.Getpid()) // and can be told to end
	if work == "publish" {
		publish(ctx, bus, note)
		return
	}
	consumer, err := echo.Subscribe(ctx, bus, jobs, echo.WithGroup("g"), echo.WithConcurrency(4), echo.WithPrefetch(32, 1<<20), echo.WithRetry(echo.Retry{Min: time.Millisecond, Max: 10 * time.Millisecond}))
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	err = consumer.Run(ctx, func(ctx context.Context, m echo.Message[job]) error {
		switch work {
		case "poisoned": // by one job, which kills whoever handles it, three times
			if m.Value.N == 13 && m.Attempt <= 3 {
				note("poison %d", m.Attempt)
				die()
			}
		case "frozen": // holds its first job until its lease is lost
			note("holds %d", m.Value.N)
			<-ctx.Done()
			note("lost %t", errors.Is(context.Cause(ctx), echo.ErrLeaseLost))
			return nil
		}
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		note("handled %s %d %s %d", m.Value.From, m.Value.N, m.ID, m.Attempt)
		if work == "dies after handling" {
			die() // before anything is acknowledged
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
	bus.Close(context.Background())
	note("ended")
}

func die() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// publish publishes one job after another until ctx ends, and notes those that
// are accepted, and before each that it may be.
func publish(ctx context.Context, bus *echo.Bus, note func(string, ...any)) {
	p := echo.NewProducer(bus, jobs)
	from := fmt.Sprint("p", os.Getpid())
	for n := 0; ctx.Err() == nil; n++ {
		note("publishing %s %d", from, n)
		err := p.Publish(context.Background(), job{n, from})
		switch {
		case err == nil:
			note("accepted %s %d", from, n)
		case isUnknown(err):
			note("unknown %s %d", from, n)
		default:
			note("refused %s %d", from, n)
		}
	}
}

// crew are the workers of a test, with the ledger they share.
type crew struct {
	t    *testing.T
	addr string
	book string

	workers []*os.Process
}

func newCrew(t *testing.T, addr string) *crew {
	c := &crew{t: t, addr: addr, book: t.TempDir() + "/ledger"}
	require.NoError(t, os.WriteFile(c.book, nil, 0o600))
	t.Cleanup(func() {
		for len(c.workers) > 0 {
			c.kill(0)
		}
	})
	return c
}

// start starts a worker and returns its index.
func (c *crew) start(work, name string) {
	c.t.Helper()
	env := append(os.Environ(), "ECHO_TEST_WORKER="+work, workerAddr+"="+c.addr, workerLedger+"="+c.book, workerName+"="+name, "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+c.t.TempDir())
	p, err := os.StartProcess(os.Args[0], []string{os.Args[0]}, &os.ProcAttr{Env: env, Files: []*os.File{nil, os.Stdout, os.Stderr}})
	require.NoError(c.t, err)
	c.workers = append(c.workers, p)
	eventually(c.t, 30*time.Second, "the worker to start", func() bool {
		return slices.ContainsFunc(c.lines("started"), func(f []string) bool { return f[0] == strconv.Itoa(p.Pid) })
	})
}

// kill kills worker i.
func (c *crew) kill(i int) {
	p := c.workers[i]
	c.workers = append(c.workers[:i], c.workers[i+1:]...)
	p.Kill()
	p.Wait()
}

// retire asks worker i to end, and waits until it has.
func (c *crew) retire(i int) {
	c.t.Helper()
	p := c.workers[i]
	c.workers = append(c.workers[:i], c.workers[i+1:]...)
	require.NoError(c.t, p.Signal(syscall.SIGTERM))
	state, err := p.Wait()
	require.NoError(c.t, err)
	require.True(c.t, state.Success(), state)
}

// lines returns the lines of the ledger that start with a word, split.
func (c *crew) lines(word string) (lines [][]string) {
	data, err := os.ReadFile(c.book)
	require.NoError(c.t, err)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == word && strings.HasSuffix(line, "\n") {
			lines = append(lines, f[1:])
		}
	}
	return lines
}

// ledger is what the lines say.
func (c *crew) ledger() *ledger {
	l := newLedger()
	jobOf := func(f []string) job {
		n, err := strconv.Atoi(f[1])
		require.NoError(c.t, err)
		return job{n, f[0]}
	}
	for _, f := range c.lines("publishing") {
		l.unknown[jobOf(f)] = true // until something else is noted
	}
	for _, f := range c.lines("refused") {
		delete(l.unknown, jobOf(f))
	}
	for _, f := range c.lines("accepted") {
		delete(l.unknown, jobOf(f))
		l.accepted[jobOf(f)] = true
	}
	for _, f := range c.lines("handled") {
		attempt, err := strconv.Atoi(f[3])
		require.NoError(c.t, err)
		l.handle(jobOf(f), f[2], attempt)
	}
	return l
}

// check waits until all that l and the workers' ledger know to be accepted is
// handled, and checks what was.
func (c *crew) check(accepted *ledger, within time.Duration, repeated int) {
	c.t.Helper()
	var l *ledger
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		l = c.ledger()
		if accepted != nil {
			for j := range accepted.accepted {
				l.accepted[j] = true
			}
			for j := range accepted.unknown {
				l.unknown[j] = true
			}
		}
		if len(l.missing()) == 0 || time.Since(begin) > within {
			break
		}
	}
	l.check(c.t, 0, repeated)
	if l.silent > 0 {
		c.t.Errorf("%d repetitions said that they were the first", l.silent)
	}
}
