package echo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// kin is the subscription of a family to one topic. Its goroutine receives while
// the family is asked for messages, and holds what came until that is taken, or
// for a moment: then it gives it back, so that members of the group that have
// time get it.
type kin struct {
	f       *family
	topic   string
	sub     transport.Subscription
	dead    bool          // its dead letters have a topic
	lease   time.Duration // 0: messages have no lease
	recalls sync.Mutex    // held while a recall is under way

	batch []transport.Message // to be taken; guarded by the family's mu, as are the next two
	until time.Duration       // when the leases of batch end
	taken chan struct{}       // closed when all of batch is
}

const (
	kinBatch = 128         // messages of one topic that are held for the taking
	kinHold  = time.Second // for so long at most
)

// openKin subscribes to one topic.
func (f *family) openKin(ctx context.Context, topic string) (*kin, error) {
	sub, err := f.bus.transport.Subscribe(ctx, topic, f.opts)
	if err != nil {
		return nil, err
	}
	k := &kin{f: f, topic: topic, sub: sub}
	mover, err := f.moverFor(topic, sub)
	if err != nil {
		sub.Close()
		return nil, err
	}
	k.dead = mover != nil
	if e, ok := transport.As[transport.Extender](sub); ok {
		k.lease = e.Lease()
	}
	return k, nil
}

// receive is the goroutine of a kin.
func (k *kin) receive() {
	f := k.f
	var buf []transport.Message
	for {
		want := min(f.demand(), kinBatch)
		if want == 0 {
			return
		}
		if len(buf) < want {
			buf = make([]transport.Message, want)
		}
		n, err := k.sub.Receive(f.ctx, buf[:want])
		switch lost, ok := errors.AsType[*LostError](err); {
		case err == nil:
			k.offer(buf[:n])
		case f.ctx.Err() != nil:
			return
		case ok:
			f.lose(lost)
		default:
			f.fail(fmt.Errorf("topic %s: %w", k.topic, err))
			return
		}
	}
}

// offer holds messages until all are taken, or gives back those that are not in time.
func (k *kin) offer(msgs []transport.Message) {
	f := k.f
	hold := kinHold
	f.mu.Lock()
	k.batch, k.until, k.taken = msgs, forever, make(chan struct{})
	if k.lease > 0 {
		k.until, hold = clock()+k.lease, min(hold, k.lease/4)
	}
	taken := k.taken
	f.ready = append(f.ready, k)
	f.mu.Unlock()
	f.wake()
	t := time.NewTimer(hold)
	defer t.Stop()
	select {
	case <-taken:
		return
	case <-t.C:
	case <-f.ctx.Done():
	}
	k.recall()()
}

// recall takes away what is held for the taking, and returns what gives that
// back: after what was delivered before, which is to come first again.
func (k *kin) recall() (release func()) {
	k.recalls.Lock()
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	rest, taken := k.batch, k.taken
	k.batch = nil
	if i := slices.Index(k.f.ready, k); i >= 0 {
		k.f.ready = slices.Delete(k.f.ready, i, i+1)
	}
	return func() {
		defer k.recalls.Unlock()
		if len(rest) > 0 {
			k.release(rest)
			close(taken)
		}
	}
}

// release gives back messages that nobody took.
func (k *kin) release(msgs []transport.Message) {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	if err := release(k.f.bus.settling, k.sub, rs); err != nil && !errors.Is(err, ErrClosed) {
		k.f.bus.cfg.logger.Warn("echo: giving back failed, messages will come again when their leases end", "topic", k.topic, "group", k.f.opts.Group, "error", err)
	}
}

// release gives back deliveries that nobody began to handle.
func release(ctx context.Context, sub transport.Subscription, rs []transport.Receipt) error {
	if r, ok := transport.As[transport.Releaser](sub); ok {
		return r.Release(ctx, rs)
	}
	if n, ok := transport.As[transport.Nacker](sub); ok {
		return n.Nack(ctx, rs, 0)
	}
	return errors.ErrUnsupported
}
