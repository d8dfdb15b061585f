package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// plan says how much to measure.
type plan struct {
	rounds int           // per contender and case
	round  time.Duration // how long a round shall take
	pace   time.Duration // how long to measure each latency
	budget time.Duration // how long all of it shall take at most

	// Of the suite memory.
	tuned bool // whether to measure tuned peers too

	// Of the suite redis.
	deaths int           // how often a consumer dies
	legacy int           // messages that it leaves
	claims int           // how often Watermill may claim some of them
	idle   time.Duration // how long to watch what does nothing

	// Of the suite policy.
	due time.Duration // over how long delayed messages are due
}

// A case has so many rounds even when the time is up.
const fewest = 3

// contender is one way to carry messages.
type contender struct {
	name   string
	shared bool // each message goes to one of the subscribers
	window int  // messages that may be unhandled at once; 0: any number
	least  int  // messages that a round must have to be fair
	few    int  // messages to begin calibrating with; 0: 2,000. A round has half as many at least
	// open starts a subscriber for each handler.
	open func(handlers []handler) (session, error)
}

// handler is what a subscriber does with a message.
type handler func(order)

// session is a contender with its subscribers at work.
type session interface {
	publish(order) error
	// total counts messages handled so far, over all subscribers.
	total() int64
	// close returns when what was handled is acknowledged.
	close() error
}

// batcher is a session that publishes several orders at once.
type batcher interface {
	session
	publishBatch([]order) error
}

// task is what the contenders of a case do.
type task struct {
	subscribers int
	publishers  int // goroutines, each of which awaits its own publish; 0: one
	batch       int // messages to publish at once, by one goroutine; 0: single ones
}

// comparison is a case: two contenders at the same task.
type comparison struct {
	name string // RATIO name
	what string
	task
	ours, peer contender
}

type result struct {
	comparison
	oursNS, peerNS float64 // medians, per message
	rounds         int
	ratio          float64    // median of the rounds' ratios
	spread         [2]float64 // smallest and largest ratio of a round
}

// measure runs a comparison: after a warm-up, rounds of both by turns, until
// the time is up.
func (c comparison) measure(rounds int, round time.Duration, until time.Time) (result, error) {
	sides := []contender{c.ours, c.peer}
	counts := make([]int, len(sides))
	for i, s := range sides {
		n, err := calibrate(s, c.task, round)
		if err != nil {
			return result{}, fmt.Errorf("%s: %s: %w", c.name, s.name, err)
		}
		counts[i] = max(n, s.least)
		if s.least > 0 { // its rounds are long
			rounds /= 2
		}
	}
	times := make([][]float64, len(sides))
	for r := 0; r < max(rounds, fewest) && (r < fewest || time.Now().Before(until)); r++ {
		for i, s := range sides {
			ns, err := timed(s, c.task, counts[i])
			if err != nil {
				return result{}, fmt.Errorf("%s: %s: %w", c.name, s.name, err)
			}
			times[i] = append(times[i], ns)
		}
	}
	return newResult(c, times[0], times[1]), nil
}

// newResult sums up what the rounds of both sides took.
func newResult(c comparison, ours, peer []float64) result {
	ratios := make([]float64, len(ours))
	for i := range ratios {
		ratios[i] = peer[i] / ours[i]
	}
	return result{
		comparison: c,
		rounds:     len(ours),
		oursNS:     median(ours),
		peerNS:     median(peer),
		ratio:      median(ratios),
		spread:     [2]float64{slices.Min(ratios), slices.Max(ratios)},
	}
}

// calibrate finds how many messages a contender carries in a round.
func calibrate(s contender, t task, round time.Duration) (int, error) {
	n := 2000
	if s.few > 0 {
		n = s.few
	}
	fewest := n / 2
	for {
		ns, err := timed(s, t, n)
		if err != nil {
			return 0, err
		}
		took := time.Duration(ns * float64(n))
		if took > round/8 {
			return max(fewest, int(float64(round)/ns)), nil
		}
		n *= 4
	}
}

// timed returns the nanoseconds per message of one fresh session.
func timed(c contender, t task, n int) (float64, error) {
	s, err := c.open(slices.Repeat([]handler{check}, t.subscribers))
	if err != nil {
		return 0, err
	}
	if err := c.carry(s, t, n/10); err != nil { // goroutines, buffers, caches
		return 0, err
	}
	runtime.GC()
	begin := time.Now()
	if err := c.carry(s, t, n); err != nil {
		return 0, err
	}
	if err := s.close(); err != nil { // what was handled is acknowledged now
		return 0, err
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(n), nil
}

// check is the handler of rounds. It does next to nothing: what is measured is
// what the contender costs.
func check(o order) {
	if o.Quantity != sample.Quantity {
		panic(fmt.Sprintf("a subscriber was given %+v", o))
	}
}

// A publisher that is bound by a window looks at it once in so many messages,
// which saves most of what looking costs.
const glance = 16

// carry publishes n messages and returns when every subscriber has handled
// what it is due.
func (c contender) carry(s session, t task, n int) error {
	copies := t.subscribers
	if c.shared {
		copies = min(copies, 1)
	}
	before := s.total()
	var err error
	switch {
	case t.batch > 1:
		err = publishBatches(s, t.batch, n)
	case t.publishers > 1:
		err = publishAtOnce(s, t.publishers, n)
	default:
		err = c.publishAll(s, before, copies, n)
	}
	if err != nil {
		return err
	}
	return await(s, before+int64(n*copies))
}

// publishAll publishes n messages, one after another, within the window.
func (c contender) publishAll(s session, before int64, copies, n int) error {
	for i := range n {
		if c.window > 0 && i%glance == 0 {
			if err := await(s, before+int64((i+glance-c.window)*copies)); err != nil {
				return err
			}
		}
		if err := s.publish(sample); err != nil {
			return err
		}
	}
	return nil
}

func publishBatches(s session, size, n int) error {
	b, ok := s.(batcher)
	if !ok {
		return fmt.Errorf("%T publishes no batches", s)
	}
	batch := slices.Repeat([]order{sample}, size)
	for ; n > 0; n -= size {
		if err := b.publishBatch(batch[:min(n, size)]); err != nil {
			return err
		}
	}
	return nil
}

// publishAtOnce publishes n messages from so many goroutines, each of which
// awaits its publish before the next.
func publishAtOnce(s session, publishers, n int) error {
	var begun atomic.Int64
	var publishing sync.WaitGroup
	errs := make([]error, publishers)
	for i := range errs {
		publishing.Go(func() {
			for errs[i] == nil && begun.Add(1) <= int64(n) {
				errs[i] = s.publish(sample)
			}
		})
	}
	publishing.Wait()
	return errors.Join(errs...)
}

// await waits until a session has handled so many messages. One that gets
// nothing done for long will not, because it lost some.
func await(s session, want int64) error {
	const long = 10 * time.Second
	begin := time.Now()
	last, since := s.total(), begin
	for n := last; n < want; n = s.total() {
		now := time.Now()
		if n > last {
			last, since = n, now
		}
		if now.Sub(since) > long {
			return fmt.Errorf("no message handled in %v, %d are missing", long, want-n)
		}
		// Looking often takes the processor from those who are looked at.
		time.Sleep(min(max(now.Sub(begin)/1000, 20*time.Microsecond), time.Millisecond))
	}
	return nil
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// steps tells what is being measured and shares out the time there is for it.
type steps struct {
	w      io.Writer
	i, n   int
	begin  time.Time
	budget time.Duration
}

// next begins a step and returns when its time is up. What steps before it
// left over is added.
func (s *steps) next(what string) (until time.Time) {
	s.i++
	fmt.Fprintf(s.w, "[%d/%d] %s\n", s.i, s.n, what)
	return s.begin.Add(s.budget * time.Duration(s.i) / time.Duration(s.n))
}
