package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// latency is how long messages of a contender were under way at a steady rate:
// from just before Publish to the handler's entry.
type latency struct {
	contender
	load     string // the rate in words
	gap      time.Duration
	messages int
	carried  float64 // messages per second that were handled; fewer than were due if it did not keep up
	p50, p99 time.Duration
}

// Latencies are measured in so many turns, so that a noisy moment of the
// machine hits everybody.
const turns = 5

// tenths are loads for both contenders of a result: each at a tenth of its own
// top rate, and ours at a tenth of the peer's too, which is the same load for both.
func tenths(top result) []latency {
	tenth := func(ns float64) time.Duration { return time.Duration(10 * ns) }
	return []latency{
		{contender: top.ours, load: "a tenth of its top rate", gap: tenth(top.oursNS)},
		{contender: top.ours, load: "a tenth of the peer's", gap: tenth(top.peerNS)},
		{contender: top.peer, load: "a tenth of its top rate", gap: tenth(top.peerNS)},
	}
}

// latencies measures each contender at its load, and fills in what it was.
func latencies(p plan, ls []latency) ([]latency, error) {
	times := make([][]time.Duration, len(ls))
	took := make([]time.Duration, len(ls))
	for range turns {
		for i, l := range ls {
			ts, d, err := paced(l.contender, l.gap, int(p.pace/turns/l.gap))
			if err != nil {
				return nil, fmt.Errorf("latency of %s: %w", l.name, err)
			}
			times[i] = append(times[i], ts...)
			took[i] += d
		}
	}
	for i := range ls {
		l, ts := &ls[i], times[i]
		slices.Sort(ts)
		l.messages = len(ts)
		l.carried = float64(turns*int(p.pace/turns/l.gap)) / took[i].Seconds()
		l.p50, l.p99 = percentile(ts, 50), percentile(ts, 99)
	}
	return ls, nil
}

// paced publishes n messages, one every gap, to one subscriber. It returns how
// long each was under way, but for the first tenth, and how long all took.
//
// The load is an open loop: message i is due at begin + i·gap whatever became
// of those before, and its latency counts from then. A publisher that is late,
// because Publish blocked or the subscriber has the processor, would otherwise
// leave the time it was late out of the account (coordinated omission). One
// that is on time publishes the moment the message is due.
//
// The sequence number travels in Quantity.
func paced(c contender, gap time.Duration, n int) (times []time.Duration, took time.Duration, err error) {
	times = make([]time.Duration, n)
	var begin time.Time
	s, err := c.open([]handler{func(o order) {
		times[o.Quantity] = time.Since(begin) - time.Duration(o.Quantity)*gap
	}})
	if err != nil {
		return nil, 0, err
	}
	runtime.GC()
	o := sample
	begin = time.Now()
	for i := range n {
		o.Quantity = i
		pause(begin.Add(time.Duration(i) * gap))
		if err := s.publish(o); err != nil {
			return nil, 0, err
		}
	}
	if err := await(s, int64(n)); err != nil {
		return nil, 0, err
	}
	took = time.Since(begin)
	return times[n/10:], took, s.close()
}

// pause waits until due. It sleeps through all but the last milliseconds of a
// long gap, since time.Sleep may be one late, and lets others run in a short one.
//
// Those are goroutines as well as threads: a thread that the scheduler of the
// system has put behind the publisher's, which never blocks, would wait for its
// next tick, and 4 ms are all that one would see of the 99th percentile.
func pause(due time.Time) {
	const late = 2 * time.Millisecond
	for {
		switch left := time.Until(due); {
		case left <= 0:
			return
		case left > 2*late:
			time.Sleep(left - late)
		default:
			runtime.Gosched()
			yieldThread()
		}
	}
}

// percentile returns the smallest of the sorted times that p percent of them
// do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
