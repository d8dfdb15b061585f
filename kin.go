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
	f      *family
	topic  string
	sub    transport.Subscription
	dead   bool          // its dead letters have a topic
	lease  time.Duration // 0: messages have no lease
	number uint64        // in tokens

	recalls  sync.Mutex // held while a recall is under way; guards recalled
	recalled int        // how often

	batch  []transport.Message // to be taken; guarded by the family's mu, as are the next ones
	until  time.Duration       // when the leases of batch end
	asks   int                 // of the family, that it heard of
	passed time.Duration       // since when nobody took what it held in time, or forever
	taken  chan struct{}       // closed when all of batch is
}

const (
	kinBatch = 128                   // messages of one topic that are held for the taking
	kinHold  = time.Second           // for so long at most
	kinTurn  = 20 * time.Millisecond // a topic whose messages were given back has the next turn if it is as quick
)

// openKin subscribes to one topic.
func (f *family) openKin(ctx context.Context, topic string) (*kin, error) {
	sub, err := f.bus.transport.Subscribe(ctx, topic, f.opts)
	if err != nil {
		return nil, err
	}
	k := &kin{f: f, topic: topic, sub: sub, passed: forever}
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
		want := min(f.demand(k), kinBatch)
		if want == 0 {
			return
		}
		if len(buf) < want {
			buf = make([]transport.Message, want)
		}
		round := k.round()
		n, err := k.sub.Receive(f.ctx, buf[:want])
		switch lost, ok := errors.AsType[*LostError](err); {
		case err == nil:
			k.offer(buf[:n], round)
			clear(buf[:n])
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

// round waits for a recall under way, and returns how many there were.
func (k *kin) round() int {
	k.recalls.Lock()
	defer k.recalls.Unlock()
	return k.recalled
}

// offer holds messages until all are taken, or gives back those that are not in
// time. They go back at once if there was a recall since they were asked for.
func (k *kin) offer(msgs []transport.Message, round int) {
	f := k.f
	hold := kinHold
	k.recalls.Lock()
	if k.recalled != round {
		k.recalls.Unlock()
		k.release(msgs)
		return
	}
	f.mu.Lock()
	k.batch, k.until, k.taken = msgs, forever, make(chan struct{})
	if k.lease > 0 {
		k.until, hold = clock()+k.lease, min(hold, k.lease/4)
	}
	taken := k.taken
	f.queue(k)
	f.mu.Unlock()
	k.recalls.Unlock()
	f.wake()
	t := time.NewTimer(hold)
	defer t.Stop()
	select {
	case <-taken:
		return
	case <-t.C:
	case <-f.ctx.Done():
	}
	k.recall(f.ctx, true)()
	f.wake() // what others hold may fit
}

// recall takes away what is held for the taking, and returns what gives that
// back: after what was delivered before, which is to come first again. Late says
// that nobody took it in time, and then it has the next turn. Giving back goes on
// in a goroutine of its own when ctx ends.
func (k *kin) recall(ctx context.Context, late bool) (release func()) {
	k.recalls.Lock()
	k.recalled++
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	rest, taken := k.batch, k.taken
	k.batch = nil
	if i := slices.Index(k.f.ready, k); i >= 0 {
		k.f.ready = slices.Delete(k.f.ready, i, i+1)
		if late {
			k.passed = min(k.passed, clock())
			k.f.owed = insertByTurn(k.f.owed, k)
		}
	}
	if len(rest) == 0 {
		return k.recalls.Unlock
	}
	return func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer k.recalls.Unlock()
			k.release(rest)
			close(taken)
		}()
		select {
		case <-done:
		case <-ctx.Done():
			if late { // and Close waits for it
				<-done
			}
		}
	}
}

// release gives back messages that nobody took.
func (k *kin) release(msgs []transport.Message) {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	if err := release(k.f.settling, k.sub, rs); err != nil && !errors.Is(err, ErrClosed) {
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
