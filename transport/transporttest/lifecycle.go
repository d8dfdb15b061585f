package transporttest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// lifecycle: opening, closing, cancelling.
var lifecycle = []promise{
	{"a waiting Receive ends with its context, and the next one gets what comes", func(b *bench) {
		s := b.group("t", "g")
		for range 20 {
			s.nothing(2*time.Millisecond, "nothing was sent")
		}
		m := b.sendNew("t", 1)
		b.sameIDs("after many deadlines", s.receive(1), m)
	}},
	{"a Receive may ask for less than one that was cancelled", func(b *bench) {
		s := b.group("t", "g")
		for range 20 {
			ctx, cancel := context.WithCancel(b.ctx)
			var wg sync.WaitGroup
			wg.Go(cancel)
			var sent []transport.Message
			wg.Go(func() { sent = b.sendNew("t", 5) })
			dst := make([]transport.Message, 100)
			n, err := s.Receive(ctx, dst)
			wg.Wait()
			if err != nil && !errors.Is(err, context.Canceled) {
				b.Fatalf("Receive: %v", err)
			}
			got := dst[:n:n]
			for len(got) < 5 {
				got = append(got, s.one())
			}
			b.sameIDs("all in order", got, sent)
			s.ack(got...)
		}
	}},
	{"cancelling when a message comes loses none", func(b *bench) {
		s := b.group("t", "g")
		for range 200 {
			ctx, cancel := context.WithCancel(b.ctx)
			var wg sync.WaitGroup
			wg.Go(cancel)
			m := b.message()
			wg.Go(func() { b.tr.Send(b.ctx, "t", []transport.Message{m}) })
			dst := make([]transport.Message, 1)
			n, err := s.Receive(ctx, dst)
			wg.Wait()
			if n == 0 && !errors.Is(err, context.Canceled) {
				b.Fatalf("Receive: got 0, %v, want context.Canceled", err)
			}
			if n == 0 {
				dst = s.receive(1)
			}
			if dst[0].ID != m.ID {
				b.Fatalf("got message %s, want %s", dst[0].ID, m.ID)
			}
			s.ack(dst[0])
		}
	}},
	{"a closed subscription returns ErrClosed, to a waiting Receive too", func(b *bench) {
		for _, group := range []string{"", "g"} {
			s := b.group("t."+group+"1", group)
			b.sendNew("t."+group+"1", 1)
			m := s.one()
			waiting := make(chan error, 1)
			go func() {
				_, err := s.Receive(b.ctx, make([]transport.Message, 1))
				waiting <- err
			}()
			time.Sleep(10 * time.Millisecond) // so that it waits, most likely; either order must do
			s.close()
			s.close()
			if err := b.result(waiting, "the waiting Receive to end"); !errors.Is(err, transport.ErrClosed) {
				b.Errorf("group %q: waiting Receive: got %v, want ErrClosed", group, err)
			}
			b.wantClosed(s, m)
		}
	}},
	{"a closed transport returns ErrClosed, to waiting calls too", func(b *bench) {
		s := b.group("t", "g")
		b.sendNew("t", 1)
		m := s.one()
		waiting := make(chan error, 1)
		go func() {
			_, err := s.Receive(b.ctx, make([]transport.Message, 1))
			waiting <- err
		}()
		time.Sleep(10 * time.Millisecond)
		for range 2 {
			if err := b.tr.Close(); err != nil {
				b.Fatalf("Close: %v", err)
			}
		}
		if err := b.result(waiting, "the waiting Receive to end"); !errors.Is(err, transport.ErrClosed) {
			b.Errorf("waiting Receive: got %v, want ErrClosed", err)
		}
		b.wantClosed(s, m)
		for _, topic := range []string{"t", "new"} {
			n, err := b.tr.Send(b.ctx, topic, b.messages(1))
			if n != 0 || !errors.Is(err, transport.ErrClosed) || !errors.Is(err, transport.ErrNotPublished) {
				b.Errorf("Send: got %d, %v, want 0 and an error that wraps ErrClosed and ErrNotPublished", n, err)
			}
			if _, err := b.tr.Subscribe(b.ctx, topic, transport.Options{}); !errors.Is(err, transport.ErrClosed) {
				b.Errorf("Subscribe: got %v, want ErrClosed", err)
			}
		}
		s.close()
	}},
	{"opening and closing in a crowd loses nothing", func(b *bench) {
		keep := b.group("t", "g")
		sent := b.sendNew("t", 50)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for _, group := range []string{"g", ""} {
					s, err := b.tr.Subscribe(b.ctx, "t", transport.Options{Group: group})
					if err != nil {
						b.Errorf("Subscribe: %v", err)
						return
					}
					ctx, cancel := context.WithTimeout(b.ctx, time.Millisecond)
					s.Receive(ctx, make([]transport.Message, 3))
					cancel()
					if err := s.Close(); err != nil {
						b.Errorf("Close: %v", err)
					}
				}
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, m := range keep.receive(50) {
			seen[m.ID] = true
		}
		if len(seen) != len(sent) {
			b.Errorf("got %d different messages, want %d", len(seen), len(sent))
		}
	}},
	{"a closed transport leaves no goroutine behind", func(b *bench) {
		before := runtime.NumGoroutine()
		for i := range 20 {
			topic := fmt.Sprint("t", i)
			s := b.subscribe(topic, transport.Options{Group: "g", Lease: time.Hour})
			b.sendNew(topic, 2)
			s.receive(2)
			s.nothing(time.Millisecond, "all is received")
		}
		b.tr.Close()
		b.eventually("goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	}},
}

// wantClosed checks what a closed subscription, which held m, returns.
func (b *bench) wantClosed(s *sub, m transport.Message) {
	b.Helper()
	if n, err := s.Receive(b.ctx, make([]transport.Message, 1)); n != 0 || !errors.Is(err, transport.ErrClosed) {
		b.Errorf("Receive: got %d, %v, want 0, ErrClosed", n, err)
	}
	if a, ok := transport.As[transport.Acker](s.Subscription); ok {
		if err := a.Ack(b.ctx, []transport.Receipt{m.Receipt()}); !errors.Is(err, transport.ErrClosed) {
			b.Errorf("Ack: got %v, want ErrClosed", err)
		}
	}
}

// until returns a context that ends with stop.
func (b *bench) until(stop <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(b.ctx)
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// await waits for done to be closed.
func (b *bench) await(done <-chan struct{}, what string) {
	b.Helper()
	select {
	case <-done:
	case <-time.After(b.patience):
		b.Fatalf("waited %v for %s", b.patience, what)
	}
}

// result waits for a result.
func (b *bench) result(c <-chan error, what string) error {
	b.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(b.patience):
		b.Fatalf("waited %v for %s", b.patience, what)
		return nil
	}
}

// eventually waits until done returns true.
func (b *bench) eventually(what string, done func() bool) {
	b.Helper()
	for end := time.Now().Add(b.patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("waited %v for %s", b.patience, what)
		}
	}
}
