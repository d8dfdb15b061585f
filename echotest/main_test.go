package echotest_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) {
	os.Unsetenv("ECHOTEST_SEED") // the tests choose their seeds
	goleak.VerifyTestMain(m)
}

// trial is a test that may fail, and of which nobody knows but its caller.
type trial struct {
	testing.TB

	mu       sync.Mutex // guards the rest
	log      []string
	failed   bool
	cleanups []func()
	ctx      context.Context
}

// try runs a test, and what it cleans up.
func try(test func(t testing.TB)) *trial {
	ctx, cancel := context.WithCancel(context.Background())
	t := &trial{ctx: ctx}
	alone(func() { test(t) })
	cancel()
	for _, f := range slices.Backward(t.cleanups) {
		alone(f)
	}
	return t
}

// alone runs f in a goroutine of its own, which a test ends that fails.
func alone(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

func (t *trial) Helper()                  {}
func (t *trial) Context() context.Context { return t.ctx }

func (t *trial) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *trial) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *trial) Logf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = append(t.log, fmt.Sprintf(format, args...))
}

func (t *trial) Errorf(format string, args ...any) {
	t.Logf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = true
}

func (t *trial) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *trial) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.log, "\n")
}

func publish[M any](t testing.TB, bus *echotest.Bus, topic *echo.Topic[M], vs ...M) {
	t.Helper()
	require.NoError(t, echo.NewProducer(bus.Bus, topic).PublishBatch(context.Background(), vs))
}

// run runs a handler until the bus is closed.
func run[M any](t testing.TB, bus *echotest.Bus, topic *echo.Topic[M], h echo.Handler[M], opts ...echo.SubscribeOption) {
	t.Helper()
	c, err := echo.Subscribe(context.Background(), bus.Bus, topic, opts...)
	require.NoError(t, err)
	go c.Run(context.Background(), h)
}

func values[M any](msgs []echo.Message[M]) []M {
	vs := make([]M, len(msgs))
	for i, m := range msgs {
		vs[i] = m.Value
	}
	return vs
}

// blind is a transport that cannot tell how its topics are.
type blind struct{ transport.Transport }
