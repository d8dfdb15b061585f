package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotel"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// policySuite compares echo with itself: what policies cost.
var policySuite = suite{
	name:    "policy",
	page:    "performance-policy.md",
	title:   "What delivery policies cost",
	heading: "With policies, against without",
	chart:   "Time per message, with and without policies",
	peers:   []peer{{"OpenTelemetry", "go.opentelemetry.io/otel"}},
	quick:   plan{rounds: 11, round: 200 * time.Millisecond, budget: 60 * time.Second, due: 10 * time.Second},
	full:    plan{rounds: 15, round: time.Second, budget: 5 * time.Minute, due: 10 * time.Second, tuned: true},
	measure: measurePolicy,
	method:  func(p plan) string { return fmt.Sprintf(policyMethodText, p.rounds, p.round.Milliseconds()) },
}

// policies are what a consumer and its producer have switched on.
type policies struct {
	name      string
	retry     bool // attempts, and dead letters after them
	dedup     bool // of what is handled
	once      bool // of what is published, too
	telemetry bool
}

var (
	bare = policies{name: "bare"}
	all  = policies{name: "policies", retry: true, dedup: true, telemetry: true}
)

// bus returns a bus, the options of its consumers, and the topic.
func (p policies) bus(t transport.Transport) (*echo.Bus, []echo.SubscribeOption, *echo.Topic[order]) {
	busOpts := []echo.BusOption{echo.WithTransport(t)}
	opts := []echo.SubscribeOption{echo.WithGroup(redisGroup)}
	var topicOpts []echo.TopicOption
	if p.retry {
		opts = append(opts, echo.WithRetry(echo.Retry{Attempts: 5}))
	}
	if p.dedup {
		opts = append(opts, echo.WithDedup(time.Minute))
	}
	if p.once {
		topicOpts = append(topicOpts, echo.WithDedup(time.Minute))
	}
	if p.telemetry {
		busOpts = append(busOpts, telemetry().Options()...)
	}
	return echo.New(busOpts...), opts, echo.NewTopic[order](redisTopic, topicOpts...)
}

// telemetry is what a service has in production: the SDK with all metrics, and
// one trace in a hundred.
func telemetry() *echotel.Telemetry {
	return echotel.New(
		echotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithResource(resource.Empty()))),
		echotel.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))),
		echotel.WithSampleRatio(0.01),
	)
}

func (p policies) open(t transport.Transport, handlers []handler) (*echoSession, error) {
	bus, opts, topic := p.bus(t)
	s := &echoSession{arrivals: make(arrivals, len(handlers)), bus: bus, producer: echo.NewProducer(bus, topic)}
	for i, handle := range handlers {
		if err := s.subscribe(topic, &s.arrivals[i].n, handle, opts); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (p policies) memory() contender {
	return contender{name: p.name, shared: true, open: func(hs []handler) (session, error) { return p.open(memstream.New(), hs) }}
}

func (p policies) redis(s *server) contender {
	return s.contender(p.name, echoStream, func(hs []handler) (batcher, error) {
		client := s.dial()
		defer client.Close()
		return p.open(redisstream.New(client), hs)
	})
}

// measurePolicy runs the suite and fills in the report.
func measurePolicy(w io.Writer, r *report) error {
	s, err := startServer()
	if err != nil {
		return err
	}
	defer s.Close()
	single, batch := task{subscribers: 1}, task{subscribers: 1, batch: 100}
	cases := []comparison{
		{"policy/memory/bare", "in memory, JSON: retry, dead letters, deduplication and telemetry, against none", single, all.memory(), bare.memory()},
		{"policy/redis/bare", "over Redis, batches of 100: the same", batch, all.redis(s), bare.redis(s)},
		{"policy/call/publish", "a call and its reply, against a publish and its handler", single, calling(), awaiting()},
	}
	if r.plan.tuned {
		for _, p := range []policies{
			{name: "retry", retry: true}, {name: "dedup", dedup: true}, {name: "dedup of publishes", dedup: true, once: true}, {name: "telemetry", telemetry: true},
		} {
			cases = append(cases, comparison{"policy/memory/" + p.name, "in memory, JSON: " + p.name + " alone", single, p.memory(), bare.memory()})
		}
	}
	step := &steps{w: w, n: len(cases) + 2, begin: time.Now(), budget: r.plan.budget}
	for _, c := range cases {
		res, err := c.measure(r.plan.rounds, r.plan.round, step.next(c.name))
		if err != nil {
			return err
		}
		r.results = append(r.results, res)
	}
	for _, l := range []struct {
		name string
		open func() transport.Transport
	}{
		{"memory", func() transport.Transport { return memstream.New() }},
		{"redis", func() transport.Transport {
			client := s.dial()
			defer client.Close()
			return redisstream.New(client)
		}},
	} {
		step.next("late " + l.name)
		p50, p99, err := lateness(l.open(), r.plan.due)
		if err != nil {
			return fmt.Errorf("lateness in %s: %w", l.name, err)
		}
		r.lines = append(r.lines, fmt.Sprintf("LATE policy/%s %.1f ms p50, %.1f ms p99", l.name, milliseconds(p50), milliseconds(p99)))
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// lateness publishes 50,000 messages that are due over a while, and returns how
// late they were handled.
func lateness(t transport.Transport, over time.Duration) (p50, p99 time.Duration, err error) {
	const n = 50_000
	bus := echo.New(echo.WithTransport(t))
	defer bus.Close(context.Background())
	topic := echo.NewTopic[time.Time]("late")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := echo.Subscribe(ctx, bus, topic, echo.WithGroup("g"))
	if err != nil {
		return 0, 0, err
	}
	late := make([]time.Duration, 0, n)
	done := make(chan error, 1)
	go func() {
		done <- c.Run(ctx, func(_ context.Context, m echo.Message[time.Time]) error {
			if late = append(late, time.Since(m.Value)); len(late) == n {
				return c.Close()
			}
			return nil
		})
	}()
	p := echo.NewProducer(bus, topic)
	begin := time.Now().Add(3 * time.Second) // when all are published
	order := make([]int, n)
	for i := range order {
		order[i] = i * 7919 % n // mixed
	}
	for _, i := range order {
		due := begin.Add(time.Duration(i) * over / n)
		if err := p.Publish(ctx, due, echo.WithTime(due)); err != nil {
			return 0, 0, err
		}
	}
	if err := <-done; err != nil {
		return 0, 0, err
	}
	if len(late) != n {
		return 0, 0, fmt.Errorf("%d of %d came", len(late), n)
	}
	slices.Sort(late)
	return percentile(late, 50), percentile(late, 99), nil
}

var mirrors = echo.NewService[order, order]("mirrors")

// callSession publishes by calling a service that returns what it was asked.
type callSession struct {
	*echoSession
	stop context.CancelFunc
}

func calling() contender {
	return contender{name: "call", shared: true, few: 200, open: func(hs []handler) (session, error) {
		s := &callSession{echoSession: &echoSession{arrivals: make(arrivals, len(hs)), bus: echo.New()}}
		var ctx context.Context
		ctx, s.stop = context.WithCancel(context.Background())
		for i, handle := range hs {
			s.running.Go(func() {
				err := echo.Respond(ctx, s.bus, mirrors, func(_ context.Context, m echo.Message[order]) (order, error) {
					handle(m.Value)
					s.arrivals[i].n.Add(1)
					return m.Value, nil
				})
				if err != nil {
					panic(err)
				}
			})
		}
		return s, nil
	}}
}

func (s *callSession) publish(o order) error {
	_, err := echo.Call(context.Background(), s.bus, mirrors, o)
	return err
}

func (s *callSession) close() error {
	s.stop()
	return s.echoSession.close()
}

// awaitSession publishes and waits until it was handled.
type awaitSession struct {
	*echoSession
	handled chan struct{}
}

func awaiting() contender {
	return contender{name: "publish", shared: true, few: 200, open: func(hs []handler) (session, error) {
		handled := make(chan struct{}, 1)
		for i, handle := range hs {
			hs[i] = func(o order) {
				handle(o)
				handled <- struct{}{}
			}
		}
		s, err := bare.open(memstream.New(), hs)
		return &awaitSession{s, handled}, err
	}}
}

func (s *awaitSession) publish(o order) error {
	err := s.echoSession.publish(o)
	if err == nil {
		<-s.handled
	}
	return err
}

const policyMethodText = `Every case runs both sides by turns, %d rounds of each, about %d ms long, and
gives the median of the rounds' ratios. Telemetry is the OpenTelemetry SDK with all
metrics and one trace in a hundred; deduplication is that of a consumer, with a
window of a minute; a message is a dead letter after five attempts, and none fails.
A call waits for its reply before the next one, and so does a publish for its handler.
Lateness is that of 50,000 messages due over ten seconds: from when a message is
due to its handler.
`
