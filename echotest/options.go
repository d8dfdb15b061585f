package echotest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// Option is an option of [New].
type Option func(*config)

type config struct {
	bus       []echo.BusOption
	memory    []memstream.Option
	transport transport.Transport
	patience  time.Duration
	seed      uint64
	faults    *Faults
	errs      []error
}

func newConfig(opts []Option) *config {
	c := &config{patience: 10 * time.Second}
	for _, o := range opts {
		o(c)
	}
	return c
}

func (c *config) fail(err error) { c.errs = append(c.errs, err) }

// WithBus gives options to the bus, but for [echo.WithTransport].
func WithBus(opts ...echo.BusOption) Option {
	return func(c *config) { c.bus = append(c.bus, opts...) }
}

// WithMemory gives options to the transport in memory.
func WithMemory(opts ...memstream.Option) Option {
	return func(c *config) { c.memory = append(c.memory, opts...) }
}

// WithTransport puts the bus on a transport in place of memory and hands it
// over, as [echo.WithTransport] does. It must be a [transport.Inspector]. What
// others do on the same server counts as far as their groups go.
func WithTransport(tr transport.Transport) Option {
	return func(c *config) {
		if c.transport = tr; tr == nil {
			c.fail(errors.New("WithTransport: the transport is nil"))
		}
	}
}

// WithPatience sets how long [Bus.WaitIdle] and the close at the end of the
// test wait; the default is 10 s. In a synctest bubble it is the bubble's time.
func WithPatience(d time.Duration) Option {
	return func(c *config) {
		if c.patience = d; d <= 0 {
			c.fail(fmt.Errorf("WithPatience(%v): want a positive time", d))
		}
	}
}

// seedVariable is the environment variable that replaces the seed.
const seedVariable = "ECHOTEST_SEED"

// WithFaults makes the transport misbehave, within what a transport may do: it
// loses nothing. The seed decides what is struck; a test that fails prints it,
// and the environment variable ECHOTEST_SEED replaces it.
//
// The same seed strikes the same publishes and deliveries of each topic,
// counted in the order in which they are published. So a run repeats itself as
// far as the test publishes in the same order.
func WithFaults(seed uint64, f Faults) Option {
	return func(c *config) {
		c.seed, c.faults = seed, &f
		if err := f.check(); err != nil {
			c.fail(fmt.Errorf("WithFaults: %w", err))
		}
		if text, ok := os.LookupEnv(seedVariable); ok {
			var err error
			if c.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
				c.fail(fmt.Errorf("%s: %w", seedVariable, err))
			}
		}
	}
}

// check returns what is wrong or contradictory.
func (c *config) check() error {
	errs := c.errs
	if c.transport != nil && len(c.memory) > 0 {
		errs = append(errs, errors.New("WithMemory contradicts WithTransport: a bus has one transport"))
	}
	return errors.Join(errs...)
}
