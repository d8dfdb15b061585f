package transporttest

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// The checker is checked with transports that are broken on purpose. Each must
// fail the promises named beside it.
func TestBrokenTransportsAreCaught(t *testing.T) {
	const everything = "nothing is lost, made up or silently doubled while consumers fail, forget and crash"
	for _, c := range []struct {
		fault    string
		open     func() transport.Transport
		caughtBy []string
	}{
		{"acknowledges before handling", ackEarly, []string{
			everything,
			"what a closed subscription held goes to its group at once",
			"consuming in many short rounds loses nothing",
		}},
		{"drops one in a thousand", dropOne, []string{
			everything,
			"first deliveries keep the order of Send",
			"publishers at once keep each its own order",
		}},
		{"doubles one in five hundred silently", doubleOne, []string{
			everything,
			"first deliveries keep the order of Send",
			"publishers at once keep each its own order",
		}},
		{"swaps two neighbours", swapTwo, []string{
			"first deliveries keep the order of Send",
			"publishers at once keep each its own order",
		}},
		{"lies about Close", lieAboutClose, []string{
			"a closed transport returns ErrClosed, to waiting calls too",
		}},
		{"lies about Close of a subscription", lieAboutSubClose, []string{
			"a closed subscription returns ErrClosed, to a waiting Receive too",
			"what a closed subscription held goes to its group at once",
		}},
		{"changes one payload in a thousand", corruptOne, []string{everything}},
		{"makes one up", makeOneUp, []string{everything}},
		{"says that every attempt is the first", alwaysFirst, []string{
			everything,
			"a message that is given back comes again with a higher attempt, before later ones",
			"an unsettled message comes again after its lease, and not before",
		}},
		{"moves a message and keeps it", moveHalf, []string{
			"a message that is moved to the dead letters is there once, and settled",
			"a message is moved or settled, and not both",
			"a message that is not held any more is not moved",
		}},
		{"ignores the delay of a nack", hurry, []string{
			"a message given back with a delay comes after it, and holds nobody up",
		}},
		{"ignores the bounds of a subscription", unbounded, []string{
			"a subscription holds no more messages than its bound",
			"a subscription holds no more bytes than its bound, but one message at least",
		}},
		{"receives ahead, and returns that before what went back", eagerly, []string{
			"what goes back comes again before what came after it, though that was asked for and is on its way",
			"what is released comes again in order before what is new, however much it is",
		}},
		{"never ends a lease", endlessLease, []string{
			"an unsettled message comes again after its lease, and not before",
			"a broadcast subscription's unsettled messages come again too",
		}},
		{"misses what comes right after Subscribe", lateSubscribe, []string{
			"a message sent after Subscribe returned is never missed",
		}},
		{"ignores a cancelled context", deaf, []string{
			"a context that has ended stops a call before it does anything",
		}},
		{"accepts every name", anyName, []string{"names that a broker could misread are refused"}},
	} {
		t.Run(c.fault, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			for _, name := range c.caughtBy {
				if r := try(t, name, func(testing.TB) transport.Transport { return c.open() }); !r.failed {
					t.Errorf("%q did not notice", name)
				}
			}
		})
	}
}

// A sound transport, seen through the same glass, breaks no promise.
func TestSoundTransportPasses(t *testing.T) {
	for _, p := range promises() {
		r := try(t, p.name, func(testing.TB) transport.Transport { return memstream.New() })
		if r.failed {
			t.Errorf("%s: %v", p.name, r.log)
		}
	}
}

func TestPromisesHaveDifferentNames(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range promises() {
		if seen[p.name] {
			t.Errorf("there are two promises %q", p.name)
		}
		seen[p.name] = true
	}
}

// try runs one promise and records what it says.
func try(t *testing.T, name string, open func(testing.TB) transport.Transport) *recorder {
	t.Helper()
	rows := promises()
	i := slices.IndexFunc(rows, func(p promise) bool { return p.name == name })
	if i < 0 {
		t.Fatalf("there is no promise %q", name)
	}
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.clean()
		rows[i].check(r, open, time.Second)
	}()
	<-done
	return r
}

// recorder is a testing.TB that notes failures instead of reporting them.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failed   bool
	log      []string
	cleanups []func()
}

func (r *recorder) note(fail bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || fail
	r.log = append(r.log, text)
}

func (r *recorder) Helper()                           {}
func (r *recorder) Logf(format string, args ...any)   { r.note(false, fmt.Sprintf(format, args...)) }
func (r *recorder) Error(args ...any)                 { r.note(true, fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) { r.note(true, fmt.Sprintf(format, args...)) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.note(true, fmt.Sprintf(format, args...))
	runtime.Goexit()
}
func (r *recorder) Skip(args ...any)                 { runtime.Goexit() }
func (r *recorder) Skipf(format string, args ...any) { runtime.Goexit() }
func (r *recorder) Cleanup(f func())                 { r.cleanups = append(r.cleanups, f) }
func (r *recorder) clean() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

func ackEarly() transport.Transport {
	return &faulty{
		Transport: memstream.New(),
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			n, err := s.Receive(ctx, dst)
			if n > 0 {
				ack(ctx, s, receipts(dst[:n]))
			}
			return n, err
		},
		ack: func(context.Context, transport.Subscription, []transport.Receipt) error { return nil },
	}
}

// altering is a transport that may replace each message sent by none or several.
func altering(alter func(i int64, m transport.Message) []transport.Message) transport.Transport {
	t := memstream.New()
	var count atomic.Int64
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			var altered []transport.Message
			for _, m := range msgs {
				altered = append(altered, alter(count.Add(1), m)...)
			}
			if _, err := t.Send(ctx, topic, altered); err != nil {
				return 0, err
			}
			return len(msgs), nil
		},
	}
}

func dropOne() transport.Transport {
	return altering(func(i int64, m transport.Message) []transport.Message {
		if i%1000 == 0 {
			return nil
		}
		return []transport.Message{m}
	})
}

func doubleOne() transport.Transport {
	return altering(func(i int64, m transport.Message) []transport.Message {
		if i%500 == 0 {
			return []transport.Message{m, m}
		}
		return []transport.Message{m}
	})
}

func corruptOne() transport.Transport {
	return altering(func(i int64, m transport.Message) []transport.Message {
		if i%1000 == 0 {
			m.Data = append(slices.Clone(m.Data), '!')
		}
		return []transport.Message{m}
	})
}

func makeOneUp() transport.Transport {
	return altering(func(i int64, m transport.Message) []transport.Message {
		if i == 1000 {
			return []transport.Message{m, {ID: "ghost", Data: []byte("boo")}}
		}
		return []transport.Message{m}
	})
}

// tampering is a transport that does something to what is received.
func tampering(tamper func(msgs []transport.Message)) transport.Transport {
	return &faulty{
		Transport: memstream.New(),
		receive: func(ctx context.Context, s transport.Subscription, dst []transport.Message) (int, error) {
			n, err := s.Receive(ctx, dst)
			tamper(dst[:n])
			return n, err
		},
	}
}

func swapTwo() transport.Transport {
	return tampering(func(msgs []transport.Message) {
		if n := len(msgs); n > 20 {
			msgs[n-1], msgs[n-2] = msgs[n-2], msgs[n-1]
		}
	})
}

func alwaysFirst() transport.Transport {
	return tampering(func(msgs []transport.Message) {
		for i := range msgs {
			msgs[i].Attempt = 1
		}
	})
}

type liar struct{ transport.Transport }

func (liar) Close() error { return nil }

func lieAboutClose() transport.Transport { return liar{memstream.New()} }

// subscribing is a transport with its own way to subscribe.
type subscribing struct {
	transport.Transport
	subscribe func(context.Context, string, transport.Options) (transport.Subscription, error)
}

func (s subscribing) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	return s.subscribe(ctx, topic, o)
}

type openSubscription struct{ transport.Subscription }

func (openSubscription) Close() error                     { return nil }
func (s openSubscription) Unwrap() transport.Subscription { return s.Subscription }

func lieAboutSubClose() transport.Transport {
	t := memstream.New()
	return subscribing{t, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		s, err := t.Subscribe(ctx, topic, o)
		return openSubscription{s}, err
	}}
}

// optioned is a transport that changes the options it is given.
func optioned(change func(*transport.Options)) transport.Transport {
	t := memstream.New()
	return subscribing{t, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		change(&o)
		return t.Subscribe(ctx, topic, o)
	}}
}

func unbounded() transport.Transport {
	return optioned(func(o *transport.Options) { o.MaxPending, o.MaxPendingBytes = 0, 0 })
}

func endlessLease() transport.Transport {
	return optioned(func(o *transport.Options) { o.Lease = time.Hour })
}

type hasty struct{ transport.Subscription }

func (s hasty) Unwrap() transport.Subscription { return s.Subscription }
func (s hasty) Nack(ctx context.Context, rs []transport.Receipt, _ time.Duration) error {
	return s.Subscription.(transport.Nacker).Nack(ctx, rs, 0)
}

// eager has one message more than it was asked for.
type eager struct {
	transport.Subscription
	ahead []transport.Message
}

func eagerly() transport.Transport {
	t := memstream.New()
	return subscribing{t, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		s, err := t.Subscribe(ctx, topic, o)
		return &eager{Subscription: s}, err
	}}
}

func (s *eager) Unwrap() transport.Subscription { return s.Subscription }

func (s *eager) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(s.ahead) > 0 {
		n := copy(dst, s.ahead)
		s.ahead = s.ahead[n:]
		return n, nil
	}
	msgs := make([]transport.Message, len(dst)+1)
	n, err := s.Subscription.Receive(ctx, msgs)
	k := copy(dst, msgs[:n])
	s.ahead = msgs[k:n]
	return k, err
}

// halfMover stores and does not settle.
type halfMover struct {
	transport.Subscription
	t transport.Transport
}

func (s halfMover) Unwrap() transport.Subscription { return s.Subscription }
func (s halfMover) Move(ctx context.Context, topic string, m transport.Message, _ transport.Receipt) error {
	_, err := s.t.Send(ctx, topic, []transport.Message{m})
	return err
}

func moveHalf() transport.Transport {
	t := memstream.New()
	return subscribing{t, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		s, err := t.Subscribe(ctx, topic, o)
		return halfMover{s, t}, err
	}}
}

func hurry() transport.Transport {
	t := memstream.New()
	return subscribing{t, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		s, err := t.Subscribe(ctx, topic, o)
		return hasty{s}, err
	}}
}

// lazily subscribes at the first Receive.
type lazily struct {
	transport.Subscription
	open func() (transport.Subscription, error)
}

func (s *lazily) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if s.Subscription == nil {
		var err error
		if s.Subscription, err = s.open(); err != nil {
			return 0, err
		}
	}
	return s.Subscription.Receive(ctx, dst)
}

func (s *lazily) Close() error { return nil }

func lateSubscribe() transport.Transport {
	t := memstream.New()
	return subscribing{t, func(_ context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		return &lazily{open: func() (transport.Subscription, error) { return t.Subscribe(context.Background(), topic, o) }}, nil
	}}
}

func deaf() transport.Transport {
	t := memstream.New()
	return &faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			return t.Send(context.WithoutCancel(ctx), topic, msgs)
		},
	}
}

// anyName maps every name to one that is allowed.
func anyName() transport.Transport {
	t := memstream.New()
	allowed := func(name string) string {
		if transport.CheckName("", name) == nil {
			return name
		}
		return "x" + strings.Repeat("y", len(name)%100)
	}
	return subscribing{&faulty{
		Transport: t,
		send: func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			return t.Send(ctx, allowed(topic), msgs)
		},
	}, func(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
		if o.Group != "" {
			o.Group = allowed(o.Group)
		}
		return t.Subscribe(ctx, allowed(topic), o)
	}}
}
