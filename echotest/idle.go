package echotest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// glance is when to look again though no event came: what others do on the
// same server is none, nor is a delayed message that takes its place.
const glance = 20 * time.Millisecond

// await returns when nothing is under way. When ctx ends before, it returns its
// cause and what is.
func (w *watch) await(ctx context.Context) (left []string, err error) {
	for {
		event := w.next()
		idle, err := w.idle(ctx, event)
		if idle {
			return nil, nil
		}
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		select {
		case <-event:
		case <-time.After(glance):
		case <-ctx.Done():
			return w.account(ctx), context.Cause(ctx)
		}
	}
}

// idle reports whether nothing is under way.
//
// Topics are looked at one after another, and messages lead to others in topics
// that were looked at before. But each such step is an event, so all topics
// are as they were seen if there was none. The figures of one topic need not be
// of one moment either: a message may be given out between two of them, and be
// in neither. It is seen by the second look.
func (w *watch) idle(ctx context.Context, event <-chan struct{}) (bool, error) {
	for range 2 {
		if len(w.here()) > 0 {
			return false, nil
		}
		if left, err := w.look(ctx); len(left) > 0 || err != nil {
			return false, err
		}
	}
	select {
	case <-event:
		return false, nil
	default:
		return true, nil
	}
}

// account says what is under way, after ctx ended.
func (w *watch) account(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	left := w.here()
	there, err := w.look(ctx)
	if left = append(left, there...); err != nil {
		left = append(left, err.Error())
	}
	if len(left) == 0 {
		left = append(left, "nothing at the last look, but something went on all the time before")
	}
	return left
}

// look returns what is under way in the topics.
func (w *watch) look(ctx context.Context) (left []string, err error) {
	w.mu.Lock()
	topics := slices.Sorted(maps.Keys(w.topics))
	w.mu.Unlock()
	for _, topic := range topics {
		info, err := w.inspector.Inspect(ctx, topic)
		if err != nil {
			return left, fmt.Errorf("inspect %s: %w", topic, err)
		}
		left = append(left, w.groups(topic, &info)...)
		behind, err := w.broadcasts(ctx, topic)
		if left = append(left, behind...); err != nil {
			return left, err
		}
	}
	return left, nil
}

// redriveGroup is in which [echo.Redrive] takes dead letters. What it leaves
// there nobody is to handle.
const redriveGroup = "redrive"

// groups returns what groups have to do, and what is due.
func (w *watch) groups(topic string, info *transport.Info) (left []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.record(topic)
	_, dead := transport.CutDead(topic)
	for _, g := range info.Groups {
		if g.Lag == 0 && g.Pending == 0 || dead && g.Name == redriveGroup {
			continue
		}
		oldest := ""
		if g.Oldest > 0 {
			oldest = fmt.Sprintf(" (the oldest published %v ago)", g.Oldest)
		}
		left = append(left, fmt.Sprintf("topic %s, group %s: lag %d, pending %d%s, members %d", topic, g.Name, g.Lag, g.Pending, oldest, r.members[g.Name]))
	}
	if late := r.late(info.Delayed, time.Now()); late > 0 {
		left = append(left, fmt.Sprintf("topic %s: %d delayed messages are due", topic, late))
	}
	return left
}

// broadcasts returns what broadcast subscriptions have to do. The end of the
// topic is asked for before how far they are.
func (w *watch) broadcasts(ctx context.Context, topic string) (left []string, err error) {
	w.mu.Lock()
	n := len(w.record(topic).broadcasts)
	w.mu.Unlock()
	if n == 0 {
		return nil, nil
	}
	end, err := w.end(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("end of %s: %w", topic, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.record(topic).broadcasts {
		if s.at.Compare(end) < 0 {
			left = append(left, fmt.Sprintf("topic %s, broadcast subscription %d: given messages up to %v, the last one is at %v", topic, s.number, s.at, end))
		}
		if len(s.held) > 0 {
			left = append(left, fmt.Sprintf("topic %s, broadcast subscription %d: pending %d", topic, s.number, len(s.held)))
		}
	}
	return left, nil
}

// end returns the position of the last message of a topic, which is where a
// new broadcast begins.
func (w *watch) end(ctx context.Context, topic string) (transport.Position, error) {
	s, err := w.Transport.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Newest}})
	if err != nil {
		return transport.Position{}, err
	}
	defer s.Close()
	p, _ := transport.As[transport.Positioner](s)
	return p.Position(), nil
}
