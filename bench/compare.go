package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// plan says how much to measure.
type plan struct {
	rounds int           // per contender and case
	round  time.Duration // how long a round shall take
	pace   time.Duration // how long to measure latency
}

// contender is one way to carry messages.
type contender struct {
	name string
	open func(subscribers int) (session, error)
}

// session is a contender with its subscribers at work.
type session interface {
	// carry publishes n messages, one after another, and returns when every
	// subscriber has handled and acknowledged what it is due.
	carry(n int) error
	close() error
}

// comparison is a case: two contenders at the same task.
type comparison struct {
	name        string // RATIO name
	what        string
	subscribers int
	ours, peer  contender
}

type result struct {
	comparison
	oursNS, peerNS float64 // medians, per message
	ratio          float64 // median of the rounds' ratios
	spread         [2]float64 // smallest and largest ratio of a round
}

// measure runs a comparison: after a warm-up, rounds of both by turns.
func (c comparison) measure(p plan) (result, error) {
	sides := []contender{c.ours, c.peer}
	counts := make([]int, len(sides))
	for i, s := range sides {
		n, err := calibrate(s, c.subscribers, p.round)
		if err != nil {
			return result{}, fmt.Errorf("%s: %s: %w", c.name, s.name, err)
		}
		counts[i] = n
	}
	times := make([][]float64, len(sides))
	for range p.rounds {
		for i, s := range sides {
			ns, err := timed(s, c.subscribers, counts[i])
			if err != nil {
				return result{}, fmt.Errorf("%s: %s: %w", c.name, s.name, err)
			}
			times[i] = append(times[i], ns)
		}
	}
	r := result{comparison: c}
	ratios := make([]float64, p.rounds)
	for i := range ratios {
		ratios[i] = times[1][i] / times[0][i]
	}
	r.oursNS, r.peerNS = median(times[0]), median(times[1])
	r.ratio = median(ratios)
	r.spread = [2]float64{slices.Min(ratios), slices.Max(ratios)}
	return r, nil
}

// calibrate finds how many messages a contender carries in a round.
func calibrate(s contender, subscribers int, round time.Duration) (int, error) {
	n := 2000
	for {
		ns, err := timed(s, subscribers, n)
		if err != nil {
			return 0, err
		}
		took := time.Duration(ns * float64(n))
		if took > round/8 {
			return max(1000, int(float64(round)/ns)), nil
		}
		n *= 4
	}
}

// timed returns the nanoseconds per message of one fresh session.
func timed(c contender, subscribers, n int) (float64, error) {
	s, err := c.open(subscribers)
	if err != nil {
		return 0, err
	}
	if err := s.carry(n / 10); err != nil { // goroutines, buffers, caches
		return 0, err
	}
	runtime.GC()
	begin := time.Now()
	if err := s.carry(n); err != nil {
		return 0, err
	}
	if err := s.close(); err != nil { // what was handled is acknowledged now
		return 0, err
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(n), nil
}

func median(xs []float64) float64 {
	s := slices.Sorted(slices.Values(xs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// progress prints a line that tells what is being measured.
func progress(w io.Writer, i, n int, what string) {
	fmt.Fprintf(w, "[%d/%d] %s\n", i, n, what)
}
