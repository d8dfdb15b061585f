package echotest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// Faults says how often each fault strikes: 0 is never, 1 always. Those of
// publishing are decided anew for each attempt to publish. Those of delivery
// strike a message, however often it was stored, once in each group and broadcast
// subscription, so that it is done with in the end. Whatever comes again has a higher Attempt.
type Faults struct {
	RefusePublish  float64 // it returns ErrNotPublished, and nothing is stored
	UnknownPublish float64 // it returns ErrPublishUnknown; every other time or so the message is stored

	Delay     float64 // a delivery comes late, and what is received together or after it, too
	LoseLease float64 // the lease ends before the handler begins: the message comes again at once, and settling this delivery fails
	LoseAck   float64 // an acknowledgement gets lost: the message comes again when its lease ends, so let that be short, or time fake
	Duplicate float64 // a message comes again as soon as it was acknowledged

	MaxDelay time.Duration // of Delay; 0 means 10 ms
}

func (f *Faults) check() error {
	for _, rate := range []float64{f.RefusePublish, f.UnknownPublish, f.Delay, f.LoseLease, f.LoseAck, f.Duplicate} {
		if !(rate >= 0 && rate <= 1) {
			return fmt.Errorf("rate %v: want one from 0 to 1", rate)
		}
	}
	if f.MaxDelay < 0 {
		return fmt.Errorf("MaxDelay %v is negative", f.MaxDelay)
	}
	return nil
}

// FaultCounts is how often faults struck so far.
type FaultCounts struct {
	Refused    int // publishes that failed surely
	Unknown    int // publishes whose outcome was unknown
	Stored     int // those of them that were stored
	Delayed    int
	LostLeases int
	LostAcks   int
	Duplicates int
}

// Faults returns how often faults struck so far; zero without [WithFaults].
func (b *Bus) Faults() FaultCounts {
	if b.faults == nil {
		return FaultCounts{}
	}
	b.faults.mu.Lock()
	defer b.faults.mu.Unlock()
	return b.faults.counts
}

// faulty is a transport that misbehaves. It knows messages by their numbers:
// at which attempt to publish to their topic they were first.
type faulty struct {
	transport.Transport
	seed uint64
	plan Faults

	mu      sync.Mutex        // guards the rest
	last    map[string]uint64 // number by topic
	numbers map[identity]uint64
	opened  map[string]int // broadcasts by topic
	struck  map[strike]bool
	counts  FaultCounts
}

type identity struct{ topic, id string }

// strike is a fault of a message, for one group or broadcast subscription.
type strike struct {
	fault, topic, who string
	number            uint64
}

var errFault = errors.New("a fault made by echotest")

func newFaulty(tr transport.Transport, seed uint64, plan Faults) *faulty {
	if plan.MaxDelay == 0 {
		plan.MaxDelay = 10 * time.Millisecond
	}
	return &faulty{
		Transport: tr, seed: seed, plan: plan,
		last: make(map[string]uint64), numbers: make(map[identity]uint64),
		opened: make(map[string]int), struck: make(map[strike]bool),
	}
}

func (f *faulty) Unwrap() transport.Transport { return f.Transport }

// draw returns what chance says of a strike: the same for the same seed.
func (f *faulty) draw(s strike) *rand.Rand {
	h := fnv.New64a()
	for _, text := range []string{s.fault, s.topic, s.who} {
		h.Write([]byte(text))
		h.Write([]byte{0})
	}
	h.Write(binary.BigEndian.AppendUint64(nil, s.number))
	return rand.New(rand.NewPCG(f.seed, h.Sum64()))
}

// strikes reports whether a fault strikes, which it does once.
func (f *faulty) strikes(s strike, rate float64) bool {
	if rate == 0 || f.draw(s).Float64() >= rate {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.struck[s] {
		return false
	}
	f.struck[s] = true
	return true
}

// count notes a fault that struck.
func (f *faulty) count(counter *int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*counter++
}

// publishing numbers an attempt to publish a message. What is published again
// is known by its first number, as its copies may be delivered at any time.
func (f *faulty) publishing(topic, id string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last[topic]++
	if name := (identity{topic, id}); f.numbers[name] == 0 {
		f.numbers[name] = f.last[topic]
	}
	return f.last[topic]
}

// number returns the number of a message that was delivered. One that was not
// published here gets the next.
func (f *faulty) number(topic, id string) uint64 {
	f.mu.Lock()
	n := f.numbers[identity{topic, id}]
	f.mu.Unlock()
	if n == 0 {
		n = f.publishing(topic, id)
	}
	return n
}

func (f *faulty) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	for i := range msgs {
		n := f.publishing(topic, msgs[i].ID)
		if f.strikes(strike{"refuse", topic, "", n}, f.plan.RefusePublish) {
			return f.fail(ctx, topic, msgs[:i], i, transport.ErrNotPublished)
		}
		if unknown := (strike{"unknown", topic, "", n}); f.strikes(unknown, f.plan.UnknownPublish) {
			unknown.fault = "stored"
			stored := i + f.draw(unknown).IntN(2)
			return f.fail(ctx, topic, msgs[:stored], i, transport.ErrPublishUnknown)
		}
	}
	return f.Transport.Send(ctx, topic, msgs)
}

// fail stores msgs and says that it stored n of them, with an outcome.
func (f *faulty) fail(ctx context.Context, topic string, msgs []transport.Message, n int, outcome error) (int, error) {
	if len(msgs) > 0 {
		if k, err := f.Transport.Send(ctx, topic, msgs); err != nil {
			return min(k, n), err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if outcome == transport.ErrNotPublished {
		f.counts.Refused++
	} else {
		f.counts.Unknown++
		f.counts.Stored += len(msgs) - n
	}
	return n, fmt.Errorf("%w: %w", outcome, errFault)
}

func (f *faulty) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	inner, err := f.Transport.Subscribe(ctx, topic, opts)
	if err != nil {
		return nil, err
	}
	acker, ok1 := transport.As[transport.Acker](inner)
	nacker, ok2 := transport.As[transport.Nacker](inner)
	if !ok1 || !ok2 {
		return inner, nil // which the bus refuses
	}
	who := opts.Group
	if who == "" {
		f.mu.Lock()
		f.opened[topic]++
		who = fmt.Sprintf(" %d", f.opened[topic]) // no group is called so
		f.mu.Unlock()
	}
	return &stricken{Subscription: inner, f: f, topic: topic, who: who, acker: acker, nacker: nacker, held: make(map[transport.Receipt]uint64)}, nil
}
