package transporttest

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func newBench(t *testing.T, tr transport.Transport) *bench {
	t.Cleanup(func() { tr.Close() })
	return &bench{TB: t, ctx: t.Context(), tr: tr, patience: 5 * time.Second}
}

func TestOneAtATime(t *testing.T) {
	mem := memstream.New()
	b := newBench(t, OneAtATime(mem))
	n, err := b.tr.Send(b.ctx, "t", b.messages(3))
	if n != 1 || !errors.Is(err, io.ErrShortWrite) || !errors.Is(err, transport.ErrNotPublished) {
		t.Errorf("Send: got %d, %v, want 1 and a short write", n, err)
	}
	if _, err := mem.Send(b.ctx, "t", b.messages(3)); err != nil {
		t.Fatal(err)
	}
	n, err = b.group("t", "g").Receive(b.ctx, make([]transport.Message, 10))
	if n != 1 || err != nil {
		t.Errorf("Receive: got %d, %v, want 1, nil", n, err)
	}
}

func TestFailAfter(t *testing.T) {
	oops := errors.New("oops")
	b := newBench(t, FailAfter(memstream.New(), 5, oops))
	b.sendNew("t", 3)
	for _, want := range []int{2, 0} {
		if n, err := b.tr.Send(b.ctx, "t", b.messages(4)); n != want || err != oops {
			t.Errorf("Send: got %d, %v, want %d, oops", n, err, want)
		}
	}
	b.group("t", "g").receive(5)
}

func TestDropAcks(t *testing.T) {
	b := newBench(t, DropAcks(memstream.New(), 2))
	s := b.group("t", "g")
	sent := b.sendNew("t", 4)
	for _, m := range s.receive(4) {
		s.ack(m)
	}
	s.close()
	b.sameIDs("every second one comes again", b.group("t", "g").receive(2), []transport.Message{sent[1], sent[3]})
}

func TestDuplicate(t *testing.T) {
	b := newBench(t, Duplicate(memstream.New(), 3))
	s := b.group("t", "g")
	b.sendNew("t", 6)
	got := ids(s.receive(8))
	slices.Sort(got)
	if want := []string{"m-000001", "m-000002", "m-000003", "m-000003", "m-000004", "m-000005", "m-000006", "m-000006"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDelay(t *testing.T) {
	const d = 20 * time.Millisecond
	b := newBench(t, Delay(memstream.New(), d))
	begin := time.Now()
	b.sendNew("t", 1)
	s := b.group("t", "g")
	s.ack(s.one())
	if took := time.Since(begin); took < 3*d {
		t.Errorf("sending, receiving and acknowledging took %v, want at least %v", took, 3*d)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := b.tr.Send(ctx, "t", b.messages(1)); !errors.Is(err, context.Canceled) || !errors.Is(err, transport.ErrNotPublished) {
		t.Errorf("Send: got %v, want a refusal that wraps context.Canceled", err)
	}
}

func TestReorder(t *testing.T) {
	order := func(seed uint64) []string {
		b := newBench(t, Reorder(memstream.New(), seed))
		b.sendNew("t", 50)
		return ids(b.group("t", "g").receive(50))
	}
	if one := order(1); slices.IsSorted(one) || !slices.Equal(one, order(1)) || slices.Equal(one, order(2)) {
		t.Error("want an order that is wrong, and the same for the same seed alone")
	}
}

func TestCut(t *testing.T) {
	tr, cut := Cut(memstream.New())
	b := newBench(t, tr)
	s := b.group("t", "g")
	b.sendNew("t", 1)
	m := s.one()
	waiting := make(chan error, 1)
	go func() {
		_, err := s.Receive(b.ctx, make([]transport.Message, 1))
		waiting <- err
	}()
	cut()
	if err := b.result(waiting, "the waiting Receive to end"); err != ErrCut {
		t.Errorf("Receive: got %v, want ErrCut", err)
	}
	if n, err := tr.Send(b.ctx, "t", b.messages(1)); n != 0 || err != ErrCut {
		t.Errorf("Send: got %d, %v, want 0, ErrCut", n, err)
	}
	if err := capability[transport.Acker](s).Ack(b.ctx, receipts([]transport.Message{m})); err != ErrCut {
		t.Errorf("Ack: got %v, want ErrCut", err)
	}
}

// Faults that break no promise leave the suite green: what is built on a
// transport must bear them, and so must the suite.
func TestHarmlessFaultsPass(t *testing.T) {
	slow := func(testing.TB) transport.Transport { return Delay(memstream.New(), 100*time.Microsecond) }
	for _, name := range []string{"the members of a group share its messages", "settlements of one batch may differ"} {
		if r := try(t, name, slow); r.failed {
			t.Errorf("%s: %v", name, r.log)
		}
	}
}
