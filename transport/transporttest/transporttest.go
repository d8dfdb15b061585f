// Package transporttest checks that a transport keeps the promises of package
// [github.com/echobus/echo/transport], and makes transports misbehave on purpose.
//
// A driver's author calls [Run] and nothing else:
//
//	func TestConformance(t *testing.T) {
//		transporttest.Run(t, func(t testing.TB) transport.Transport { return mydriver.New() })
//	}
//
// Every promise is a subtest whose name is the promise. One that a driver
// cannot keep for lack of a capability is skipped and says which.
//
// The other functions wrap a working transport in a fault, for tests of what is
// built on transports, as package testing/iotest does for readers.
package transporttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/echobus/echo/transport"
)

// Run checks the transports that open returns, a new and empty one each time.
// The suite closes them. It takes some seconds.
func Run(t *testing.T, open func(testing.TB) transport.Transport) {
	for _, p := range promises() {
		t.Run(p.name, func(t *testing.T) { p.check(t, open, patience) })
	}
}

// promise is one row of the suite.
type promise struct {
	name string
	test func(*bench)
}

func promises() []promise {
	return slices.Concat(carriage, delivery, settlement, moving, inspection, terms, leases, lifecycle, endurance)
}

// patience is how long a check waits for what must happen.
const patience = 10 * time.Second

func (p promise) check(t testing.TB, open func(testing.TB) transport.Transport, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), 12*patience)
	defer cancel()
	b := &bench{TB: t, ctx: ctx, tr: open(t), patience: patience}
	defer b.tr.Close()
	p.test(b)
}

// bench is a test with its transport.
type bench struct {
	testing.TB
	ctx      context.Context
	tr       transport.Transport
	patience time.Duration
	sent     int // messages made
}

// message makes a message whose data is its ID.
func (b *bench) message() transport.Message {
	b.sent++
	id := fmt.Sprintf("m-%06d", b.sent)
	return transport.Message{ID: id, Time: time.Now().UTC(), Type: "text/plain", Data: []byte(id)}
}

func (b *bench) messages(n int) []transport.Message {
	msgs := make([]transport.Message, n)
	for i := range msgs {
		msgs[i] = b.message()
	}
	return msgs
}

// send stores msgs, which must succeed.
func (b *bench) send(topic string, msgs ...transport.Message) {
	b.Helper()
	if n, err := b.tr.Send(b.ctx, topic, msgs); n != len(msgs) || err != nil {
		b.Fatalf("Send of %d messages: got %d, %v, want %d, nil", len(msgs), n, err, len(msgs))
	}
}

// sendNew stores n new messages and returns them.
func (b *bench) sendNew(topic string, n int) []transport.Message {
	b.Helper()
	msgs := b.messages(n)
	b.send(topic, msgs...)
	return msgs
}

func (b *bench) subscribe(topic string, opts transport.Options) *sub {
	b.Helper()
	s, err := b.tr.Subscribe(b.ctx, topic, opts)
	if err != nil {
		b.Fatalf("Subscribe(%q, %+v): %v", topic, opts, err)
	}
	b.Cleanup(func() { s.Close() })
	return &sub{Subscription: s, b: b}
}

func (b *bench) group(topic, group string) *sub {
	b.Helper()
	return b.subscribe(topic, transport.Options{Group: group})
}

func (b *bench) broadcast(topic string) *sub {
	b.Helper()
	return b.subscribe(topic, transport.Options{})
}

// sub is a subscription with its test.
type sub struct {
	transport.Subscription
	b *bench
}

// receive receives n messages, one Receive after another.
func (s *sub) receive(n int) []transport.Message {
	s.b.Helper()
	ctx, cancel := context.WithTimeout(s.b.ctx, s.b.patience)
	defer cancel()
	msgs := make([]transport.Message, 0, n)
	for len(msgs) < n {
		k, err := s.Receive(ctx, msgs[len(msgs):n])
		if err != nil {
			s.b.Fatalf("Receive after %d of %d messages: %v", len(msgs), n, err)
		}
		if k < 1 || k > n-len(msgs) {
			s.b.Fatalf("Receive into room for %d: got %d messages and no error", n-len(msgs), k)
		}
		msgs = msgs[:len(msgs)+k]
	}
	return msgs
}

func (s *sub) one() transport.Message {
	s.b.Helper()
	return s.receive(1)[0]
}

// nothing checks that no message comes for d.
func (s *sub) nothing(d time.Duration, why string) {
	s.b.Helper()
	ctx, cancel := context.WithTimeout(s.b.ctx, d)
	defer cancel()
	var dst [1]transport.Message
	if n, err := s.Receive(ctx, dst[:]); n > 0 || !errors.Is(err, context.DeadlineExceeded) {
		s.b.Fatalf("%s: Receive got %d messages (%s attempt %d), %v, want none until the deadline", why, n, dst[0].ID, dst[0].Attempt, err)
	}
}

// capability returns s as a T, or skips the test.
func capability[T any](s *sub) T {
	s.b.Helper()
	c, ok := transport.As[T](s.Subscription)
	if !ok {
		s.b.Skipf("the subscription is no %T", *new(T))
	}
	return c
}

func receipts(msgs []transport.Message) []transport.Receipt {
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	return rs
}

func (s *sub) ack(msgs ...transport.Message) {
	s.b.Helper()
	a := capability[transport.Acker](s)
	if err := a.Ack(s.b.ctx, receipts(msgs)); err != nil {
		s.b.Fatalf("Ack of %d messages: %v", len(msgs), err)
	}
}

func (s *sub) nack(delay time.Duration, msgs ...transport.Message) {
	s.b.Helper()
	n := capability[transport.Nacker](s)
	if err := n.Nack(s.b.ctx, receipts(msgs), delay); err != nil {
		s.b.Fatalf("Nack of %d messages: %v", len(msgs), err)
	}
}

func (s *sub) close() {
	s.b.Helper()
	if err := s.Close(); err != nil {
		s.b.Fatalf("Close of a subscription: %v", err)
	}
}

func ids(msgs []transport.Message) []string {
	ids := make([]string, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	return ids
}

// sameIDs checks that got are want, in this order.
func (b *bench) sameIDs(what string, got, want []transport.Message) {
	b.Helper()
	g, w := ids(got), ids(want)
	if slices.Equal(g, w) {
		return
	}
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			lo := max(0, i-2)
			b.Fatalf("%s: got %d messages, want %d; they differ from number %d on: got %v…, want %v…",
				what, len(g), len(w), i, g[min(lo, len(g)):min(i+3, len(g))], w[min(lo, len(w)):min(i+3, len(w))])
		}
	}
}
