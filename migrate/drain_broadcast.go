package migrate

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// broadcastDrain is a broadcast subscription that reads old up to an end, and
// then new.
type broadcastDrain struct {
	pair
	positions [2]transport.Positioner
	end       transport.Position // where old ended when this began
	drained   atomic.Bool        // it reads new

	heard time.Time // when old gave something; the receiver's
	idle  bool      // old gives no more, though its end was not reached; the receiver's

	mu   sync.Mutex // guards the rest
	held map[transport.Position]bool
}

var (
	_ transport.Acker      = (*broadcastDrain)(nil)
	_ transport.Nacker     = (*broadcastDrain)(nil)
	_ transport.Releaser   = (*broadcastDrain)(nil)
	_ transport.Extender   = (*broadcastDrain)(nil)
	_ transport.Positioner = (*broadcastDrain)(nil)
)

// Receive implements [transport.Subscription].
func (b *broadcastDrain) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	for len(dst) > 0 {
		if b.closed.Load() {
			return 0, transport.ErrClosed
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := b.next(ctx, dst)
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

func (b *broadcastDrain) next(ctx context.Context, dst []transport.Message) (int, error) {
	if b.drained.Load() {
		return b.take(ctx, fromNew, dst)
	}
	if b.over() {
		return 0, b.changeOver(ctx)
	}
	n, err := b.within(ctx, b.d.poll(), fromOld, dst)
	if n > 0 {
		b.heard, b.idle = time.Now(), false
		b.hold(dst[:n])
	} else if time.Since(b.heard) >= b.d.cfg.quiet {
		b.idle = true
	}
	return n, err
}

// over reports whether all of old was received and settled.
func (b *broadcastDrain) over() bool {
	b.mu.Lock()
	held := len(b.held)
	b.mu.Unlock()
	return held == 0 && (b.idle || b.positions[fromOld].Position().Compare(b.end) >= 0)
}

func (b *broadcastDrain) changeOver(ctx context.Context) error {
	if err := b.d.learn(ctx, b.topic, b.given); err != nil {
		if ctx.Err() == nil {
			b.d.cfg.logger.Warn("migrate: what the old transport keeps was not learned, trying again", "topic", b.topic, "error", err)
		}
		return pause(ctx, b.d.poll())
	}
	b.drained.Store(true)
	b.d.count.switched.Add(1)
	return b.parts[fromOld].Close()
}

func (b *broadcastDrain) hold(msgs []transport.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range msgs {
		b.held[msgs[i].Position] = true
	}
}

// Ack implements [transport.Acker].
func (b *broadcastDrain) Ack(ctx context.Context, rs []transport.Receipt) error {
	err := b.pair.Ack(ctx, rs)
	lost, some := errors.AsType[*transport.LeaseError](err)
	if err != nil && !some {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range rs {
		if !some || !lost.Has(r) {
			delete(b.held, r.Position)
		}
	}
	return err
}

// Position implements [transport.Positioner].
func (b *broadcastDrain) Position() transport.Position {
	if b.drained.Load() {
		return mark(b.positions[fromNew].Position())
	}
	return b.positions[fromOld].Position()
}
