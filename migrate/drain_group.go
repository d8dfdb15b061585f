package migrate

import (
	"context"
	"errors"
	"time"

	"github.com/echobus/echo/transport"
)

// groupDrain is a member of a group on both transports. Fields after pair are
// the receiver's.
type groupDrain struct {
	pair
	group string

	drained bool      // it reads new
	empty   time.Time // since when nothing was found on old; zero if something was
	look    time.Time // when to look at old again, once drained
}

var (
	_ transport.Acker    = (*groupDrain)(nil)
	_ transport.Nacker   = (*groupDrain)(nil)
	_ transport.Releaser = (*groupDrain)(nil)
	_ transport.Extender = (*groupDrain)(nil)
	_ transport.Mover    = (*groupDrain)(nil)
)

// Receive implements [transport.Subscription].
func (g *groupDrain) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	for len(dst) > 0 {
		if g.closed.Load() {
			return 0, transport.ErrClosed
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := g.next(ctx, dst)
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

func (g *groupDrain) next(ctx context.Context, dst []transport.Message) (int, error) {
	if g.drained {
		if n, err := g.late(ctx, dst); n > 0 || err != nil {
			return n, err
		}
		return g.within(ctx, g.d.cfg.quiet, fromNew, dst)
	}
	n, err := g.within(ctx, g.d.poll(), fromOld, dst)
	if n > 0 {
		g.empty = time.Time{}
	}
	if n == 0 && err == nil {
		g.consider(ctx)
	}
	return n, err
}

// consider goes over to new if old was empty for long enough.
func (g *groupDrain) consider(ctx context.Context) {
	now := time.Now()
	switch {
	case !g.nothing(ctx):
		g.empty = time.Time{}
		return
	case g.empty.IsZero():
		g.empty = now
	}
	if now.Sub(g.empty) < g.d.cfg.quiet {
		return
	}
	if err := g.d.learn(ctx, g.topic, g.given); err != nil {
		if ctx.Err() == nil {
			g.d.cfg.logger.Warn("migrate: what the old transport keeps was not learned, trying again", "topic", g.topic, "group", g.group, "error", err)
		}
		return
	}
	g.drained, g.look = true, time.Now().Add(g.d.cfg.quiet)
	g.d.count.switched.Add(1)
	g.d.cfg.logger.Info("migrate: the old transport is drained", "topic", g.topic, "group", g.group)
}

// nothing reports whether old surely has nothing for the group.
func (g *groupDrain) nothing(ctx context.Context) bool {
	info, err := g.d.inspector.Inspect(ctx, g.topic)
	if err != nil {
		if ctx.Err() == nil {
			g.d.cfg.logger.Warn("migrate: the old transport does not tell how it is, trying again", "topic", g.topic, "group", g.group, "error", err)
		}
		return false
	}
	i := info.Group(g.group)
	return i.Lag == 0 && i.Pending == 0
}

// So long new is kept waiting for what came to old late.
const lateWait = 20 * time.Millisecond

// late receives what came to old after all, when it is time to look.
func (g *groupDrain) late(ctx context.Context, dst []transport.Message) (int, error) {
	now := time.Now()
	if now.Before(g.look) {
		return 0, nil
	}
	g.look = now.Add(g.d.cfg.quiet)
	if g.nothing(ctx) || ctx.Err() != nil {
		return 0, nil
	}
	n, err := g.within(ctx, lateWait, fromOld, dst)
	if n > 0 {
		g.look = now.Add(g.d.poll()) // there may be more
		if g.d.count.late.Add(uint64(n)) == uint64(n) {
			g.d.cfg.logger.Warn("migrate: messages came to the old transport after it was drained", "topic", g.topic, "group", g.group, "messages", n)
		}
	}
	return n, err
}

// Move implements [transport.Mover], on the transport that the delivery is from.
func (g *groupDrain) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	if g.closed.Load() {
		return transport.ErrClosed
	}
	from, at := sideOf(r.Position)
	err := g.parts[from].mover.Move(ctx, topic, m, transport.Receipt{Position: at, Token: r.Token})
	if e, ok := errors.AsType[*transport.LeaseError](err); ok {
		return &transport.LeaseError{Lost: ours(from, e.Lost)}
	}
	return err
}
