package redisstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/echobus/echo/transport"
)

// Move implements [transport.Mover] with a script: between any two topics of one
// server, and in a cluster between a topic and its dead letters.
func (s *member) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	if err := transport.CheckName("topic", topic); err != nil {
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
	s.t.retain(topic)
	set := s.settle([]transport.Receipt{r}, s.lease, clock())
	defer set.free()
	if len(set.rs) == 0 {
		s.t.count.stale.Add(1)
		return leaseError(set.lost)
	}
	held, err := s.move(ctx, s.t.key(topic), r.Position, x.args)
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

// move runs the script, and reports whether s held the entry.
func (s *member) move(ctx context.Context, to string, from transport.Position, fields []any) (held bool, err error) {
	s.state.Lock()
	names := s.names
	s.state.Unlock()
	args := append(make([]any, 0, 3+len(names)+len(fields)), s.name.group, from.String(), len(names))
	for _, name := range names {
		args = append(args, name)
	}
	args = append(args, fields...)
	var reply sink
	unsure := false // an earlier attempt may have done it
	_, err = s.t.retrying(ctx, s.longest(), func(ctx context.Context) error {
		reply.b = reply.b[:0]
		err := s.t.run(ctx, moveScript, []string{s.key, to}, &reply, args...)
		unsure = unsure || faultOf(err) == ambiguous
		return err
	})
	switch {
	case err == nil:
		nothing := len(reply.b) >= 3 && (string(reply.b[:3]) == "$-1" || string(reply.b[:2]) == "_\r")
		return !nothing || unsure, nil
	case faultOf(err) == lostGroup:
		return unsure, nil
	case is(err, "CROSSSLOT"):
		return false, notPublished(fmt.Errorf("moving from %s to %s of a cluster: %w", s.key, to, errors.ErrUnsupported))
	case unsure || ctx.Err() != nil:
		return false, describe("moving from", s.key, err)
	}
	return false, notPublished(describe("moving from", s.key, err))
}
