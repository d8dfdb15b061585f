package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/echobus/echo"
)

// ledger is what came out, by order.
type ledger struct {
	mu       sync.Mutex
	invoiced map[int]int
	shipped  map[int]int
}

// keepLedger publishes orders, kills the flow while it works on them, and accounts for each.
func keepLedger(n, kills int, addr string) error {
	ctx := context.Background()
	bus, err := open(ctx)
	if err != nil {
		return err
	}
	defer bus.Close(ctx)
	l := &ledger{invoiced: make(map[int]int), shipped: make(map[int]int)}
	for _, side := range []struct {
		topic *echo.Topic[Priced]
		seen  map[int]int
	}{{invoices, l.invoiced}, {shipments, l.shipped}} {
		c, err := echo.Subscribe(ctx, bus, side.topic) // before there is anything to miss
		if err != nil {
			return err
		}
		go c.Run(ctx, func(_ context.Context, m echo.Message[Priced]) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			side.seen[m.Value.ID]++
			return nil
		})
	}
	w, err := start(addr)
	if err != nil {
		return err
	}
	defer func() { w.Process.Kill() }()
	published := make(chan error, 1)
	go func() { published <- publish(ctx, bus, n, kills) }()
	for range kills {
		time.Sleep(between(50, 400))
		w.Process.Kill()
		<-w.ended
		next, err := start(addr)
		if err != nil {
			return err
		}
		w = next
	}
	if err := <-published; err != nil {
		return err
	}
	if err := l.settle(n); err != nil {
		return err
	}
	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := <-w.ended; err != nil {
		return fmt.Errorf("the flow did not stop well: %w", err)
	}
	l.print(n, kills)
	return nil
}

func between(least, most int) time.Duration {
	return time.Duration(least+rand.N(most-least)) * time.Millisecond
}

// publish publishes orders as long as the flow is being killed, and then the rest.
func publish(ctx context.Context, bus *echo.Bus, n, kills int) error {
	p := echo.NewProducer(bus, orders)
	pause := time.Duration(kills) * 300 * time.Millisecond / time.Duration(max(n, 1))
	for id := range n {
		if err := p.Publish(ctx, Order{id, rand.N(100), 1 + rand.N(9)}); err != nil {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}

// worker is the flow as a process.
type worker struct {
	*exec.Cmd
	ended chan error
}

// start starts the flow, and returns when it is at work.
func start(addr string) (*worker, error) {
	w := &worker{exec.Command(os.Args[0], "-work", "-page", addr), make(chan error, 1)}
	began := make(chan struct{})
	w.Stderr = os.Stderr
	w.Stdout = &listener{began: began}
	if err := w.Start(); err != nil {
		return nil, err
	}
	go func() { w.ended <- w.Wait() }()
	select {
	case <-began:
		return w, nil
	case err := <-w.ended:
		return nil, fmt.Errorf("the flow did not start: %w", err)
	}
}

// listener prints what the flow says, but for the first line, which says that it is at work.
type listener struct {
	began chan struct{}
	heard bool
}

func (l *listener) Write(p []byte) (int, error) {
	if !l.heard {
		l.heard = true
		close(l.began)
		return len(p), nil
	}
	return os.Stdout.Write(p)
}

// settle waits until everything has come out, or nothing more does.
func (l *ledger) settle(n int) error {
	const patience = 20 * time.Second
	seen, since := -1, time.Now()
	for {
		l.mu.Lock()
		now, out := len(l.invoiced)+len(l.shipped), 2*n
		l.mu.Unlock()
		switch {
		case now == out:
			return nil
		case now != seen:
			seen, since = now, time.Now()
		case time.Since(since) > patience:
			return fmt.Errorf("lost: %d of %d invoices and shipments did not come", out-now, out)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (l *ledger) print(n, kills int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Printf("killed %d times: %d of %d orders have an invoice, %d were shipped, none is lost\n", kills, len(l.invoiced), n, len(l.shipped))
	fmt.Printf("work that was repeated: %d invoices, %d shipments\n", more(l.invoiced), more(l.shipped))
}

// more is how often something came more than once.
func more(seen map[int]int) (n int) {
	for _, times := range seen {
		n += times - 1
	}
	return n
}
