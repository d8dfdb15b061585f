package main

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
)

// flowSuite compares flows with the same work written by hand.
var flowSuite = suite{
	name:    "flow",
	page:    "performance-flow.md",
	title:   "What flows cost",
	heading: "Flows, against the same by hand",
	chart:   "Time per run or message, as a flow and by hand",
	peers:   []peer{{"errgroup", "golang.org/x/sync"}},
	quick:   plan{rounds: 15, round: 150 * time.Millisecond, budget: 40 * time.Second},
	full:    plan{rounds: 31, round: 500 * time.Millisecond, budget: 3 * time.Minute, tuned: true},
	measure: measureFlow,
	method:  func(p plan) string { return fmt.Sprintf(flowMethodText, p.rounds, p.round.Milliseconds()) },
}

func measureFlow(w io.Writer, r *report) error {
	single := task{subscribers: 1}
	cases := []comparison{
		{"flow/group8/errgroup", "eight functions at the same time, against errgroup", single, groupOfSteps(), groupByHand()},
		{"flow/stream/handwritten", "in memory, JSON: a topic through a step into another, against a handler that publishes", single, streamed(), handwritten()},
	}
	if r.plan.tuned {
		cases = append(cases, comparison{"flow/batch/handwritten", "the same in batches of 100, against a loop over Batches", single, streamedInBatches(), batchesByHand()})
	}
	step := &steps{w: w, n: len(cases) + 1, begin: time.Now(), budget: r.plan.budget}
	for _, c := range cases {
		res, err := c.measure(r.plan.rounds, r.plan.round, step.next(c.name))
		if err != nil {
			return err
		}
		r.results = append(r.results, res)
	}
	group := r.results[0]
	r.lines = append(r.lines, fmt.Sprintf("OVER flow/group8 %.2f µs over errgroup", (group.oursNS-group.peerNS)/1000))
	step.next("step")
	ns, allocs, err := stepOverhead(r.plan.rounds, r.plan.round)
	if err != nil {
		return err
	}
	r.sections = append(r.sections, section{
		heading: "A step",
		caption: "A step of a sequence of ten, beyond its function",
		text:    "What a step costs, as one of a sequence of ten, less the call of its function.\n",
		table:   table{head: []string{"step", "ns", "allocations"}, rows: [][]string{{"`flow.Func` in `flow.Chain`", fmt.Sprintf("%.0f", ns), fmt.Sprint(allocs)}}},
	})
	r.lines = append(r.lines, fmt.Sprintf("STEP flow/sequence %.0f ns over calling the function, %v allocations", ns, allocs))
	return nil
}

// increment is what the steps do: next to nothing.
func increment(_ context.Context, o order) (order, error) {
	o.Quantity++
	return o, nil
}

// stepOverhead returns what a step of a sequence of ten costs, beyond its function.
func stepOverhead(rounds int, round time.Duration) (ns, allocs float64, err error) {
	const n = 10
	add := func(_ context.Context, i int) (int, error) { return i + 1, nil }
	steps := make([]flow.Step[int, int], n)
	for i := range steps {
		steps[i] = flow.Func("add", add)
	}
	f, err := flow.New("sequence", flow.Chain(steps...))
	if err != nil {
		return 0, 0, err
	}
	functions := make([]func(context.Context, int) (int, error), n)
	for i := range functions {
		functions[i] = add
	}
	ctx := context.Background()
	asFlow := func() error {
		if got, err := f.Run(ctx, 0); got != n || err != nil {
			return fmt.Errorf("the sequence returned %d, %v", got, err)
		}
		return nil
	}
	byHand := func() (err error) {
		got := 0
		for _, f := range functions {
			if got, err = f(ctx, got); err != nil {
				return err
			}
		}
		if got != n {
			return fmt.Errorf("the functions returned %d", got)
		}
		return nil
	}
	var costs []float64
	for range rounds {
		ours, err := perCall(asFlow, round/2)
		if err != nil {
			return 0, 0, err
		}
		peer, err := perCall(byHand, round/2)
		if err != nil {
			return 0, 0, err
		}
		costs = append(costs, (ours-peer)/n)
	}
	return median(costs), testing.AllocsPerRun(1000, func() { err = asFlow() }), err
}

// perCall returns how many nanoseconds a call of f takes.
func perCall(f func() error, d time.Duration) (float64, error) {
	const often = 1000
	calls := 0
	begin := time.Now()
	for time.Since(begin) < d {
		for range often {
			if err := f(); err != nil {
				return 0, err
			}
		}
		calls += often
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(calls), nil
}

// callingSession does its work when it is given a message.
type callingSession struct {
	arrivals
	call func(order) error
}

func (s *callingSession) publish(o order) error {
	if err := s.call(o); err != nil {
		return err
	}
	s.arrivals[0].n.Add(1)
	return nil
}

func (s *callingSession) close() error { return nil }

func groupOfSteps() contender {
	return contender{name: "flow.All", shared: true, open: func([]handler) (session, error) {
		steps := make([]flow.Step[order, order], 8)
		for i := range steps {
			steps[i] = flow.Func("increment", increment)
		}
		f, err := flow.New("group", flow.All("eight", steps...))
		if err != nil {
			return nil, err
		}
		return &callingSession{make(arrivals, 1), func(o order) error {
			all, err := f.Run(context.Background(), o)
			return checkAll(all, err)
		}}, nil
	}}
}

func groupByHand() contender {
	return contender{name: "errgroup", shared: true, open: func([]handler) (session, error) {
		return &callingSession{make(arrivals, 1), func(o order) error {
			all := make([]order, 8)
			g, ctx := errgroup.WithContext(context.Background())
			for i := range all {
				g.Go(func() (err error) {
					all[i], err = increment(ctx, o)
					return err
				})
			}
			return checkAll(all, g.Wait())
		}}, nil
	}}
}

func checkAll(all []order, err error) error {
	if err == nil && (len(all) != 8 || all[7].Quantity != sample.Quantity+1) {
		err = fmt.Errorf("the eight returned %+v", all)
	}
	return err
}

// throughSession carries orders from one topic to another.
type throughSession struct {
	*echoSession
	stop context.CancelFunc
}

var (
	comesIn = echo.NewTopic[order]("in")
	goesOut = echo.NewTopic[order]("out")
)

// through opens a session, whose run takes messages and publishes others until ctx ends.
func through(name string, run func(ctx context.Context, c *echo.Consumer[order], p *echo.Producer[order], handle handler, done *arrival) error) contender {
	return contender{name: name, shared: true, open: func(handlers []handler) (session, error) {
		bus := echo.New()
		s := &throughSession{echoSession: &echoSession{arrivals: make(arrivals, 1), bus: bus, producer: echo.NewProducer(bus, comesIn)}}
		var ctx context.Context
		ctx, s.stop = context.WithCancel(context.Background())
		c, err := echo.Subscribe(ctx, bus, comesIn, echo.WithGroup("flow"))
		if err != nil {
			return nil, err
		}
		s.running.Go(func() {
			if err := run(ctx, c, echo.NewProducer(bus, goesOut), handlers[0], &s.arrivals[0]); err != nil {
				panic(err)
			}
		})
		return s, nil
	}}
}

func (s *throughSession) publishBatch(os []order) error {
	return s.producer.PublishBatch(context.Background(), os)
}

// close ends receiving first: batches that wait are done then.
func (s *throughSession) close() error {
	s.stop()
	s.running.Wait()
	return s.echoSession.close()
}

func streamed() contender {
	return through("flow.Pipe", func(ctx context.Context, c *echo.Consumer[order], p *echo.Producer[order], handle handler, done *arrival) error {
		add := flow.Func("increment", func(ctx context.Context, o order) (order, error) {
			handle(o)
			return increment(ctx, o)
		})
		counted := flow.Map("count", func(o order) order { done.n.Add(1); return o })
		pipe, err := flow.Pipe("stream", flow.Via(flow.FromTopic(c), flow.Then3(add, flow.ToTopic(p), counted)))
		if err != nil {
			return err
		}
		return pipe.Run(ctx)
	})
}

func handwritten() contender {
	return through("a handler", func(ctx context.Context, c *echo.Consumer[order], p *echo.Producer[order], handle handler, done *arrival) error {
		return c.Run(ctx, func(ctx context.Context, m echo.Message[order]) error {
			handle(m.Value)
			o, err := increment(ctx, m.Value)
			if err != nil {
				return err
			}
			if err := p.Publish(ctx, o); err != nil {
				return err
			}
			done.n.Add(1)
			return nil
		})
	})
}

func streamedInBatches() contender {
	return through("flow.Batch", func(ctx context.Context, c *echo.Consumer[order], p *echo.Producer[order], handle handler, done *arrival) error {
		add := flow.Func("increment", func(ctx context.Context, os []order) ([]order, error) {
			return incrementAll(ctx, os, handle)
		})
		counted := flow.Map("count", func(os []order) []order { done.n.Add(int64(len(os))); return os })
		pipe, err := flow.Pipe("stream", flow.Via(flow.Batch(flow.FromTopic(c), 100, time.Millisecond), flow.Then3(add, flow.ToTopicBatch(p), counted)))
		if err != nil {
			return err
		}
		return pipe.Run(ctx)
	})
}

func batchesByHand() contender {
	return through("Consumer.Batches", func(ctx context.Context, c *echo.Consumer[order], p *echo.Producer[order], handle handler, done *arrival) error {
		for b, err := range c.Batches(ctx, 100, time.Millisecond) {
			if err != nil {
				return err
			}
			os := make([]order, len(b))
			for i := range b {
				os[i] = b[i].Value
			}
			if os, err = incrementAll(ctx, os, handle); err != nil {
				return err
			}
			if err := p.PublishBatch(context.Background(), os); err != nil {
				return err
			}
			if err := b.Ack(context.Background()); err != nil {
				return err
			}
			done.n.Add(int64(len(b)))
		}
		return nil
	})
}

func incrementAll(ctx context.Context, os []order, handle handler) (_ []order, err error) {
	for i, o := range os {
		handle(o)
		if os[i], err = increment(ctx, o); err != nil {
			return nil, err
		}
	}
	return os, nil
}

const flowMethodText = `Every case runs both sides by turns, %d rounds of each, about %d ms long, and
gives the median of the rounds' ratios. Functions do next to nothing, so what is
compared is what surrounds them. Flows over topics have one step more, which counts.
`
