// Package migrate moves live topics from one transport to another. Its parts are
// transports, or work on transports, so a bus and everything on it stay as they are:
//
//		echo.New(echo.WithTransport(migrate.Tee(old, new)))
//
//	  - [Tee] publishes on two transports under one ID and subscribes on the first.
//	  - [Drainover] publishes on the new one; its subscriptions finish what the old
//	    one has, and then go on with the new one.
//	  - [Bridge] copies topics from one transport to another while it runs.
//
// Delivery stays at least once. What is repeated, in which order messages come,
// and what is remembered to tell repetitions is said with each of them;
// docs/migrate.md of this module has the steps of a move in their order.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/echobus/echo/transport"
)

// WithLogger sets who is told of what is swallowed: a copy that was not made, a
// dead letter, an ID that was forgotten, a failure that is tried again. By
// default nobody is.
func WithLogger(l *slog.Logger) interface {
	TeeOption
	DrainOption
	BridgeOption
} {
	return loggerOption{l}
}

type loggerOption struct{ l *slog.Logger }

func (o loggerOption) check() error {
	if o.l == nil {
		return errors.New("WithLogger: the logger is nil")
	}
	return nil
}

func (o loggerOption) applyTee(c *teeConfig) { c.logger, c.err = o.l, errors.Join(c.err, o.check()) }
func (o loggerOption) applyDrain(c *drainConfig) {
	c.logger, c.err = o.l, errors.Join(c.err, o.check())
}
func (o loggerOption) applyBridge(c *bridgeConfig) {
	c.logger, c.err = o.l, errors.Join(c.err, o.check())
}

var silent = slog.New(slog.DiscardHandler)

// inspected is what Unwrap of a transport of this package leads to: itself with
// an Inspector, and without anything that would pass its Send by.
type inspected struct {
	transport.Transport
	transport.Inspector
}

// does reports whether a transport says that it has a capability.
func does[T any](t transport.Transport, says func(T) bool) bool {
	c, ok := transport.As[T](t)
	return ok && says(c)
}

// immediate asks the transport itself, as transport.Immediate demands.
func immediate(t transport.Transport) bool {
	i, ok := t.(transport.Immediate)
	return ok && i.SendsImmediately()
}

// wrong returns what is wrong with the options that transports were built with.
func wrong(ts ...transport.Transport) (err error) {
	for _, t := range ts {
		if t == nil {
			return errors.New("transport is nil")
		}
		if c, ok := transport.As[transport.Checker](t); ok {
			err = errors.Join(err, c.Err())
		}
	}
	return err
}

// notPublished is the outcome of a Send that was not begun.
func notPublished(err error) error { return fmt.Errorf("%w: %w", transport.ErrNotPublished, err) }

// subscribe opens a subscription, unless something is wrong with the options.
func subscribe(ctx context.Context, t transport.Transport, err error, topic string, o transport.Options) (transport.Subscription, error) {
	if err != nil {
		return nil, err
	}
	return t.Subscribe(ctx, topic, o)
}

// pause waits for d, or until ctx ends, which is the error it returns.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
