package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"gocloud.dev/pubsub"
	"gocloud.dev/pubsub/mempubsub"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
)

// order is the payload everybody carries.
type order struct {
	ID       string
	Quantity int
	Total    float64
	Customer string
}

var sample = order{"o-20931", 3, 12.5, "alice"}

var (
	echoJSON  = echoMemory("echo, JSON", false, false)
	echoValue = echoMemory("echo, by value", true, false)
	echoGroup = echoMemory("echo, a group", true, true)
)

// memoryCases are what the suite is for: each has a RATIO line.
var memoryCases = []comparison{
	{"memory/json/1x1/watermill", "one publisher, one subscriber, JSON", task{subscribers: 1}, echoJSON, watermillGoChannel},
	{"memory/json/1x8/watermill", "one publisher, eight subscribers, JSON", task{subscribers: 8}, echoJSON, watermillGoChannel},
	{"memory/value/1x1/watermill", "one subscriber, values by reference; the peer has JSON only", task{subscribers: 1}, echoValue, watermillGoChannel},
	{"memory/value/1x8/watermill", "eight subscribers, values by reference; the peer has JSON only", task{subscribers: 8}, echoValue, watermillGoChannel},
	{"memory/json/1x1/gocloud", "one publisher, one subscriber, JSON", task{subscribers: 1}, echoJSON, goCloudMem},
	{"memory/value/group4/channel", "a group of four, against four goroutines on a Go channel", task{subscribers: 4}, echoGroup, bufferedChannel},
}

// tunedCases have the peer tuned, so that a reader sees what its defaults cost it.
func tunedCases() (cases []comparison) {
	for _, subs := range []int{1, 8} {
		for _, peer := range watermillTuned {
			what := fmt.Sprintf("1×%d, %s", subs, peer.name)
			cases = append(cases, comparison{"tuned", what, task{subscribers: subs}, echoJSON, peer})
		}
	}
	return cases
}

// memorySuite compares in memory.
var memorySuite = suite{
	name:    "memory",
	page:    "performance.md",
	title:   "Performance",
	heading: "In memory",
	chart:   "Time per message, in memory",
	peers: []peer{
		{"Watermill", "github.com/ThreeDotsLabs/watermill"},
		{"Go Cloud", "gocloud.dev"},
	},
	quick:   plan{rounds: 11, round: 150 * time.Millisecond, pace: 1500 * time.Millisecond, budget: 40 * time.Second},
	full:    plan{rounds: 15, round: 500 * time.Millisecond, pace: 5 * time.Second, budget: 5 * time.Minute, tuned: true},
	measure: measureMemory,
	method: func(p plan) string {
		return fmt.Sprintf(memoryMethodText, grouped(float64(goCloudMem.least)), p.rounds, p.round.Milliseconds())
	},
}

// measureMemory runs the suite and fills in the report.
func measureMemory(w io.Writer, r *report) error {
	var tuned []comparison
	if r.plan.tuned {
		tuned = tunedCases()
	}
	p := r.plan
	step := &steps{w: w, n: len(memoryCases) + len(tuned) + 1, begin: time.Now(), budget: p.budget}
	for _, c := range memoryCases {
		res, err := c.measure(p.rounds, p.round, step.next(c.name))
		if err != nil {
			return err
		}
		r.results = append(r.results, res)
	}
	var results []result
	for _, c := range tuned {
		res, err := c.measure(p.rounds/2, p.round, step.next(c.what))
		if err != nil {
			return err
		}
		results = append(results, res)
	}
	if len(results) > 0 {
		r.sections = append(r.sections, tunedSection(results))
	}
	step.next("latency")
	ls, err := latencies(p, tenths(r.results[0]))
	if err != nil {
		return err
	}
	r.sections = append(r.sections, section{
		heading: "Latency",
		caption: "Latency, one publisher, one subscriber, JSON",
		text:    memoryLatencyText + openLoopText,
		table:   latencyTable(ls),
	})
	return nil
}

func tunedSection(rs []result) section {
	t := table{head: []string{"subscribers", "peer with", "ours ns/msg", "peer ns/msg", "ratio", "smallest–largest", "rounds"}}
	for _, r := range rs {
		t.rows = append(t.rows, append([]string{strconv.Itoa(r.subscribers), r.peer.name}, figures(r)...))
	}
	return section{
		heading: "Tuned peers",
		caption: "For information: echo, JSON, against Watermill GoChannel tuned",
		text:    tunedText,
		table:   t,
	}
}

// arrivals counts what subscribers are done with, each on a cache line of its
// own, so that counting costs next to nothing.
type arrivals []arrival

type arrival struct {
	n atomic.Int64
	_ [56]byte
}

func (a arrivals) total() (n int64) {
	for i := range a {
		n += a[i].n.Load()
	}
	return n
}

// echoSession is echo with one consumer per subscriber.
type echoSession struct {
	arrivals
	bus      *echo.Bus
	producer *echo.Producer[order]
	running  sync.WaitGroup
}

// echoMemory is echo with JSON or values, broadcast or to a group.
func echoMemory(name string, values, group bool) contender {
	var transportOpts []memstream.Option
	if values {
		transportOpts = append(transportOpts, memstream.WithValues())
	}
	var opts []echo.SubscribeOption
	if group {
		opts = append(opts, echo.WithGroup("workers"))
	}
	return contender{name: name, shared: group, open: func(handlers []handler) (session, error) {
		topic := echo.NewTopic[order]("orders")
		bus := echo.New(echo.WithTransport(memstream.New(transportOpts...)))
		s := &echoSession{arrivals: make(arrivals, len(handlers)), bus: bus, producer: echo.NewProducer(bus, topic)}
		for i, handle := range handlers {
			if err := s.subscribe(topic, &s.arrivals[i].n, handle, opts); err != nil {
				return nil, err
			}
		}
		return s, nil
	}}
}

func (s *echoSession) subscribe(topic *echo.Topic[order], done *atomic.Int64, handle handler, opts []echo.SubscribeOption) error {
	ctx := context.Background()
	c, err := echo.Subscribe(ctx, s.bus, topic, opts...)
	if err != nil {
		return err
	}
	s.running.Go(func() {
		err := c.Run(ctx, func(ctx context.Context, m echo.Message[order]) error {
			handle(m.Value)
			done.Add(1)
			return nil
		})
		// A member of a group may start when others have done all there was.
		if err != nil && !errors.Is(err, echo.ErrClosed) {
			panic(err)
		}
	})
	return nil
}

func (s *echoSession) publish(o order) error {
	return s.producer.Publish(context.Background(), o)
}

// close drains the bus, so that what was handled is acknowledged.
func (s *echoSession) close() error {
	acc, err := s.bus.Close(context.Background())
	s.running.Wait()
	if err == nil && acc.Abandoned+acc.GivenBack > 0 {
		err = fmt.Errorf("close left %+v", acc)
	}
	return err
}

// watermillSession is Watermill's Pub/Sub in memory.
type watermillSession struct {
	arrivals
	ps      *gochannel.GoChannel
	running sync.WaitGroup
}

// watermillGoChannel has Watermill's defaults.
var watermillGoChannel = watermillMemory("Watermill GoChannel", gochannel.Config{}, 0)

// watermillTuned is Watermill with the options that bear on speed, and with a
// publisher that holds back. Every message that waits has goroutines, and a
// crowd of them is slow: of windows of 16, 100, 1,000 and 10,000 messages, 100
// served it best with one subscriber and nearly so with eight.
var watermillTuned = []contender{
	watermillMemory("OutputChannelBuffer 1024", gochannel.Config{OutputChannelBuffer: 1024}, 0),
	watermillMemory("BlockPublishUntilSubscriberAck", gochannel.Config{BlockPublishUntilSubscriberAck: true}, 0),
	watermillMemory("at most 100 messages unhandled", gochannel.Config{}, 100),
	watermillMemory("OutputChannelBuffer 1024, at most 100 unhandled", gochannel.Config{OutputChannelBuffer: 1024}, 100),
}

func watermillMemory(name string, cfg gochannel.Config, window int) contender {
	return contender{name: name, window: window, open: func(handlers []handler) (session, error) {
		s := &watermillSession{arrivals: make(arrivals, len(handlers))}
		s.ps = gochannel.NewGoChannel(cfg, watermill.NopLogger{})
		for i, handle := range handlers {
			ch, err := s.ps.Subscribe(context.Background(), "orders")
			if err != nil {
				return nil, err
			}
			s.running.Go(func() {
				for m := range ch {
					handle(decoded(m.Payload))
					m.Ack()
					s.arrivals[i].n.Add(1)
				}
			})
		}
		return s, nil
	}}
}

func (s *watermillSession) publish(o order) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return s.ps.Publish("orders", message.NewMessage(watermill.NewUUID(), data))
}

func (s *watermillSession) close() error {
	err := s.ps.Close()
	s.running.Wait()
	return err
}

// decoded is the order that a peer carried as JSON.
func decoded(data []byte) (o order) {
	if err := json.Unmarshal(data, &o); err != nil {
		panic(err)
	}
	return o
}

// goCloudSession is Go Cloud's mempubsub.
type goCloudSession struct {
	arrivals
	topic *pubsub.Topic
	subs  []*pubsub.Subscription
}

// goCloudMem has Go Cloud's defaults. mempubsub polls: a subscription that
// found nothing looks again after 250 ms. In a short round that pause is all
// one sees (250,000 ns per message with 1,000 of them); from 32,000 messages
// on it is hidden by what is published meanwhile. A bound on what is unhandled
// makes it worse, for then the publisher waits for the pause as well: with
// windows of 100, 1,000 and 10,000 a message took 1,200, 130 and 19 µs, with
// none 10. So it has no window, and rounds that are long enough.
var goCloudMem = contender{name: "Go Cloud mempubsub", least: 64_000, open: func(handlers []handler) (session, error) {
	s := &goCloudSession{arrivals: make(arrivals, len(handlers)), topic: mempubsub.NewTopic()}
	for i, handle := range handlers {
		sub := mempubsub.NewSubscription(s.topic, time.Minute)
		s.subs = append(s.subs, sub)
		go func() {
			for {
				m, err := sub.Receive(context.Background())
				if err != nil {
					return // shut down
				}
				handle(decoded(m.Body))
				m.Ack()
				s.arrivals[i].n.Add(1)
			}
		}()
	}
	return s, nil
}}

func (s *goCloudSession) publish(o order) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return s.topic.Send(context.Background(), &pubsub.Message{Body: data})
}

// close sends the acknowledgements that wait.
func (s *goCloudSession) close() error {
	ctx := context.Background()
	for _, sub := range s.subs {
		if err := sub.Shutdown(ctx); err != nil {
			return err
		}
	}
	return s.topic.Shutdown(ctx)
}

// channelSession is goroutines that read one buffered Go channel.
type channelSession struct {
	arrivals
	ch      chan order
	running sync.WaitGroup
}

var bufferedChannel = contender{name: "Go channel", shared: true, open: func(handlers []handler) (session, error) {
	s := &channelSession{arrivals: make(arrivals, len(handlers)), ch: make(chan order, 1024)}
	for i, handle := range handlers {
		s.running.Go(func() {
			for o := range s.ch {
				handle(o)
				s.arrivals[i].n.Add(1)
			}
		})
	}
	return s, nil
}}

func (s *channelSession) publish(o order) error {
	s.ch <- o
	return nil
}

func (s *channelSession) close() error {
	close(s.ch)
	s.running.Wait()
	return nil
}

const memoryMethodText = `The ratio says how many times less time a message takes with echo than with the
peer; smallest and largest are those of single rounds.

- One goroutine publishes single messages, one call after another, as fast as
  it can. A subscriber has one handler, which does nothing but look at a field.
- A message counts when its handler has returned and it is acknowledged, by all
  subscribers, on both sides: the time of a round includes the wait for the last
  one and closing, which sends the acknowledgements that are left.
- Everybody carries the same value of four fields. Where it travels as JSON,
  encoding and decoding are part of the time, with encoding/json on both sides.
- Everybody has its default configuration, and the publisher may be ahead of the
  subscribers: with echo by 65,536 messages, with Watermill by any number. That
  costs Watermill time, since it has goroutines for each of them.
- Watermill and Go Cloud have no way to carry a value by reference, so the cases
  by value compare with their JSON.
- Go Cloud's mempubsub looks for messages again 250 ms after it found none. In
  short rounds that pause would be most of the time. So its rounds have at least
  %s messages, which hides the pause behind the publishing, and no bound on
  what is unhandled, which would bring the pause back.
- The Go channel in the last case has room for 1,024 values, and four goroutines
  read it. It has no acknowledgements, no redelivery and no encoding: it is the
  most that there is to win.
- There are up to %d rounds of about %d ms of each side, by turns in one process,
  each with a new bus, a warm-up and a garbage collection before. The ratio is
  the median of the rounds' ratios, so a moment in which the machine was busy
  with other things hardly shows.

`

const tunedText = `These rows are for information. They compare echo as it comes, with JSON, with
Watermill's GoChannel under the options that bear on speed, and with a publisher
that waits while too much is unhandled: GoChannel has goroutines for every
such message, and is fastest when they are few.

`

const memoryLatencyText = `From just before Publish to the handler's entry, one publisher, one subscriber,
JSON. The first and the last row are each at a tenth of what it can carry
itself; the second row is echo at the peer's rate.

`
