package transporttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// endurance: all promises at once, while consumers do their worst.
var endurance = []promise{
	{"nothing is lost, made up or silently doubled while consumers fail, forget and crash", func(b *bench) {
		const publishers, each = 4, 1500
		seed := rand.Uint64()
		l := newLedger()
		var sending, consuming sync.WaitGroup
		drained := make(chan struct{})
		for i := range 3 {
			w := &worker{b: b, l: l, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
			consuming.Go(func() { w.run(drained) })
		}
		for p := range publishers {
			rng := rand.New(rand.NewPCG(seed, 100+uint64(p)))
			sending.Go(func() { b.publish(l, rng, fmt.Sprint("p", p), each) })
		}
		sending.Wait()
		b.whileHandled(l)
		close(drained)
		consuming.Wait()
		for _, v := range l.verdict() {
			b.Errorf("%s (seed %d)", v, seed)
		}
	}},
	{"publishers at once keep each its own order", func(b *bench) {
		const publishers, each = 4, 1500
		s := b.broadcast("t")
		l := newLedger()
		var sending sync.WaitGroup
		defer sending.Wait()
		for p := range publishers {
			rng := rand.New(rand.NewPCG(uint64(p), 7))
			sending.Go(func() { b.publish(l, rng, fmt.Sprint("p", p), each) })
		}
		next := map[string]int{}
		for n := 0; n < publishers*each; {
			msgs := s.receive(min(100, publishers*each-n))
			for _, m := range msgs {
				var i int
				fmt.Sscan(m.Header["n"], &i)
				if i != next[m.Key] {
					b.Fatalf("message %d of %s came where number %d was due", i, m.Key, next[m.Key])
				}
				next[m.Key]++
			}
			s.ack(msgs...)
			n += len(msgs)
		}
	}},
	{"consuming in many short rounds loses nothing", func(b *bench) {
		const n = 1000
		sent := b.sendNew("t", n)
		seen := map[string]bool{}
		for round := 1; len(seen) < n; round++ {
			s := b.group("t", "g")
			ctx, cancel := context.WithTimeout(b.ctx, b.patience)
			dst := make([]transport.Message, 1+round%100)
			k, err := s.Receive(ctx, dst)
			cancel()
			if err != nil {
				b.Fatalf("Receive in round %d after %d messages: %v", round, len(seen), err)
			}
			half := dst[:(k+1)/2]
			s.ack(half...)
			for _, m := range half {
				seen[m.ID] = true
			}
			s.close() // with the other half unsettled
		}
		for _, m := range sent {
			if !seen[m.ID] {
				b.Errorf("message %s was lost", m.ID)
			}
		}
	}},
}

// publish sends n messages of one publisher in batches of random size.
func (b *bench) publish(l *ledger, rng *rand.Rand, name string, n int) {
	for i := 0; i < n; {
		batch := make([]transport.Message, min(1+rng.IntN(20), n-i))
		for k := range batch {
			id := fmt.Sprintf("%s-%d", name, i)
			batch[k] = transport.Message{ID: id, Key: name, Time: time.Now(), Data: []byte("data of " + id), Header: map[string]string{"n": fmt.Sprint(i)}}
			i++
		}
		l.send(batch)
		k, err := b.tr.Send(b.ctx, "t", batch)
		l.accept(batch[:k])
		if err != nil {
			b.Errorf("Send of %d messages: %d, %v", len(batch), k, err)
			return
		}
	}
}

// whileHandled waits until all is handled, or nothing more is for as long as the
// patience lasts: how long the whole takes is the network's affair. What is
// missing then is the ledger's to tell.
func (b *bench) whileHandled(l *ledger) {
	handled, _ := l.progress()
	for end := time.Now().Add(b.patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n, all := l.progress()
		if all {
			return
		}
		if n > handled {
			handled, end = n, time.Now().Add(b.patience)
		}
	}
}

// worker is a member of a group that fails, forgets and crashes at random.
type worker struct {
	b   *bench
	l   *ledger
	rng *rand.Rand
}

func (w *worker) run(stop <-chan struct{}) {
	ctx, cancel := w.b.until(stop)
	defer cancel()
	for ctx.Err() == nil {
		s, err := w.b.tr.Subscribe(w.b.ctx, "t", transport.Options{Group: "g", Lease: shortLease})
		if err != nil {
			w.b.Errorf("Subscribe: %v", err)
			return
		}
		held := w.member(ctx, s)
		w.l.giveBack(held)
		if err := s.Close(); err != nil {
			w.b.Errorf("Close: %v", err)
			return
		}
	}
}

// member works until it crashes, and returns how many messages it held then.
func (w *worker) member(ctx context.Context, s transport.Subscription) (held int) {
	a, _ := transport.As[transport.Acker](s)
	n, _ := transport.As[transport.Nacker](s)
	if a == nil || n == nil {
		w.b.Error("the subscription is no Acker and Nacker")
		<-ctx.Done()
		return 0
	}
	dst := make([]transport.Message, 1+w.rng.IntN(40))
	for {
		k, err := s.Receive(ctx, dst)
		if err != nil {
			if ctx.Err() == nil {
				w.b.Errorf("Receive: %v", err)
				<-ctx.Done()
			}
			return 0
		}
		for _, m := range dst[:k] {
			w.l.deliver(m)
		}
		if w.rng.IntN(60) == 0 {
			return k // crash
		}
		for _, m := range dst[:k] {
			if err := w.settle(a, n, m); err != nil {
				w.b.Errorf("settling %s: %v", m.ID, err)
				return 0
			}
		}
	}
}

// settle acknowledges most messages.
func (w *worker) settle(a transport.Acker, n transport.Nacker, m transport.Message) error {
	r := []transport.Receipt{m.Receipt()}
	var err error
	switch dice := w.rng.IntN(100); {
	case dice < 4:
		w.l.giveBack(1)
		err = n.Nack(w.b.ctx, r, 0)
	case dice < 7:
		w.l.giveBack(1)
		err = n.Nack(w.b.ctx, r, time.Duration(w.rng.IntN(20))*time.Millisecond)
	case dice < 8:
		w.l.giveBack(1) // forget it: its lease will end
	default:
		if err = a.Ack(w.b.ctx, r); err == nil {
			w.l.ack(m.ID)
		} else {
			w.l.giveBack(1)
		}
	}
	if errors.Is(err, transport.ErrLeaseLost) {
		return nil
	}
	return err
}
