package echotest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
)

var everyFault = echotest.Faults{
	RefusePublish: 0.1, UnknownPublish: 0.1,
	Delay: 0.1, LoseLease: 0.1, LoseAck: 0.1, Duplicate: 0.1,
}

// publishSurely publishes 0 to n-1 until each was surely stored, and returns how
// often it tried.
func publishSurely(t testing.TB, bus *echotest.Bus, topic *echo.Topic[int], n int) (tries int) {
	p := echo.NewProducer(bus.Bus, topic)
	for i := range n {
		for err := errors.New("not tried"); err != nil; tries++ {
			err = p.Publish(context.Background(), i, echo.WithID(fmt.Sprint("m-", i)))
			if err != nil && !errors.Is(err, echo.ErrNotPublished) && !errors.Is(err, echo.ErrPublishUnknown) {
				t.Fatal(err)
			}
		}
	}
	return tries
}

// tally counts deliveries by value.
type tally struct {
	mu     sync.Mutex
	counts map[int]int
	extra  int // deliveries that said that they are not the first
}

func (c *tally) handle(_ context.Context, m echo.Message[int]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[int]int)
	}
	c.counts[m.Value]++
	if m.Attempt > 1 {
		c.extra++
	}
	return nil
}

func TestFaultsHappenAndLoseNothing(t *testing.T) {
	const n = 2000
	type F = echotest.Faults
	for name, c := range map[string]struct {
		faults F
		seen   func(echotest.FaultCounts) int
	}{
		"refused publishes":  {F{RefusePublish: 0.1}, func(c echotest.FaultCounts) int { return c.Refused }},
		"unknown publishes":  {F{UnknownPublish: 0.1}, func(c echotest.FaultCounts) int { return min(c.Stored, c.Unknown-c.Stored) }},
		"delays":             {F{Delay: 0.1}, func(c echotest.FaultCounts) int { return c.Delayed }},
		"lost leases":        {F{LoseLease: 0.1}, func(c echotest.FaultCounts) int { return c.LostLeases }},
		"lost acks":          {F{LoseAck: 0.1}, func(c echotest.FaultCounts) int { return c.LostAcks }},
		"duplicates":         {F{Duplicate: 0.1}, func(c echotest.FaultCounts) int { return c.Duplicates }},
		"duplicates, always": {F{Duplicate: 1}, func(c echotest.FaultCounts) int { return c.Duplicates }},
		"all": {everyFault, func(c echotest.FaultCounts) int {
			return min(c.Refused, c.Stored, c.Unknown-c.Stored, c.Delayed, c.LostLeases, c.LostAcks, c.Duplicates)
		}},
	} {
		for _, concurrency := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s, concurrency %d", name, concurrency), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					bus := echotest.New(t, echotest.WithFaults(1, c.faults), echotest.WithPatience(time.Hour))
					var one, two, all tally
					with := echo.WithConcurrency(concurrency)
					run(t, bus, first, one.handle, echo.WithGroup("g"), with)
					run(t, bus, first, one.handle, echo.WithGroup("g"), with)
					run(t, bus, first, two.handle, echo.WithGroup("h"), with)
					run(t, bus, first, all.handle, with)
					tries := publishSurely(t, bus, first, n)
					bus.WaitIdle(t.Context())

					got := bus.Faults()
					assert.Equal(t, n, tries-got.Refused-got.Unknown)
					assert.Greater(t, c.seen(got), 50, "of %+v", got)
					extra := 0
					for _, c := range []*tally{&one, &two, &all} {
						assert.Len(t, c.counts, n, "values that were handled")
						extra += c.extra
						handled := 0
						for _, times := range c.counts {
							handled += times
						}
						assert.Equal(t, n+got.Stored+c.extra, handled, "what is doubled by the transport says so")
					}
					assert.Equal(t, got.LostLeases+got.LostAcks+got.Duplicates, extra, "deliveries again")
					assert.Len(t, echotest.Published(bus, first), n+got.Stored)
				})
			})
		}
	}
}

func TestTheSameSeedMakesTheSameFaults(t *testing.T) {
	type seen struct {
		counts echotest.FaultCounts
		stored []int
		twice  map[int]int
	}
	with := func(seed uint64) (s seen) {
		synctest.Test(t, func(t *testing.T) {
			bus := echotest.New(t, echotest.WithFaults(seed, everyFault), echotest.WithPatience(time.Hour))
			var c tally
			run(t, bus, first, c.handle, echo.WithGroup("g"), echo.WithConcurrency(4))
			publishSurely(t, bus, first, 500)
			bus.WaitIdle(t.Context())
			s = seen{bus.Faults(), values(echotest.Published(bus, first)), c.counts}
		})
		return s
	}
	one := with(1)
	for range 5 {
		assert.Equal(t, one, with(1))
	}
	assert.NotEqual(t, one.stored, with(2).stored)
}

func TestAKeyKeepsItsOrderThroughDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := echotest.New(t, echotest.WithFaults(1, echotest.Faults{Delay: 0.5}))
		var mu sync.Mutex
		last := map[string]int{}
		run(t, bus, first, func(_ context.Context, m echo.Message[int]) error {
			mu.Lock()
			defer mu.Unlock()
			if before, ok := last[m.Key]; ok && m.Value <= before {
				t.Errorf("key %s: got %d after %d", m.Key, m.Value, before)
			}
			last[m.Key] = m.Value
			return nil
		}, echo.WithConcurrency(4))
		publishSurely(t, bus, first, 500)
		bus.WaitIdle(t.Context())
		assert.Len(t, last, 3)
	})
}

func TestATestThatFailsPrintsItsSeed(t *testing.T) {
	fails := func(t testing.TB) {
		bus := echotest.New(t, echotest.WithFaults(42, echotest.Faults{RefusePublish: 1}))
		echo.NewProducer(bus.Bus, second).Publish(context.Background(), 1)
		echotest.Expect(bus, second, 1)
	}
	assert.Contains(t, try(fails).text(), "seed 42 made the faults {Refused:1 Unknown:0 Stored:0 Delayed:0 LostLeases:0 LostAcks:0 Duplicates:0}; ECHOTEST_SEED=42 makes them again")

	t.Setenv("ECHOTEST_SEED", "7")
	assert.Contains(t, try(fails).text(), "ECHOTEST_SEED=7")
	assert.Empty(t, try(func(t testing.TB) { echotest.New(t, echotest.WithFaults(42, everyFault)) }).text(), "one that passes prints nothing")

	t.Setenv("ECHOTEST_SEED", "seven")
	assert.Contains(t, try(fails).text(), "ECHOTEST_SEED: strconv.ParseUint")
}

func TestFaultsInRealTimeLoseNothing(t *testing.T) {
	f := everyFault
	f.LoseAck, f.MaxDelay = 0, time.Millisecond
	bus := echotest.New(t, echotest.WithFaults(3, f))
	var c, d tally
	run(t, bus, first, c.handle, echo.WithGroup("g"), echo.WithConcurrency(4))
	run(t, bus, first, d.handle)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { publishSurely(t, bus, first, 250) })
	}
	wg.Wait()
	bus.WaitIdle(t.Context())
	require.Len(t, c.counts, 250)
	require.Len(t, d.counts, 250)
	assert.Zero(t, echotest.New(t).Faults())
}
