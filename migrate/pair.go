package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// pair is a subscription to two transports at once: it knows by a receipt's
// position which of them a delivery came from.
type pair struct {
	d      *Draining
	topic  string
	given  *given
	parts  [2]*part // old's is nil where new alone is read
	closed atomic.Bool
}

// part is the subscription to one of them, with what it can do.
type part struct {
	transport.Subscription
	acker    transport.Acker
	nacker   transport.Nacker
	releaser transport.Releaser
	extender transport.Extender
	mover    transport.Mover // nil for a broadcast
}

// newPart finds what s can do, and closes it if that is not enough.
func newPart(s transport.Subscription, group bool) (*part, error) {
	p := &part{Subscription: s}
	var ok [5]bool
	p.acker, ok[0] = transport.As[transport.Acker](s)
	p.nacker, ok[1] = transport.As[transport.Nacker](s)
	p.releaser, ok[2] = transport.As[transport.Releaser](s)
	p.extender, ok[3] = transport.As[transport.Extender](s)
	p.mover, ok[4] = transport.As[transport.Mover](s)
	if ok[0] && ok[1] && ok[2] && ok[3] && (ok[4] || !group) {
		return p, nil
	}
	return nil, errors.Join(fmt.Errorf("a transport that cannot acknowledge, give back, lease and move messages: %w", errors.ErrUnsupported), s.Close())
}

// within receives from one side, for at most d. That nothing came, or nothing
// that is for us, is no error.
func (p *pair) within(ctx context.Context, d time.Duration, from side, dst []transport.Message) (int, error) {
	inner, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	n, err := p.take(inner, from, dst)
	switch {
	case err == nil || n > 0:
		return n, nil
	case ctx.Err() != nil && errors.Is(err, inner.Err()):
		return 0, ctx.Err()
	case inner.Err() != nil && errors.Is(err, context.DeadlineExceeded):
		return 0, nil
	}
	return 0, err
}

// take receives from one side and keeps what is not the other's to give.
func (p *pair) take(ctx context.Context, from side, dst []transport.Message) (int, error) {
	n, err := p.parts[from].Receive(ctx, dst)
	if lost, ok := errors.AsType[*transport.LostError](err); ok && from == fromNew {
		e := *lost
		e.Next = mark(e.Next)
		return 0, &e
	}
	if err != nil {
		return 0, err
	}
	var again []transport.Receipt
	kept := 0
	for i := range dst[:n] {
		m := &dst[i]
		if m.Position.Hi&marked != 0 {
			return 0, fmt.Errorf("migrate: topic %s: position %v has the bit that tells the transports of a drainover apart", p.topic, m.Position)
		}
		ours, forgotten := p.given.claim(m.ID, from)
		p.d.forget(p.topic, forgotten)
		if !ours && m.Header[headRedrives] == "" { // a dead letter comes home under its old ID
			again = append(again, m.Receipt())
			continue
		}
		if from == fromNew {
			m.Position = mark(m.Position)
		}
		dst[kept] = *m
		kept++
	}
	clear(dst[kept:n])
	p.d.delivered(from, kept)
	if len(again) > 0 {
		p.d.count.repeated.Add(uint64(len(again)))
		if err := p.parts[from].acker.Ack(ctx, again); err != nil {
			p.d.cfg.logger.Debug("migrate: a repetition was not acknowledged, it comes again", "topic", p.topic, "messages", len(again), "error", err)
		}
	}
	return kept, nil
}

// headRedrives tells, as package echo writes it, how often a message was sent home.
const headRedrives = "echo-redrives"

func (d *Draining) delivered(from side, n int) {
	if from == fromOld {
		d.count.old.Add(uint64(n))
	} else {
		d.count.new.Add(uint64(n))
	}
}

// forget counts IDs that were forgotten, and says so for the first one.
func (d *Draining) forget(topic string, n int) {
	if n > 0 && d.count.forgotten.Add(uint64(n)) == uint64(n) {
		d.cfg.logger.Warn("migrate: more IDs than are remembered: messages may be delivered twice", "topic", topic, "remembered", d.cfg.remembered)
	}
}

// each settles receipts where they belong.
func (p *pair) each(rs []transport.Receipt, do func(*part, []transport.Receipt) error) error {
	if p.closed.Load() {
		return transport.ErrClosed
	}
	var of [2][]transport.Receipt
	for _, r := range rs {
		from, at := sideOf(r.Position)
		of[from] = append(of[from], transport.Receipt{Position: at, Token: r.Token})
	}
	var lost []transport.Receipt
	var failed error
	for from, rs := range of {
		if len(rs) == 0 {
			continue
		}
		err := error(&transport.LeaseError{Lost: rs})
		if part := p.parts[from]; part != nil {
			err = do(part, rs)
		}
		if e, ok := errors.AsType[*transport.LeaseError](err); ok {
			lost = append(lost, ours(side(from), e.Lost)...)
		} else {
			failed = errors.Join(failed, err)
		}
	}
	if failed == nil && lost != nil {
		return &transport.LeaseError{Lost: lost}
	}
	return failed
}

// ours returns receipts of one side as this package gave them.
func ours(from side, rs []transport.Receipt) []transport.Receipt {
	if from == fromOld {
		return rs
	}
	own := make([]transport.Receipt, len(rs))
	for i, r := range rs {
		own[i] = transport.Receipt{Position: mark(r.Position), Token: r.Token}
	}
	return own
}

// Ack implements [transport.Acker].
func (p *pair) Ack(ctx context.Context, rs []transport.Receipt) error {
	return p.each(rs, func(s *part, rs []transport.Receipt) error { return s.acker.Ack(ctx, rs) })
}

// Nack implements [transport.Nacker].
func (p *pair) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	return p.each(rs, func(s *part, rs []transport.Receipt) error { return s.nacker.Nack(ctx, rs, delay) })
}

// Release implements [transport.Releaser].
func (p *pair) Release(ctx context.Context, rs []transport.Receipt) error {
	return p.each(rs, func(s *part, rs []transport.Receipt) error { return s.releaser.Release(ctx, rs) })
}

// Extend implements [transport.Extender].
func (p *pair) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	return p.each(rs, func(s *part, rs []transport.Receipt) error { return s.extender.Extend(ctx, rs, d) })
}

// Lease implements [transport.Extender]: the shorter one.
func (p *pair) Lease() time.Duration {
	d := p.parts[fromNew].extender.Lease()
	if old := p.parts[fromOld]; old != nil {
		d = min(d, old.extender.Lease())
	}
	return d
}

// Close implements [transport.Subscription].
func (p *pair) Close() error {
	p.closed.Store(true)
	err := p.parts[fromNew].Close()
	if old := p.parts[fromOld]; old != nil {
		err = errors.Join(err, old.Close())
	}
	return err
}
