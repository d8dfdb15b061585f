package memstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/echobus/echo/transport"
)

// Move implements [transport.Mover]. A topic that is full makes it wait, or
// refuse, as [WithFull] says; one of dead letters refuses, so that nobody is
// held up by a message that failed.
func (s *subscription) Move(ctx context.Context, name string, m transport.Message, r transport.Receipt) error {
	if s.group.name == "" {
		return fmt.Errorf("moving messages of a broadcast subscription: %w", errors.ErrUnsupported)
	}
	if err := transport.CheckMove(name); err != nil {
		return fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
	from := s.group.topic
	to, err := from.of.topic(name)
	if err == nil && to == from {
		err = fmt.Errorf("topic %s is where the message is", name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
	}
	rs, msgs := []transport.Receipt{r}, []transport.Message{m}
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", transport.ErrNotPublished, context.Cause(ctx))
		}
		err := s.moveNow(to, msgs, rs)
		if _, dead := transport.CutDead(name); err == transport.ErrFull && to.cfg.full == Block && !dead {
			to.mu.Lock()
			err = to.awaitRoom(ctx)
			to.mu.Unlock()
			if err == nil {
				continue
			}
		}
		if err == nil || errors.Is(err, transport.ErrLeaseLost) || err == transport.ErrClosed {
			return err
		}
		return fmt.Errorf("%w: topic %s: %w", transport.ErrNotPublished, name, err)
	}
}

// moveNow moves a message if there is room for it.
func (s *subscription) moveNow(to *topic, msgs []transport.Message, rs []transport.Receipt) error {
	g := s.group
	from := g.topic
	from.of.moving.Lock() // nobody else locks two topics
	defer from.of.moving.Unlock()
	from.mu.Lock()
	defer from.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	if s.closed || from.closed {
		return transport.ErrClosed
	}
	now := clock()
	if lost := s.apply(rs, settlement{run: func(int, uint64, uint64) {}, parked: func(uint64, *parked) {}}, now, nil); lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	if _, dead := transport.CutDead(to.name); dead && to.named[transport.RedriveGroup] == nil {
		to.newGroup(transport.RedriveGroup, to.log.first, 0)
	}
	n, err := to.appendAll(msgs)
	if err == transport.ErrFull && to.cfg.full == Reject {
		to.stats.Rejected++
	}
	if err != nil {
		return err
	}
	to.wake(n)
	s.apply(rs, settlement{run: g.settle, parked: g.settleParked}, now, nil)
	g.pass()
	from.offerRoom()
	return nil
}
