package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// plan is where a subscription begins on either transport.
type plan struct {
	old, new transport.Start
	newOnly  bool // a broadcast reads nothing of old
}

// Subscribe implements [transport.Subscriber]. The subscription is an Acker, a
// Nacker, a Releaser, an Extender, and for a group a Mover; a broadcast is a
// Positioner if both transports' are.
func (d *Draining) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	switch {
	case d.err != nil:
		return nil, d.err
	case o.Group == "":
		return d.broadcast(ctx, topic, o)
	}
	return d.member(ctx, topic, o)
}

// member opens a member of a group. The group is made on new first: so whoever
// finds it on old finds it on new, too.
func (d *Draining) member(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	known, err := d.tells(ctx, topic, o.Group)
	if err != nil {
		return nil, fmt.Errorf("migrate: drainover: group %s of topic %s: %w", o.Group, topic, err)
	}
	g := &groupDrain{group: o.Group, pair: pair{d: d, topic: topic, given: d.givenOf(topic, o.Group)}}
	if known { // old knows its place, so all that is new is after that
		o.Start = transport.Start{From: transport.Oldest}
	}
	if err := g.open(ctx, o, planOf(o)); err != nil {
		return nil, err
	}
	return g, nil
}

// tells reports whether old knows the group, or an error if it cannot tell
// how far a group is.
func (d *Draining) tells(ctx context.Context, topic, group string) (known bool, err error) {
	if d.inspector == nil {
		return false, fmt.Errorf("the old transport cannot tell what it has for a group: %w", errors.ErrUnsupported)
	}
	info, err := d.inspector.Inspect(ctx, topic)
	if err != nil {
		return false, err
	}
	for _, g := range info.Groups {
		if g.Name != group {
			continue
		}
		if g.Lag == transport.Unknown || g.Pending == transport.Unknown {
			return true, fmt.Errorf("the old transport does not know what it has for the group: %w", errors.ErrUnsupported)
		}
		return true, nil
	}
	return false, nil
}

// givenOf returns what members of a group know together.
func (d *Draining) givenOf(topic, group string) *given {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.groups[[2]string{topic, group}]
	if g == nil {
		g = newGiven(d.cfg.remembered)
		d.groups[[2]string{topic, group}] = g
	}
	return g
}

// broadcast opens a broadcast subscription.
func (d *Draining) broadcast(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	b := &broadcastDrain{
		pair: pair{d: d, topic: topic, given: newGiven(d.cfg.remembered)},
		held: make(map[transport.Position]bool), heard: time.Now(),
	}
	p := planOf(o)
	if err := b.open(ctx, o, p); err != nil {
		return nil, err
	}
	old := b.parts[fromOld]
	b.drained.Store(old == nil)
	for i, part := range b.parts {
		if part == nil {
			continue
		}
		at, ok := transport.As[transport.Positioner](part.Subscription)
		if !ok {
			return nil, errors.Join(fmt.Errorf("migrate: drainover: topic %s: a transport that cannot tell how far a broadcast is: %w", topic, errors.ErrUnsupported), b.Close())
		}
		b.positions[i] = at
	}
	if old == nil {
		return b, nil
	}
	end, _, err := endOf(ctx, d.old, topic)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.end = end
	return b, nil
}

// planOf says where to begin, for a group that old does not know, or a broadcast.
func planOf(o transport.Options) plan {
	s := o.Start
	p := plan{old: s, new: s}
	switch s.From {
	case transport.Default, transport.Newest:
		p.newOnly = o.Group == ""
	case transport.AfterPosition:
		from, at := sideOf(s.Position)
		if from == fromOld {
			p.new = transport.Start{From: transport.Oldest}
			break
		}
		p.newOnly = o.Group == ""
		p.old = transport.Start{From: transport.Newest}
		p.new.Position = at
	}
	return p
}

// open opens what a plan asks for. An ID to start after needs to be found in one of
// them. Of one that new lacks, all of new comes after it; of one that old lacks,
// nothing of old does.
func (p *pair) open(ctx context.Context, o transport.Options, at plan) error {
	byID := o.Start.From == transport.AfterID
	o.Start = at.new
	err := p.openPart(ctx, fromNew, p.d.new, o)
	notInNew := byID && errors.Is(err, transport.ErrNotFound)
	if notInNew {
		o.Start = transport.Start{From: transport.Oldest}
		err = p.openPart(ctx, fromNew, p.d.new, o)
	}
	if err != nil || at.newOnly {
		return err
	}
	o.Start = at.old
	err = p.openPart(ctx, fromOld, p.d.old, o)
	if byID && !notInNew && errors.Is(err, transport.ErrNotFound) {
		if o.Group == "" {
			return nil
		}
		o.Start = transport.Start{From: transport.Newest}
		err = p.openPart(ctx, fromOld, p.d.old, o)
	}
	if err != nil {
		return errors.Join(err, p.parts[fromNew].Close())
	}
	return nil
}

func (p *pair) openPart(ctx context.Context, at side, of transport.Transport, o transport.Options) error {
	s, err := of.Subscribe(ctx, p.topic, o)
	if err != nil {
		return err
	}
	p.parts[at], err = newPart(s, o.Group != "")
	return err
}
