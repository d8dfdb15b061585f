// Package echotest is for tests of code that uses echo: a bus that waits until
// nothing is under way, tells what was published by its type, and makes faults
// that a seed repeats.
//
//	func TestOrdersAreBilled(t *testing.T) {
//		bus := echotest.New(t)
//		startBilling(bus.Bus) // the code under test
//		err := echo.NewProducer(bus.Bus, orders).Publish(t.Context(), Order{"o-1", 12.5})
//		…
//		bus.WaitIdle(t.Context())
//		echotest.Expect(bus, invoices, Invoice{"o-1", 12.5})
//	}
//
// The bus is a real one, in memory unless [WithTransport] says otherwise, and
// works in a testing/synctest bubble when it is made there: it has no
// goroutine of its own and waits by timers alone.
package echotest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// Bus is a bus for one test, which ends with it. It is safe for concurrent use,
// but only the goroutine of the test may call what fails it.
type Bus struct {
	*echo.Bus

	t       testing.TB
	cfg     *config
	watch   *watch
	faults  *faulty // nil without faults
	carries bool    // the transport carries values by reference
}

// New returns a bus for t and fails t if an option is wrong.
//
// The bus is closed when t and its subtests are done. That fails t if handlers
// do not end within the patience, see [WithPatience], or messages of a loop
// were left unsettled. Run consumers in goroutines with the context of t, or
// any other: the close stops them.
func New(t testing.TB, opts ...Option) *Bus {
	t.Helper()
	cfg := newConfig(opts)
	if err := cfg.check(); err != nil {
		t.Fatalf("echotest: %v", err)
	}
	base := cfg.transport
	if base == nil {
		base = memstream.New(cfg.memory...)
	}
	w, err := newWatch(base)
	if err != nil {
		t.Fatalf("echotest: %v", err)
	}
	b := &Bus{t: t, cfg: cfg, watch: w}
	if v, ok := transport.As[transport.ValueCarrier](base); ok {
		b.carries = v.CarriesValues()
	}
	var top transport.Transport = w
	if cfg.faults != nil {
		b.faults = newFaulty(w, cfg.seed, *cfg.faults)
		top = b.faults
	}
	b.Bus = echo.New(append([]echo.BusOption{echo.WithTransport(top), echo.WithMiddleware(w.handling)}, cfg.bus...)...)
	t.Cleanup(b.end)
	return b
}

// end closes the bus and fails the test if that leaves something behind.
func (b *Bus) end() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.patience)
	defer cancel()
	account, err := b.Close(ctx)
	if err != nil || account.Abandoned > 0 {
		b.t.Errorf("echotest: close: got %+v and error %v, want nothing abandoned and no error%s", account, err, lines(b.watch.here()))
	}
	if b.faults != nil && b.t.Failed() {
		b.t.Logf("echotest: seed %d made the faults %+v; %s=%d makes them again", b.cfg.seed, b.Faults(), seedVariable, b.cfg.seed)
	}
}

// WaitIdle returns when everything published has been handled by every group
// and every broadcast subscription there is: nobody has messages to get or to
// settle, not even such as wait for another attempt, and no handler runs.
// Delayed messages count once they are due, dead letters count as handled.
//
// It fails the test, and says what is under way, when that is not so before ctx
// ends or, if ctx has no deadline, within the patience. Groups count also
// without members, and subscriptions that nobody receives from.
//
// What goroutines publish that are no handlers is waited for once Publish was
// called. What a loop over messages does after it settled one is not known.
func (b *Bus) WaitIdle(ctx context.Context) {
	b.t.Helper()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, b.cfg.patience, fmt.Errorf("not idle after %v", b.cfg.patience))
		defer cancel()
	}
	if left, err := b.watch.await(ctx); err != nil {
		b.t.Fatalf("echotest: wait: %v%s", err, lines(left))
	}
}

// lines returns text as lines below another.
func lines(text []string) string {
	var s strings.Builder
	for _, line := range text {
		s.WriteString("\n\t")
		s.WriteString(line)
	}
	return s.String()
}
