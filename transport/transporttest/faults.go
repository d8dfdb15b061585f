package transporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/transport"
)

// OneAtATime returns a transport that stores and delivers one message per call.
func OneAtATime(t transport.Transport) transport.Transport {
	return &faulty{
		Transport: ShortSend(t, 1),
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			return s.Receive(ctx, dst[:min(1, len(dst))])
		},
	}
}

// ShortSend returns a transport whose Send stores at most n messages of a
// batch and refuses the others with an error that wraps io.ErrShortWrite.
func ShortSend(t transport.Transport, n int) transport.Transport {
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			k, err := t.Send(ctx, topic, msgs[:min(n, len(msgs))])
			if err == nil && k < len(msgs) {
				err = fmt.Errorf("%w: %w", transport.ErrNotPublished, io.ErrShortWrite)
			}
			return k, err
		},
	}
}

// FailAfter returns a transport that stores n messages and then fails every
// Send with err. Let err wrap [transport.ErrNotPublished] for a refusal;
// otherwise the outcome is unknown.
func FailAfter(t transport.Transport, n int, err error) transport.Transport {
	var left atomic.Int64
	left.Store(int64(n))
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			over := -left.Add(-int64(len(msgs)))
			if over <= 0 {
				return t.Send(ctx, topic, msgs)
			}
			room := max(0, len(msgs)-int(over))
			if k, sendErr := t.Send(ctx, topic, msgs[:room]); sendErr != nil {
				return k, sendErr
			}
			return room, err
		},
	}
}

// DropAcks returns a transport that loses every nth acknowledgement, a call of
// Ack, and says that it succeeded.
func DropAcks(t transport.Transport, n int) transport.Transport {
	var count atomic.Int64
	return &faulty{
		Transport: t,
		ack: func(ctx context.Context, s transport.Subscription, rs []transport.Receipt) error {
			if count.Add(1)%int64(n) == 0 {
				return nil
			}
			return ack(ctx, s, rs)
		},
	}
}

// Duplicate returns a transport that delivers every nth message twice, one
// after the other, with the same receipt.
func Duplicate(t transport.Transport, n int) transport.Transport {
	return &faulty{
		Transport: t,
		wrap: func(s transport.Subscription) func(context.Context, []transport.Message) (int, error) {
			d := &duplicator{s: s, n: n}
			return d.receive
		},
	}
}

type duplicator struct {
	s     transport.Subscription
	n     int
	count int
	again []transport.Message
}

func (d *duplicator) receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(d.again) > 0 {
		k := copy(dst, d.again)
		d.again = d.again[k:]
		return k, nil
	}
	k, err := d.s.Receive(ctx, dst)
	for _, m := range dst[:k] {
		if d.count++; d.count%d.n == 0 {
			d.again = append(d.again, m)
		}
	}
	return k, err
}

// Delay returns a transport whose every Send, Receive and Ack takes d longer.
func Delay(t transport.Transport, d time.Duration) transport.Transport {
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			if err := pause(ctx, d); err != nil {
				return 0, fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
			}
			return t.Send(ctx, topic, msgs)
		},
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			if err := pause(ctx, d); err != nil {
				return 0, err
			}
			return s.Receive(ctx, dst)
		},
		ack: func(ctx context.Context, s transport.Subscription, rs []transport.Receipt) error {
			if err := pause(ctx, d); err != nil {
				return err
			}
			return ack(ctx, s, rs)
		},
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reorder returns a transport that shuffles the messages of each Receive, the
// same way for the same seed.
func Reorder(t transport.Transport, seed uint64) transport.Transport {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, seed))
	return &faulty{
		Transport: t,
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			k, err := s.Receive(ctx, dst)
			mu.Lock()
			defer mu.Unlock()
			rng.Shuffle(k, func(i, j int) { dst[i], dst[j] = dst[j], dst[i] })
			return k, err
		},
	}
}

// ErrCut is what a transport returns that was cut.
var ErrCut = errors.New("transporttest: the transport was cut")

// Cut returns a transport that works until cut is called. From then on every
// call fails with [ErrCut], waiting ones too, and nothing is stored or settled.
func Cut(t transport.Transport) (_ transport.Transport, cut func()) {
	broken, end := context.WithCancelCause(context.Background())
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			if broken.Err() != nil {
				return 0, ErrCut
			}
			return t.Send(ctx, topic, msgs)
		},
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			ctx, cancel := context.WithCancelCause(ctx)
			defer context.AfterFunc(broken, func() { cancel(ErrCut) })()
			defer cancel(nil)
			k, err := s.Receive(ctx, dst)
			if k == 0 && context.Cause(ctx) == ErrCut {
				err = ErrCut
			}
			return k, err
		},
		ack: func(ctx context.Context, s transport.Subscription, rs []transport.Receipt) error {
			if broken.Err() != nil {
				return ErrCut
			}
			return ack(ctx, s, rs)
		},
	}, func() { end(ErrCut) }
}

func ack(ctx context.Context, s transport.Subscription, rs []transport.Receipt) error {
	a, ok := transport.As[transport.Acker](s)
	if !ok {
		return errors.ErrUnsupported
	}
	return a.Ack(ctx, rs)
}

// faulty is a transport with some of its calls replaced.
type faulty struct {
	transport.Transport
	send    func(context.Context, string, []transport.Message) (int, error)
	receive func(context.Context, transport.Subscription, []transport.Message) (int, error)
	wrap    func(transport.Subscription) func(context.Context, []transport.Message) (int, error) // a receive with a state
	ack     func(context.Context, transport.Subscription, []transport.Receipt) error
}

func (f *faulty) Unwrap() transport.Transport { return f.Transport }

func (f *faulty) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if f.send == nil {
		return f.Transport.Send(ctx, topic, msgs)
	}
	return f.send(ctx, topic, msgs)
}

func (f *faulty) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	s, err := f.Transport.Subscribe(ctx, topic, opts)
	if err != nil {
		return nil, err
	}
	w := &faultySubscription{Subscription: s, receive: s.Receive}
	switch {
	case f.receive != nil:
		w.receive = func(ctx context.Context, dst []transport.Message) (int, error) { return f.receive(ctx, s, dst) }
	case f.wrap != nil:
		w.receive = f.wrap(s)
	}
	if f.ack == nil {
		return w, nil
	}
	return &faultyAcker{w, f.ack}, nil
}

type faultySubscription struct {
	transport.Subscription
	receive func(context.Context, []transport.Message) (int, error)
}

func (s *faultySubscription) Unwrap() transport.Subscription { return s.Subscription }

func (s *faultySubscription) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	return s.receive(ctx, dst)
}

type faultyAcker struct {
	*faultySubscription
	ack func(context.Context, transport.Subscription, []transport.Receipt) error
}

func (s *faultyAcker) Ack(ctx context.Context, rs []transport.Receipt) error {
	return s.ack(ctx, s.Subscription, rs)
}
