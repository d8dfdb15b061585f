package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/redisstream"
)

// shop takes orders, and knows what became of them.
type shop struct {
	server *redisstream.Transport
	bus    *echo.Bus

	mu      sync.Mutex
	ordered []string
	done    map[Step]int // by order and group: how often
}

// keepShop opens the shop for a while and accounts for all orders at the end.
func keepShop(lasts time.Duration, rate int) error {
	ctx := context.Background()
	server, bus, err := open(ctx)
	if err != nil {
		return err
	}
	s := &shop{server: server, bus: bus, done: map[Step]int{}}
	record, err := echo.Subscribe(ctx, bus, steps) // before there is anything to miss
	if err != nil {
		return err
	}
	go record.Run(ctx, s.note)

	staff, err := hire()
	if err != nil {
		return err
	}
	defer staff.dismiss()
	end := time.Now().Add(lasts)
	go s.show(ctx)
	go staff.suffer(end)
	if err := s.takeOrders(ctx, end, rate); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	_, err = bus.Close(ctx)
	return err
}

func (s *shop) note(_ context.Context, m echo.Message[Step]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[Step{Order: m.Value.Order, Group: m.Value.Group}]++
	return nil
}

// takeOrders publishes orders until end.
func (s *shop) takeOrders(ctx context.Context, end time.Time, rate int) error {
	p := echo.NewProducer(s.bus, orders)
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	run := time.Now().Format("150405")
	for n := 1; time.Now().Before(end); n++ {
		<-tick.C
		o := Order{ID: fmt.Sprintf("%s-%d", run, n), Customer: fmt.Sprint("customer-", rand.N(50)), Total: float64(rand.N(100_00)) / 100}
		if err := p.Publish(ctx, o, echo.WithKey(o.Customer)); err != nil {
			return err
		}
		s.mu.Lock()
		s.ordered = append(s.ordered, o.ID)
		s.mu.Unlock()
	}
	return nil
}

// settle waits until both groups have done all orders, and prints the account.
func (s *shop) settle(ctx context.Context) error {
	for wait := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		missing, repeated := s.account()
		if missing == 0 {
			fmt.Printf("%d orders: every one billed and shipped; %d steps were repeated because a worker was killed\n", len(s.ordered), repeated)
			return nil
		}
		if time.Since(wait) > time.Minute {
			return fmt.Errorf("%d steps are missing", missing)
		}
	}
}

func (s *shop) account() (missing, repeated int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.ordered {
		for _, group := range []string{"billing", "shipping"} {
			if n := s.done[Step{Order: id, Group: group}]; n == 0 {
				missing++
			} else {
				repeated += n - 1
			}
		}
	}
	return missing, repeated
}

// show prints how far the groups are behind.
func (s *shop) show(ctx context.Context) {
	begin := time.Now()
	for range time.Tick(500 * time.Millisecond) {
		groups, err := s.server.Groups(ctx, orders.Name())
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%5.1f s", time.Since(begin).Seconds())
		for _, g := range groups {
			behind := g.Lag + g.Pending
			bar := strings.Repeat("#", int(min(behind/15, 20)))
			fmt.Printf("  %-8s %4d %-20s", g.Name, behind, bar)
		}
		fmt.Println()
	}
}

// staff are the processes of the workers.
type staff struct {
	mu        sync.Mutex
	processes []*exec.Cmd
	dismissed bool
}

func hire() (*staff, error) {
	s := &staff{processes: make([]*exec.Cmd, len(workers))}
	for i := range workers {
		if err := s.start(i); err != nil {
			s.dismiss()
			return nil, err
		}
	}
	return s, nil
}

// start starts a worker. The caller holds mu, or has s for itself.
func (s *staff) start(i int) error {
	w := workers[i]
	cmd := exec.Command(os.Args[0], "-work", w.group, "-name", w.name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	s.processes[i] = cmd
	return nil
}

// suffer kills a worker every other second, the last first, and starts it
// again a second later.
func (s *staff) suffer(end time.Time) {
	for i := len(workers) - 1; ; i = (i + len(workers) - 1) % len(workers) {
		time.Sleep(time.Second)
		s.mu.Lock()
		if s.dismissed || time.Now().After(end) {
			s.mu.Unlock()
			return
		}
		fmt.Printf("         %s is killed\n", workers[i].name)
		s.processes[i].Process.Kill()
		s.processes[i].Wait()
		s.mu.Unlock()

		time.Sleep(time.Second)
		s.mu.Lock()
		if !s.dismissed {
			if err := s.start(i); err != nil {
				fmt.Println(err)
			}
		}
		s.mu.Unlock()
	}
}

// dismiss ends all workers.
func (s *staff) dismiss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dismissed = true
	for _, p := range s.processes {
		if p != nil {
			p.Process.Kill()
			p.Wait()
		}
	}
}
