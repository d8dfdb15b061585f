package echo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/echobus/echo/transport"
)

// redriveGroup is the group in which Redrive takes dead letters: what it has
// yet to settle are the dead letters that are open.
const redriveGroup = transport.RedriveGroup

// Redriven is what [Redrive] did.
type Redriven struct {
	Sent int // sent home
	Kept int // left as they are, as the filter did not want them
}

// Redrive sends dead letters of a topic home: those that filter returns true
// for, or all if it is nil, up to rate a second, 0 for no limit. Each is moved
// to the topic in one step, as a new message under its old ID; the group in
// which it died handles it, with all its attempts, and no other does.
//
// It returns when every dead letter that was there has been looked at, or ctx
// ends; those that die meanwhile are for the next time. What it did not send
// home is as before. Several at a time share the work.
func Redrive[M any](ctx context.Context, b *Bus, topic *Topic[M], filter func(Message[DeadLetter[M]]) bool, rate int) (Redriven, error) {
	var done Redriven
	err := redrive(ctx, b, DeadLetters(topic), filter, rate, &done)
	if err != nil {
		name := "nil topic"
		if topic != nil {
			name = topic.name
		}
		err = fmt.Errorf("echo: redrive %s: %w", name, err)
	}
	return done, err
}

func redrive[M any](ctx context.Context, b *Bus, dead *Topic[DeadLetter[M]], filter func(Message[DeadLetter[M]]) bool, rate int, done *Redriven) error {
	switch {
	case rate < 0:
		return fmt.Errorf("rate %d is negative", rate)
	case b == nil:
		return errors.New("bus is nil")
	case b.err != nil:
		return b.err
	case dead.err != nil:
		return dead.err
	case b.closed.Load():
		return ErrClosed
	}
	inspector, ok := transport.As[transport.Inspector](b.transport)
	if !ok {
		return fmt.Errorf("the transport cannot tell how many dead letters there are: %w", errors.ErrUnsupported)
	}
	end, err := endOf(ctx, b, dead.name)
	if err != nil {
		return err
	}
	sub, err := b.transport.Subscribe(ctx, dead.name, transport.Options{Group: redriveGroup, Lease: redriveLease})
	if err != nil {
		return err
	}
	defer sub.Close() // what was not sent home goes back
	mover, ok := transport.As[transport.Mover](sub)
	if !ok {
		return fmt.Errorf("the transport cannot move messages: %w", errors.ErrUnsupported)
	}
	r := &redriving[M]{
		sub: sub, mover: mover, filter: filter, done: done, end: end,
		c:    &Consumer[DeadLetter[M]]{core: &consumer{bus: b, topic: dead.name}, read: dead.read},
		room: make([]transport.Message, 64), held: time.Now(), last: time.Now(),
	}
	r.home, _ = transport.CutDead(dead.name)
	if rate > 0 {
		r.every, r.room = time.Second/time.Duration(rate), r.room[:min(rate, len(r.room))]
	}
	for over := false; ; {
		info, err := inspector.Inspect(ctx, dead.name)
		if err != nil {
			return err
		}
		// What nobody was given yet died since, once something came that did.
		g := info.Group(redriveGroup)
		none := g.Lag == 0 || len(r.since) > 0
		switch {
		case none && (over || g.Pending <= int64(len(r.kept)+len(r.since))):
			return nil
		case over:
			return fmt.Errorf("%d dead letters were not looked at, as none came for %v", g.Lag, redriveLease)
		}
		if over, err = r.some(ctx); err != nil {
			return err
		}
	}
}

// endOf returns the place up to which a topic goes now.
func endOf(ctx context.Context, b *Bus, topic string) (transport.Position, error) {
	sub, err := b.transport.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Newest}})
	if err != nil {
		return transport.Position{}, err
	}
	defer sub.Close()
	at, ok := transport.As[transport.Positioner](sub)
	if !ok {
		return transport.Position{}, fmt.Errorf("the transport cannot tell where a topic ends: %w", errors.ErrUnsupported)
	}
	return at.Position(), nil
}

// Dead letters that are looked at are leased for so long.
const redriveLease = 30 * time.Second

// redriving is a Redrive under way.
type redriving[M any] struct {
	sub    transport.Subscription
	mover  transport.Mover
	c      *Consumer[DeadLetter[M]] // which reads them
	home   string
	end    transport.Position // what comes after it died since
	filter func(Message[DeadLetter[M]]) bool
	every  time.Duration // between two that are sent
	next   time.Time     // when the next one may be
	room   []transport.Message
	kept   []transport.Receipt // held until the end, so that they do not come again
	since  []transport.Receipt // of those that died since, in the same way
	held   time.Time           // since when their leases are
	last   time.Time           // when the last one came that died before
	done   *Redriven
}

// some sees to the next dead letters. It is over when those that are left are
// others' to see to: none came for longer than a lease.
func (r *redriving[M]) some(ctx context.Context) (over bool, err error) {
	for {
		if err := r.keep(ctx, nil); err != nil {
			return false, err
		}
		some, cancel := context.WithTimeout(ctx, redriveLease/3)
		n, err := r.sub.Receive(some, r.room)
		cancel()
		lost, _ := errors.AsType[*LostError](err)
		switch {
		case err == nil:
			for i := range r.room[:n] {
				if err := r.keep(ctx, r.room[i:n]); err != nil {
					return false, err
				}
				if r.room[i].Position.Compare(r.end) > 0 {
					r.since = append(r.since, r.room[i].Receipt())
					continue
				}
				if err := r.one(ctx, &r.room[i]); err != nil {
					return false, err
				}
				r.last = time.Now()
			}
			return r.late(), nil
		case lost != nil:
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case !errors.Is(err, context.DeadlineExceeded):
			return false, err
		case r.late():
			return true, nil
		}
	}
}

// late reports whether those that are left are others' to see to.
func (r *redriving[M]) late() bool { return time.Since(r.last) > redriveLease+2*time.Second }

// keep extends the leases of what is kept, and of what is to be looked at, when
// it is time.
func (r *redriving[M]) keep(ctx context.Context, next []transport.Message) error {
	e, ok := transport.As[transport.Extender](r.sub)
	if !ok || len(r.kept)+len(r.since)+len(next) == 0 || time.Since(r.held) < redriveLease/4 {
		return nil
	}
	r.held = time.Now()
	rs := slices.Concat(r.kept, r.since)
	for i := range next {
		rs = append(rs, next[i].Receipt())
	}
	err := e.Extend(ctx, rs, 0)
	if late, ok := errors.AsType[*transport.LeaseError](err); ok { // they come again
		r.kept, r.since = slices.DeleteFunc(r.kept, late.Has), slices.DeleteFunc(r.since, late.Has)
		r.done.Kept = len(r.kept)
		return nil
	}
	return err
}

// one sends a dead letter home, or keeps it.
func (r *redriving[M]) one(ctx context.Context, raw *transport.Message) error {
	v, version, err := r.c.value(raw)
	if err != nil {
		return err
	}
	m := Message[DeadLetter[M]]{*v, raw.ID, r.c.core.topic, raw.Key, raw.Time, ownHeader(raw.Header), version, raw.Attempt, delivery{}}
	if r.filter != nil && !r.filter(m) {
		r.kept = append(r.kept, raw.Receipt())
		r.done.Kept++
		return nil
	}
	if r.every > 0 {
		if err := r.await(ctx); err != nil {
			return err
		}
	}
	err = r.mover.Move(ctx, r.home, homeward(raw), raw.Receipt())
	switch {
	case err == nil:
		r.done.Sent++
		return nil
	case errors.Is(err, ErrLeaseLost): // somebody else sees to it
		return nil
	}
	return err
}

// await keeps to the rate.
func (r *redriving[M]) await(ctx context.Context) error {
	now := time.Now()
	if wait := r.next.Sub(now); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now = r.next
	}
	r.next = now.Add(r.every)
	return nil
}

// homeward is a dead letter as it goes home: as it was published, for the group
// in which it died. Whatever made it expire does not count any more.
func homeward(m *transport.Message) transport.Message {
	h := *m
	redrives, _ := strconv.Atoi(m.Header[headRedrives])
	group := m.Header[headDeadGroup]
	h.Header = make(map[string]string, len(m.Header)+2)
	maps.Copy(h.Header, m.Header)
	maps.DeleteFunc(h.Header, func(name, _ string) bool { return strings.HasPrefix(name, headDead) || name == headExpires })
	h.Header[headRedrives] = strconv.Itoa(max(redrives, 0)%1e9 + 1)
	if group != "" {
		h.Header[headFor] = group
	}
	return h
}
