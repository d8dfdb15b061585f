package echotest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

func watched(t testing.TB) *watch {
	w, err := newWatch(memstream.New())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAWatchedTransportKeepsEveryPromise(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport { return watched(t) })
}

func TestADelayedTransportKeepsEveryPromise(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport {
		return newFaulty(watched(t), 1, Faults{Delay: 0.1, MaxDelay: time.Millisecond})
	})
}

func TestABroadcastWhoseLeaseEndedIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watched(t)
		defer w.Close()
		s, err := w.Subscribe(t.Context(), "t", transport.Options{Lease: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Send(t.Context(), "t", []transport.Message{{ID: "a"}}); err != nil {
			t.Fatal(err)
		}
		for attempt, late := range []bool{true, false} {
			var dst [1]transport.Message
			if _, err := s.Receive(t.Context(), dst[:]); err != nil || dst[0].Attempt != attempt+1 {
				t.Fatalf("got %v, attempt %d, want nil, %d", err, dst[0].Attempt, attempt+1)
			}
			if late {
				time.Sleep(2 * time.Second)
			}
			err := s.(transport.Acker).Ack(t.Context(), []transport.Receipt{dst[0].Receipt()})
			if errors.Is(err, transport.ErrLeaseLost) != late {
				t.Errorf("Ack: got %v, want ErrLeaseLost: %v", err, late)
			}
			if idle, err := w.idle(t.Context(), w.next()); idle == late || err != nil {
				t.Errorf("got idle %v, %v, want %v, nil", idle, err, !late)
			}
		}
	})
}

func TestWhatIsDelayedIsKeptWhenItsReceiverLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFaulty(watched(t), 1, Faults{Delay: 1, MaxDelay: time.Hour})
		defer f.Close()
		s, err := f.Subscribe(t.Context(), "t", transport.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Send(t.Context(), "t", []transport.Message{{ID: "a"}, {ID: "b"}, {ID: "c"}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		defer cancel()
		if n, err := s.Receive(ctx, make([]transport.Message, 3)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %d, %v, want 0 and the end of the context", n, err)
		}
		for _, want := range []string{"a", "b", "c"} {
			var dst [1]transport.Message
			if n, err := s.Receive(t.Context(), dst[:]); n != 1 || err != nil || dst[0].ID != want {
				t.Fatalf("got %d, %v, %q, want 1, nil, %q", n, err, dst[0].ID, want)
			}
		}
		if got := f.counts.Delayed; got != 3 {
			t.Errorf("got %d delays, want 3", got)
		}
	})
}
