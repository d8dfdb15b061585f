package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

func memory(w io.Writer, p plan) (*report, error) {
	json, value := echoMemory("echo, JSON", false, false), echoMemory("echo, by value", true, false)
	group := echoMemory("echo, a group", true, true)
	cases := []comparison{
		{"memory/json/1x1/watermill", "one publisher, one subscriber, JSON", 1, json, watermillGoChannel},
		{"memory/json/1x8/watermill", "one publisher, eight subscribers, JSON", 8, json, watermillGoChannel},
		{"memory/value/1x1/watermill", "one subscriber, values by reference; the peer has JSON only", 1, value, watermillGoChannel},
		{"memory/value/1x8/watermill", "eight subscribers, values by reference; the peer has JSON only", 8, value, watermillGoChannel},
		{"memory/json/1x1/gocloud", "one publisher, one subscriber, JSON", 1, json, goCloudMem},
		{"memory/value/group4/channel", "a group of four, against four goroutines on a Go channel", 4, group, bufferedChannel},
	}
	r := newReport("memory", "cd bench && go run . -suite memory", p)
	for i, c := range cases {
		progress(w, i+1, len(cases)+1, c.name)
		res, err := c.measure(p)
		if err != nil {
			return nil, err
		}
		r.results = append(r.results, res)
	}
	progress(w, len(cases)+1, len(cases)+1, "latency")
	return r, r.latencies(p, json, watermillGoChannel)
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

// await waits until n more messages have arrived than had at before.
func (a arrivals) await(before int64, n int) {
	for a.total() < before+int64(n) {
		time.Sleep(20 * time.Microsecond)
	}
}

// echoSession is echo with one consumer per subscriber.
type echoSession struct {
	arrivals
	bus      *echo.Bus
	producer *echo.Producer[order]
	share    bool // a group shares the messages
	subs     int
	running  sync.WaitGroup
	err      error
}

func echoMemory(name string, values, share bool) contender {
	return contender{name, func(subs int) (session, error) {
		var opts []memstream.Option
		if values {
			opts = append(opts, memstream.WithValues())
		}
		ctx := context.Background()
		topic := echo.NewTopic[order]("orders")
		bus := echo.New(echo.WithTransport(memstream.New(opts...)))
		s := &echoSession{arrivals: make(arrivals, subs), bus: bus, producer: echo.NewProducer(bus, topic), share: share, subs: subs}
		for i := range subs {
			done := &s.arrivals[i].n
			var opts []echo.SubscribeOption
			if share {
				opts = append(opts, echo.WithGroup("workers"))
			}
			c, err := echo.Subscribe(ctx, bus, topic, opts...)
			if err != nil {
				return nil, err
			}
			s.running.Go(func() {
				err := c.Run(ctx, func(ctx context.Context, m echo.Message[order]) error {
					if m.Value.Quantity != sample.Quantity {
						panic(fmt.Sprint(m.Value))
					}
					done.Add(1)
					return nil
				})
				if err != nil {
					panic(err)
				}
			})
		}
		return s, nil
	}}
}

func (s *echoSession) carry(n int) error {
	ctx := context.Background()
	before := s.total()
	for range n {
		if err := s.producer.Publish(ctx, sample); err != nil {
			return err
		}
	}
	if !s.share {
		n *= s.subs
	}
	s.await(before, n)
	return nil
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
	ps   *gochannel.GoChannel
	subs int
}

var watermillGoChannel = contender{"Watermill GoChannel", func(subs int) (session, error) {
	s := &watermillSession{arrivals: make(arrivals, subs), subs: subs}
	s.ps = gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	for i := range subs {
		done := &s.arrivals[i].n
		ch, err := s.ps.Subscribe(context.Background(), "orders")
		if err != nil {
			return nil, err
		}
		go func() {
			for m := range ch {
				var o order
				if err := json.Unmarshal(m.Payload, &o); err != nil || o.Quantity != sample.Quantity {
					panic(fmt.Sprint(o, err))
				}
				m.Ack()
				done.Add(1)
			}
		}()
	}
	return s, nil
}}

func (s *watermillSession) carry(n int) error {
	before := s.total()
	for range n {
		data, err := json.Marshal(sample)
		if err != nil {
			return err
		}
		if err := s.ps.Publish("orders", message.NewMessage(watermill.NewUUID(), data)); err != nil {
			return err
		}
	}
	s.await(before, n*s.subs)
	return nil
}

func (s *watermillSession) close() error { return s.ps.Close() }

// goCloudSession is Go Cloud's mempubsub.
type goCloudSession struct {
	arrivals
	topic *pubsub.Topic
	subs  []*pubsub.Subscription
}

var goCloudMem = contender{"Go Cloud mempubsub", func(subs int) (session, error) {
	ctx := context.Background()
	topic := mempubsub.NewTopic()
	s := &goCloudSession{arrivals: make(arrivals, subs), topic: topic}
	for i := range subs {
		done := &s.arrivals[i].n
		sub := mempubsub.NewSubscription(topic, time.Minute)
		s.subs = append(s.subs, sub)
		go func() {
			for {
				m, err := sub.Receive(ctx)
				if err != nil {
					return // shut down
				}
				var o order
				if err := json.Unmarshal(m.Body, &o); err != nil || o.Quantity != sample.Quantity {
					panic(fmt.Sprint(o, err))
				}
				m.Ack()
				done.Add(1)
			}
		}()
	}
	return s, nil
}}

func (s *goCloudSession) carry(n int) error {
	before := s.total()
	for range n {
		data, err := json.Marshal(sample)
		if err != nil {
			return err
		}
		if err := s.topic.Send(context.Background(), &pubsub.Message{Body: data}); err != nil {
			return err
		}
	}
	s.await(before, n*len(s.subs))
	return nil
}

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
	ch chan order
}

var bufferedChannel = contender{"Go channel", func(subs int) (session, error) {
	s := &channelSession{arrivals: make(arrivals, subs), ch: make(chan order, 1024)}
	for i := range subs {
		done := &s.arrivals[i].n
		go func() {
			for o := range s.ch {
				if o.Quantity != sample.Quantity {
					panic(fmt.Sprint(o))
				}
				done.Add(1)
			}
		}()
	}
	return s, nil
}}

func (s *channelSession) carry(n int) error {
	before := s.total()
	for range n {
		s.ch <- sample
	}
	s.await(before, n)
	return nil
}

func (s *channelSession) close() error {
	close(s.ch)
	return nil
}
