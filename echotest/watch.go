package echotest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

// watch is a transport that knows what passed through it. Faults are made
// above it, so that it sees what really happened.
type watch struct {
	transport.Transport
	inspector transport.Inspector

	mu      sync.Mutex    // guards the rest
	event   chan struct{} // closed by the next event; nil if nobody waits for it
	topics  map[string]*record
	sending int // calls of Send and Move under way
	running map[*handling]struct{}
}

// record is what happened in a topic.
type record struct {
	stored     []transport.Message  // in the order of the topic; what was not due, as sent
	named      map[string]time.Time // until when a name of the terms is not stored again
	due        []time.Time          // of delayed messages, as long as these may not have taken their places
	members    map[string]int       // subscriptions by group
	broadcasts []*subscription
	opened     int // broadcasts so far
}

// handling is a call of a handler under way.
type handling struct {
	topic, group, id string
	attempt          int
	since            time.Time
}

func newWatch(tr transport.Transport) (*watch, error) {
	w := &watch{Transport: tr, topics: make(map[string]*record), running: make(map[*handling]struct{})}
	if c, ok := transport.As[transport.Checker](tr); ok && c.Err() != nil {
		return nil, c.Err()
	}
	var ok bool
	if w.inspector, ok = transport.As[transport.Inspector](tr); !ok {
		return nil, fmt.Errorf("transport %T cannot tell how its topics are: %w", tr, errors.ErrUnsupported)
	}
	return w, nil
}

func (w *watch) Unwrap() transport.Transport { return w.Transport }

func (w *watch) SendsImmediately() bool {
	i, ok := w.Transport.(transport.Immediate)
	return ok && i.SendsImmediately()
}

// update changes what the watch knows, and wakes who waits for an event.
func (w *watch) update(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	if w.event != nil {
		close(w.event)
		w.event = nil
	}
}

// next returns a channel that the next event closes.
func (w *watch) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.event == nil {
		w.event = make(chan struct{})
	}
	return w.event
}

// record returns the record of a topic. The caller holds mu.
func (w *watch) record(topic string) *record {
	r := w.topics[topic]
	if r == nil {
		r = &record{named: make(map[string]time.Time), members: make(map[string]int)}
		w.topics[topic] = r
	}
	return r
}

// stored returns what a topic was given so far.
func (w *watch) stored(topic string) []transport.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.topics[topic]; r != nil {
		return slices.Clone(r.stored)
	}
	return nil
}

func (w *watch) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	w.update(func() { w.sending++ })
	n, err := w.Transport.Send(ctx, topic, msgs)
	w.update(func() {
		w.sending--
		r := w.record(topic)
		for i := range msgs[:n] {
			r.note(&msgs[i], time.Now())
		}
	})
	return n, err
}

// note keeps a copy of a message that Send stored, unless it was there already.
// Those of several Sends at once are put in the order of the topic.
func (r *record) note(m *transport.Message, now time.Time) {
	if t := m.Terms; t != nil {
		later := m.Position == transport.Position{}
		if t.Once != "" {
			if later && (t.Due.IsZero() || r.named[t.Once].After(now)) {
				return
			}
			r.named[t.Once] = now.Add(t.Window)
		}
		if later {
			r.due = append(r.due, t.Due)
		}
	}
	c := m.Clone()
	c.Terms = nil
	i := len(r.stored)
	for i > 0 && r.stored[i-1].Position.Compare(c.Position) > 0 && c.Position != (transport.Position{}) {
		i--
	}
	r.stored = slices.Insert(r.stored, i, c)
}

// late returns how many of the delayed messages that a topic has are due, and
// forgets the times of those that took their places. The caller holds mu.
func (r *record) late(delayed int64, now time.Time) int64 {
	passed := func(due time.Time) bool { return !due.After(now) }
	waiting := slices.DeleteFunc(slices.Clone(r.due), passed)
	if late := delayed - int64(len(waiting)); late > 0 && len(waiting) < len(r.due) {
		return late
	}
	r.due = waiting
	return 0
}

func (w *watch) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	inner, err := w.Transport.Subscribe(ctx, topic, opts)
	if err != nil {
		return nil, err
	}
	s := &subscription{Subscription: inner, w: w, topic: topic, group: opts.Group}
	if err := s.look(); err != nil {
		inner.Close()
		return nil, err
	}
	w.update(func() {
		r := w.record(topic)
		if s.group != "" {
			r.members[s.group]++
			return
		}
		r.opened++
		s.number = r.opened
		r.broadcasts = append(r.broadcasts, s)
	})
	if m, ok := transport.As[transport.Mover](inner); ok {
		return &member{s, m}, nil
	}
	return s, nil
}

// handling is a middleware that knows which handlers run.
func (w *watch) handling(next echo.Handler[any]) echo.Handler[any] {
	return func(ctx context.Context, m echo.Message[any]) error {
		h := &handling{m.Topic, m.Group(), m.ID, m.Attempt, time.Now()}
		w.update(func() { w.running[h] = struct{}{} })
		defer w.update(func() { delete(w.running, h) })
		return next(ctx, m)
	}
}

// here returns what is under way as far as the watch knows by itself.
func (w *watch) here() (left []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sending > 0 {
		left = append(left, fmt.Sprintf("%d publishes under way", w.sending))
	}
	handlers := make([]*handling, 0, len(w.running))
	for h := range w.running {
		handlers = append(handlers, h)
	}
	slices.SortFunc(handlers, func(a, b *handling) int { return a.since.Compare(b.since) })
	for _, h := range handlers {
		left = append(left, fmt.Sprintf("topic %s, %s: a handler runs for %v with message %s, attempt %d",
			h.topic, cmp.Or(h.group, "broadcast"), time.Since(h.since), h.id, h.attempt))
	}
	return left
}
