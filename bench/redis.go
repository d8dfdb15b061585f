package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo"
	"github.com/echobus/echo/redisstream"
)

// Names that all contenders use.
const (
	redisTopic = "orders"
	redisGroup = "workers"
)

// redisSuite compares over a redis-server of its own.
var redisSuite = suite{
	name:    "redis",
	page:    "performance-redis.md",
	title:   "Performance over Redis",
	heading: "Over Redis Streams",
	chart:   "Time per message, over Redis Streams",
	peers: []peer{
		{"Watermill", "github.com/ThreeDotsLabs/watermill"},
		{"Watermill's redisstream", "github.com/ThreeDotsLabs/watermill-redisstream"},
		{"go-redis", "github.com/redis/go-redis/v9"},
	},
	quick: plan{
		rounds: 11, round: 300 * time.Millisecond, pace: 2 * time.Second, budget: 60 * time.Second,
		deaths: 1, legacy: 20_000, claims: 2, idle: 5 * time.Second,
	},
	full: plan{
		rounds: 15, round: time.Second, pace: 10 * time.Second, budget: 5 * time.Minute,
		deaths: 2, legacy: 20_000, claims: 3, idle: 10 * time.Second,
	},
	measure: measureRedis,
	method: func(p plan) string {
		return fmt.Sprintf(redisMethodText, grouped(float64(p.legacy)), p.claims, p.rounds, p.round.Milliseconds())
	},
}

// measureRedis runs the suite and fills in the report.
func measureRedis(w io.Writer, r *report) (err error) {
	s, err := startServer()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	version, err := s.version()
	if err != nil {
		return err
	}
	r.machine.versions = append(r.machine.versions, []string{"Redis", version})

	p := r.plan
	cases := s.cases()
	step := &steps{w: w, n: len(cases) + 3, begin: time.Now(), budget: p.budget}
	for _, c := range cases {
		res, err := c.measure(p.rounds, p.round, step.next(c.name))
		if err != nil {
			return err
		}
		r.results = append(r.results, res)
	}
	t := s.takeover(p)
	step.next(t.name)
	res, err := s.recovery(t, p)
	if err != nil {
		return err
	}
	r.results = append(r.results, res)

	step.next("latency")
	const gap = 200 * time.Microsecond
	load := fmt.Sprintf("one every %v", gap)
	ls, err := latencies(p, []latency{
		{contender: s.echo(), load: load, gap: gap},
		{contender: s.watermill(), load: load, gap: gap},
	})
	if err != nil {
		return err
	}
	r.sections = append(r.sections, section{
		heading: "Latency", caption: "Latency, one publisher, a group of one", text: redisLatencyText, table: latencyTable(ls),
	})

	step.next("idle")
	idle, err := idleCosts(p.idle)
	if err != nil {
		return err
	}
	r.sections = append(r.sections, idleSection(idle))
	for _, i := range idle {
		r.lines = append(r.lines, fmt.Sprintf("IDLE %s %.2f", i.name, i.sent))
	}
	return nil
}

// cases are what the suite is for: each has a RATIO line. The recovery has one too.
func (s *server) cases() []comparison {
	ours, watermill, raw := s.echo(), s.watermill(), s.raw()
	return []comparison{
		{"redis/e2e/64pub/watermill", "64 publishers, each awaiting its publish, and a group of one", task{subscribers: 1, publishers: 64}, ours, watermill},
		{"redis/e2e/batch/watermill", "one publisher with batches of 100, and a group of one", task{subscribers: 1, batch: 100}, ours, watermill},
		{"redis/e2e/batch/raw", "the same against a loop written by hand", task{subscribers: 1, batch: 100}, ours, raw},
		{"redis/publish/256pub/xadd", "256 publishers, each awaiting its publish, and nobody who consumes", task{publishers: 256}, ours, raw},
		{"redis/e2e/1pub/watermill", "one publisher, awaiting each publish, and a group of one", task{subscribers: 1}, ours, watermill},
	}
}

func (s *server) echo() contender {
	return s.contender("echo", echoStream, func(hs []handler) (batcher, error) {
		return s.openEcho(hs, echo.WithGroup(redisGroup))
	})
}

// watermill has the defaults of Watermill and go-redis. A consumer of Watermill
// has one message at a time: it reads one (COUNT 1), gives it to its channel,
// awaits the Ack and acknowledges it to the server before it takes the next.
// Publish sends one XADD after another, also when it is given many messages.
func (s *server) watermill() contender {
	return s.contender("Watermill", redisTopic, func(hs []handler) (batcher, error) {
		return s.openWatermill(hs, watermillredis.SubscriberConfig{ConsumerGroup: redisGroup})
	})
}

func (s *server) raw() contender {
	return s.contender("go-redis", redisTopic, func(hs []handler) (batcher, error) { return s.openRaw(hs) })
}

// contender makes a contender whose sessions begin with an empty server, and
// end when all that they handled is acknowledged, which the server is asked.
func (s *server) contender(name, stream string, open func([]handler) (batcher, error)) contender {
	return contender{name: name, shared: true, open: func(hs []handler) (session, error) {
		if err := s.empty(); err != nil {
			return nil, err
		}
		b, err := open(hs)
		if err != nil {
			return nil, err
		}
		return settled{b, s, stream, len(hs) > 0}, nil
	}}
}

// settled is a session that is closed when everything is acknowledged.
type settled struct {
	batcher
	on       *server
	stream   string
	consumed bool
}

func (s settled) close() error {
	var err error
	if s.consumed {
		err = s.on.awaitPending(s.stream, 0)
	}
	return errors.Join(err, s.batcher.close())
}

// echoStream is the key of the topic's stream.
const echoStream = "echo:{" + redisTopic + "}"

// openEcho opens a session with everything at its defaults.
func (s *server) openEcho(handlers []handler, opts ...echo.SubscribeOption) (*echoSession, error) {
	client := s.dial()
	defer client.Close() // the transport makes its own of it
	topic := echo.NewTopic[order](redisTopic)
	bus := echo.New(echo.WithTransport(redisstream.New(client)))
	e := &echoSession{arrivals: make(arrivals, len(handlers)), bus: bus, producer: echo.NewProducer(bus, topic)}
	for i, handle := range handlers {
		if err := e.subscribe(topic, &e.arrivals[i].n, handle, opts); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (s *echoSession) publishBatch(os []order) error {
	return s.producer.PublishBatch(context.Background(), os)
}

// watermillRedisSession is Watermill's Pub/Sub over Redis Streams, with a
// client each for publisher and subscriber, as its documentation has it.
type watermillRedisSession struct {
	arrivals
	pub     *watermillredis.Publisher
	sub     *watermillredis.Subscriber
	running sync.WaitGroup
}

func (s *server) openWatermill(handlers []handler, cfg watermillredis.SubscriberConfig) (*watermillRedisSession, error) {
	w := &watermillRedisSession{arrivals: make(arrivals, len(handlers))}
	var err error
	w.pub, err = watermillredis.NewPublisher(watermillredis.PublisherConfig{Client: s.dial()}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	cfg.Client = s.dial()
	if w.sub, err = watermillredis.NewSubscriber(cfg, watermill.NopLogger{}); err != nil {
		return nil, err
	}
	for i, handle := range handlers {
		ch, err := w.sub.Subscribe(context.Background(), redisTopic)
		if err != nil {
			return nil, err
		}
		w.running.Go(func() {
			for m := range ch {
				handle(decoded(m.Payload))
				m.Ack()
				w.arrivals[i].n.Add(1)
			}
		})
	}
	return w, nil
}

func (s *watermillRedisSession) publish(o order) error {
	return s.publishBatch([]order{o})
}

func (s *watermillRedisSession) publishBatch(os []order) error {
	msgs := make([]*message.Message, len(os))
	for i, o := range os {
		data, err := json.Marshal(o)
		if err != nil {
			return err
		}
		msgs[i] = message.NewMessage(watermill.NewUUID(), data)
	}
	return s.pub.Publish(redisTopic, msgs...)
}

// close closes the clients too.
func (s *watermillRedisSession) close() error {
	err := errors.Join(s.pub.Close(), s.sub.Close())
	s.running.Wait()
	return err
}

// rawSession is what one would write with go-redis alone: entries of one field
// with the JSON, a consumer that reads up to 100 of them and acknowledges them
// at once. It has no IDs, no leases, no redelivery, no shutdown that gives
// anything back.
type rawSession struct {
	arrivals
	client  *redis.Client
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func (s *server) openRaw(handlers []handler) (*rawSession, error) {
	r := &rawSession{arrivals: make(arrivals, len(handlers)), client: s.dial()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if len(handlers) > 0 {
		if err := r.client.XGroupCreateMkStream(r.ctx, redisTopic, redisGroup, "0").Err(); err != nil {
			return nil, err
		}
	}
	for i, handle := range handlers {
		r.running.Go(func() {
			for r.ctx.Err() == nil {
				n, err := r.consume(fmt.Sprint("consumer-", i), handle)
				if err != nil && r.ctx.Err() == nil {
					panic(err)
				}
				r.arrivals[i].n.Add(n)
			}
		})
	}
	return r, nil
}

// consume handles what comes next and returns how many messages that were.
func (s *rawSession) consume(consumer string, handle handler) (int64, error) {
	streams, err := s.client.XReadGroup(s.ctx, &redis.XReadGroupArgs{
		Group: redisGroup, Consumer: consumer, Streams: []string{redisTopic, ">"}, Count: 100, Block: time.Second,
	}).Result()
	if err == redis.Nil {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	msgs := streams[0].Messages
	ids := make([]string, len(msgs))
	for i, m := range msgs {
		handle(decoded([]byte(m.Values["order"].(string))))
		ids[i] = m.ID
	}
	return s.client.XAck(s.ctx, redisTopic, redisGroup, ids...).Result()
}

func (s *rawSession) publish(o order) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return s.client.XAdd(s.ctx, &redis.XAddArgs{Stream: redisTopic, Values: []any{"order", data}}).Err()
}

func (s *rawSession) publishBatch(os []order) error {
	pipe := s.client.Pipeline()
	for _, o := range os {
		data, err := json.Marshal(o)
		if err != nil {
			return err
		}
		pipe.XAdd(s.ctx, &redis.XAddArgs{Stream: redisTopic, Values: []any{"order", data}})
	}
	_, err := pipe.Exec(s.ctx)
	return err
}

// close closes the connections, as nothing else ends a read that blocks.
func (s *rawSession) close() error {
	s.cancel()
	err := s.client.Close()
	s.running.Wait()
	return err
}

const redisMethodText = `The ratio says how many times less time a message takes with echo than with the
peer; smallest and largest are those of single rounds.

- The server is a redis-server of the program's own on the same machine, without
  persistence, emptied before each round. It shares the processors with
  publishers and consumers, on both sides.
- A message counts when its handler has returned and it is acknowledged: the
  time of a round includes the wait until the server says that nothing is
  pending, and closing. Nobody consumes in the case with 256 publishers, where a
  message counts when its publish has returned.
- Everybody carries the same value of four fields as JSON. Encoding and decoding
  are part of the time, with encoding/json on both sides, and so are IDs, which
  echo and Watermill give each message and the loop written by hand does not.
- Everybody has its default configuration, including go-redis' ten connections
  per processor.
- Watermill's consumer reads one message at a time, and acknowledges it before it
  reads the next. Its publisher sends one XADD after another, also when it is
  given a batch: it has no way to send several at once.
- The loop written by hand sends pipelines of 100 XADDs, reads up to 100 entries
  and acknowledges them with one XACK. It has no IDs, leases, redelivery or
  shutdown that gives anything back: it is the most that there is to win.
- In the case with a dead consumer, it has left %s messages unacknowledged, in
  the moment in which they may be taken over. Watermill claims 100 of them at
  once and 100 more every 5 seconds, so of Watermill only %d claims are measured,
  up to the last message of the last one. The pause after that one would belong
  to it too; without it the figure flatters Watermill. Its MaxIdleTime is short,
  so that nobody has to wait for the default of a minute; all else is as it comes.
- There are up to %d rounds of about %d ms of each side, by turns in one process,
  each with new clients, a warm-up and a garbage collection before. The ratio is
  the median of the rounds' ratios, so a moment in which the machine was busy
  with other things hardly shows. The dead consumer has one or two rounds.

`

const redisLatencyText = `From just before Publish to the handler's entry, one publisher that awaits each
publish, a group of one, the same load for both. Who carries less than is due
did not keep up, and its latency is that of a growing queue.

` + openLoopText

const idleText = `What a subscription that has had a message and gets no more asks of the server,
as MONITOR tells. Sent are the commands that come over its connections; executed
are those and the ones that its scripts call in the server.

`
