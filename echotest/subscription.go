package echotest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/echobus/echo/transport"
)

// subscription is a subscription that is watched. Of groups the transport
// knows what is under way; of broadcasts the watch does.
type subscription struct {
	transport.Subscription
	w            *watch
	topic, group string
	number       int // of a broadcast
	acker        transport.Acker

	// The watch's lock guards the rest, which only a broadcast has.
	at     transport.Position // up to which it was given messages
	held   map[transport.Position]struct{}
	closed bool // of a group, too
}

// look finds what the subscription can do, and where it begins.
func (s *subscription) look() error {
	var ok bool
	if s.acker, ok = transport.As[transport.Acker](s.Subscription); !ok {
		return fmt.Errorf("the transport cannot acknowledge messages: %w", errors.ErrUnsupported)
	}
	if s.group != "" {
		return nil
	}
	p, ok := transport.As[transport.Positioner](s.Subscription)
	if !ok {
		return fmt.Errorf("the transport cannot tell how far a broadcast is: %w", errors.ErrUnsupported)
	}
	s.at, s.held = p.Position(), make(map[transport.Position]struct{})
	return nil
}

func (s *subscription) Unwrap() transport.Subscription { return s.Subscription }

func (s *subscription) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	n, err := s.Subscription.Receive(ctx, dst)
	if s.group != "" {
		s.w.update(func() {})
		return n, err
	}
	p, _ := transport.As[transport.Positioner](s.Subscription)
	at := p.Position()
	s.w.update(func() {
		s.at = at
		for i := range dst[:n] {
			s.held[dst[i].Position] = struct{}{}
		}
	})
	return n, err
}

// Ack settles messages. What a broadcast has to settle ends with it alone: what
// is given back, or held for too long, comes again.
func (s *subscription) Ack(ctx context.Context, rs []transport.Receipt) error {
	err := s.acker.Ack(ctx, rs)
	late, partly := errors.AsType[*transport.LeaseError](err)
	s.w.update(func() {
		if err != nil && !partly {
			return
		}
		for _, r := range rs {
			if !partly || !late.Has(r) {
				delete(s.held, r.Position)
			}
		}
	})
	return err
}

func (s *subscription) Close() error {
	err := s.Subscription.Close()
	s.w.update(func() {
		if s.closed {
			return
		}
		s.closed = true
		r := s.w.record(s.topic)
		if s.group != "" {
			r.members[s.group]--
		} else {
			r.broadcasts = slices.DeleteFunc(r.broadcasts, func(o *subscription) bool { return o == s })
		}
	})
	return err
}

// member is a subscription that can move messages.
type member struct {
	*subscription
	mover transport.Mover
}

// Move moves a message. A dead letter is noted as published to its topic; one
// that goes home was published before.
func (m *member) Move(ctx context.Context, topic string, msg transport.Message, r transport.Receipt) error {
	m.w.update(func() { m.w.sending++ })
	err := m.mover.Move(ctx, topic, msg, r)
	m.w.update(func() {
		m.w.sending--
		to := m.w.record(topic)
		if _, dead := transport.CutDead(topic); err == nil && dead {
			to.stored = append(to.stored, msg.Clone())
		}
	})
	return err
}
