package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	watermillredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo"
)

// takeover is a case in which a consumer died with messages in its hands, and
// a new one takes them over.
type takeover struct {
	name, what string
	sides      [2]heir // ours and the peer's
}

// heir is one side of a takeover.
type heir struct {
	name   string
	stream string
	dead   string // the consumer that died
	take   int    // how many messages to await
	open   func([]handler) (batcher, error)
}

// leaseOf is how long a dead consumer's messages are still its own.
const leaseOf = 50 * time.Millisecond

// takeover returns the case. A consumer of Watermill claims 100 messages at
// once and the next 100 when 5 seconds have passed, so that 20,000 take a
// quarter of an hour. What is measured of it is a few claims, to the end of the
// last: the pauses between them but not the one after, which flatters it.
// It has its defaults but for MaxIdleTime, which would be a minute to wait.
func (s *server) takeover(p plan) takeover {
	return takeover{
		name: "redis/recover/watermill",
		what: grouped(float64(p.legacy)) + " messages of a dead consumer, taken over by a new one",
		sides: [2]heir{
			// The names of redisstream's consumers end with their lease in milliseconds.
			{"echo", echoStream, fmt.Sprint("dead.", leaseOf.Milliseconds()), p.legacy, func(hs []handler) (batcher, error) {
				return s.openEcho(hs, echo.WithGroup(redisGroup))
			}},
			{"Watermill", redisTopic, "dead", p.claims * int(watermillredis.DefaultClaimBatchSize), func(hs []handler) (batcher, error) {
				return s.openWatermill(hs, watermillredis.SubscriberConfig{ConsumerGroup: redisGroup, MaxIdleTime: leaseOf})
			}},
		},
	}
}

// recovery measures a takeover, so many times.
func (s *server) recovery(t takeover, p plan) (result, error) {
	var times [2][]float64
	for range p.deaths {
		for i, h := range t.sides {
			ns, err := s.inherited(h, p.legacy)
			if err != nil {
				return result{}, fmt.Errorf("%s: %s: %w", t.name, h.name, err)
			}
			times[i] = append(times[i], ns)
		}
	}
	c := comparison{name: t.name, what: t.what, ours: contender{name: t.sides[0].name}, peer: contender{name: t.sides[1].name}}
	return newResult(c, times[0], times[1]), nil
}

// inherited lets a consumer die with n messages and returns the nanoseconds
// per message from the start of its heir until that has acknowledged what it
// shall take.
func (s *server) inherited(h heir, n int) (float64, error) {
	if err := s.abandon(h, n); err != nil {
		return 0, err
	}
	runtime.GC()
	begin := time.Now()
	b, err := h.open([]handler{check})
	if err != nil {
		return 0, err
	}
	if err := await(b, int64(h.take)); err != nil {
		return 0, err
	}
	if err := s.awaitPending(h.stream, n-h.take); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	return float64(took.Nanoseconds()) / float64(h.take), b.close()
}

// abandon publishes n messages and leaves them in the hands of a consumer that
// is no more, and for whom it is too late.
func (s *server) abandon(h heir, n int) error {
	if err := s.empty(); err != nil {
		return err
	}
	b, err := h.open(nil)
	if err != nil {
		return err
	}
	if err := publishBatches(b, 100, n); err != nil {
		return err
	}
	if err := b.close(); err != nil {
		return err
	}
	ctx := context.Background()
	if err := s.Client().XGroupCreate(ctx, h.stream, redisGroup, "0").Err(); err != nil {
		return err
	}
	read, err := s.Client().XReadGroup(ctx, &redis.XReadGroupArgs{
		Group: redisGroup, Consumer: h.dead, Streams: []string{h.stream, ">"}, Count: int64(n),
	}).Result()
	if err != nil {
		return err
	}
	if got := len(read[0].Messages); got != n {
		return fmt.Errorf("%d of %d messages were there to be abandoned", got, n)
	}
	time.Sleep(2 * leaseOf)
	return nil
}
