package redisstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/echobus/echo/transport"
)

// Move implements [transport.Mover] with a script: between any two topics of one
// server, and in a cluster between a topic and its dead letters.
func (s *member) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	if err := transport.CheckMove(topic); err != nil {
		return notPublished(err)
	}
	if ctx.Err() != nil {
		return notPublished(context.Cause(ctx))
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	x := new(xadds)
	if err := s.t.cfg.format.fields(x, &m); err != nil {
		return notPublished(fmt.Errorf("message %s: %w", m.ID, err))
	}
	x.fill()
	if err := s.t.note(ctx, topic); err != nil {
		return notPublished(err)
	}
	s.t.retain(topic)
	set := s.settle([]transport.Receipt{r}, s.lease, clock())
	defer set.free()
	if len(set.rs) == 0 {
		s.t.count.stale.Add(1)
		return leaseError(set.lost)
	}
	_, dead := transport.CutDead(topic)
	held, err := s.move(ctx, s.t.key(topic), r.Position, x.args, dead, set.tried)
	if err != nil {
		s.restore(set)
		s.t.failed(err)
		return err
	}
	if !held {
		s.t.count.stale.Add(1)
		return leaseError(set.rs)
	}
	s.t.count.moved.Add(1)
	return nil
}

// errMaybeMoved says that an earlier attempt may have moved a message: its
// answer was lost, and now it is not held.
var errMaybeMoved = errors.New("an earlier attempt may have moved it")

// move runs the script, and reports whether s held the entry. dead tells that
// the other topic is one of dead letters, tried that this may have been done before.
func (s *member) move(ctx context.Context, to string, from transport.Position, fields []any, dead, tried bool) (held bool, err error) {
	s.state.Lock()
	names := s.names
	s.state.Unlock()
	group := "" // to make
	if dead {
		group = transport.RedriveGroup
	}
	args := append(make([]any, 0, 4+len(names)+len(fields)), s.name.group, from.String(), group, len(names))
	for _, name := range names {
		args = append(args, name)
	}
	args = append(args, fields...)
	var reply sink
	var unsure atomic.Bool // an earlier attempt may have done it
	unsure.Store(tried)
	_, err = s.t.retrying(ctx, s.longest(), func(ctx context.Context) error {
		reply.b = reply.b[:0]
		err := s.t.run(ctx, moveScript, []string{s.key, to}, &reply, args...)
		if faultOf(err) == ambiguous {
			unsure.Store(true)
		}
		return err
	})
	switch {
	case err == nil && len(reply.b) > 0 && string(reply.b) != "$-1\r\n" && string(reply.b) != "_\r\n":
		return true, nil
	case err == nil || faultOf(err) == lostGroup:
		if unsure.Load() {
			return false, describe("moving from", s.key, errMaybeMoved)
		}
		return false, nil
	case is(err, "CROSSSLOT"):
		return false, notPublished(fmt.Errorf("moving from %s to %s of a cluster: %w", s.key, to, errors.ErrUnsupported))
	case unsure.Load() || ctx.Err() != nil:
		return false, describe("moving from", s.key, err)
	}
	return false, notPublished(describe("moving from", s.key, err))
}
