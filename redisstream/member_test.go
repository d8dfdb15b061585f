package redisstream_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// Entries of others are set aside with a reason, however many there are, and
// what is good among them is delivered.
func TestForeignEntries(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	var log logged
	tr := open(t, server.Options(), redisstream.WithLogger(log.logger()))
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for i := range n {
			fields := [][]any{
				{"temperature", "twenty-one"},
				{"m", "x"},
				{"m", "1 1 10 a text/plain"},
				{"m", "1 1 10 a text/plain\ny", "head", "%"},
				{"m", "1 1 10 a text/plain\ny", "v", "9"},
			}[i%5]
			p.XAdd(t.Context(), &redis.XAddArgs{Stream: "echo:{t}", Values: fields})
		}
		return nil
	})
	require.NoError(t, err)
	huge := strings.Repeat("x", 2<<20)
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: "echo:{t}", Values: []any{"huge", huge}}).Err())
	send(t, tr, "t", "good")

	begin := time.Now()
	msgs := receive(t, s, 1)
	assert.Equal(t, "good", msgs[0].ID)
	assert.Less(t, time.Since(begin), 10*time.Second)
	ack(t, s, msgs...)
	assert.EqualValues(t, n+1, tr.Stats().SetAside)
	assert.Zero(t, pending(t, server, "echo:{t}", "g"))
	assert.EqualValues(t, n+1, client.XLen(t.Context(), "echo:{t}:aside").Val())

	aside := client.XRange(t.Context(), "echo:{t}:aside", "-", "+").Val()
	assert.Equal(t, "twenty-one", aside[0].Values["temperature"])
	assert.Equal(t, "g", aside[0].Values["echo-group"])
	assert.Contains(t, aside[0].Values["echo-reason"], "no field m")
	assert.Contains(t, aside[4].Values["echo-reason"], "version")
	last := aside[len(aside)-1].Values
	assert.Equal(t, fmt.Sprint(len(huge)+4), last["echo-size"], "what is huge stays where it is")
	assert.NotContains(t, last, "huge")
	assert.False(t, strings.Contains(log.String(), "twenty-one"), "content is not logged")
	assert.Less(t, strings.Count(log.String(), "\n"), 20, "the log is not flooded")

	b := subscribe(t, tr, "t", transport.Options{Start: transport.Start{From: transport.Oldest}})
	assert.Equal(t, []string{"good"}, ids(receive(t, b, 1)), "a broadcast passes them by")
}

// A message that cannot be decoded is the typed layer's to set aside; the
// subscription goes on.
func TestUndecodableValues(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	bus := busOver(t, tr)
	bad := message("bad")
	bad.Type, bad.Data = "application/json", []byte("{")
	strange := message("strange")
	strange.Type = "application/x-unheard-of"
	_, err := tr.Send(t.Context(), "jobs", []transport.Message{bad, strange})
	require.NoError(t, err)
	l := newLedger()
	l.publishAll(t.Context(), bus, "p", 10, 0)
	var told atomic.Int32
	l.consume(t, bus, echo.WithErrorHook(func(context.Context, error) error { told.Add(1); return nil }))
	l.check(t, 5*time.Second, 0)
	assert.EqualValues(t, 2, told.Load())
}

func TestRetention(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	length := func(topic string) int64 { return client.XLen(t.Context(), "echo:{"+topic+"}").Val() }
	trim := func(tr *redisstream.Transport, topic string) {
		t.Helper()
		require.NoError(t, tr.Trim(t.Context(), topic))
	}
	t.Run("acknowledged by all groups", func(t *testing.T) {
		tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{Acknowledged: true}))
		send(t, tr, "acked", numbered("m", 10)...)
		trim(tr, "acked")
		assert.EqualValues(t, 10, length("acked"), "nobody has seen them")
		one := subscribe(t, tr, "acked", transport.Options{Group: "one"})
		two := subscribe(t, tr, "acked", transport.Options{Group: "two"})
		ack(t, one, receive(t, one, 10)...)
		trim(tr, "acked")
		assert.EqualValues(t, 10, length("acked"), "group two has not")
		msgs := receive(t, two, 10)
		ack(t, two, append(msgs[:3:3], msgs[4:]...)...)
		trim(tr, "acked")
		assert.EqualValues(t, 7, length("acked"), "group two holds the fourth")
		ack(t, two, msgs[3])
		trim(tr, "acked")
		assert.Zero(t, length("acked"))
		assert.EqualValues(t, 10, tr.Stats().Trimmed)
		assert.Zero(t, tr.Stats().Lost)
	})
	t.Run("by length, what is acknowledged", func(t *testing.T) {
		tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{MaxLen: 4}))
		send(t, tr, "len", numbered("m", 10)...)
		s := subscribe(t, tr, "len", transport.Options{Group: "g"})
		trim(tr, "len")
		assert.EqualValues(t, 10, length("len"), "the group has yet to get them")
		ack(t, s, receive(t, s, 5)...)
		trim(tr, "len")
		assert.EqualValues(t, 5, length("len"))
		ack(t, s, receive(t, s, 5)...)
		trim(tr, "len")
		assert.EqualValues(t, 4, length("len"))
	})
	t.Run("by length, come what may", func(t *testing.T) {
		tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{MaxLen: 4, Unacknowledged: true}, "force"))
		s := subscribe(t, tr, "force", transport.Options{Group: "g"})
		send(t, tr, "force", numbered("m", 10)...)
		trim(tr, "force")
		assert.EqualValues(t, 4, length("force"))
		_, err := s.Receive(t.Context(), make([]transport.Message, 10))
		if err == nil { // the loss is told as soon as it is known
			_, err = s.Receive(t.Context(), make([]transport.Message, 10))
		}
		lost, ok := err.(*transport.LostError)
		require.True(t, ok, err)
		assert.EqualValues(t, 6, lost.Count)
		assert.EqualValues(t, 6, tr.Stats().Lost)
		send(t, tr, "other", numbered("m", 10)...)
		trim(tr, "other")
		assert.EqualValues(t, 10, length("other"), "a topic that was not named keeps everything")
	})
	t.Run("by age", func(t *testing.T) {
		tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{MaxAge: 300 * time.Millisecond}))
		s := subscribe(t, tr, "age", transport.Options{Group: "g"})
		send(t, tr, "age", numbered("old", 5)...)
		msgs := receive(t, s, 5)
		ack(t, s, msgs[:3]...)
		time.Sleep(400 * time.Millisecond)
		send(t, tr, "age", "young")
		trim(tr, "age")
		assert.EqualValues(t, 3, length("age"), "two old ones are held")
		ack(t, s, msgs[3:]...)
		trim(tr, "age")
		assert.EqualValues(t, 1, length("age"))
	})
	t.Run("by itself", func(t *testing.T) {
		tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{Acknowledged: true}))
		s := subscribe(t, tr, "self", transport.Options{Group: "g"})
		send(t, tr, "self", numbered("m", 10)...)
		ack(t, s, receive(t, s, 10)...)
		eventually(t, 10*time.Second, "the stream to be trimmed", func() bool { return length("self") == 0 })
	})
}

// How far a group is, and what it costs while nothing happens.
// A group that nobody works for must not keep a stream from being trimmed when
// that is asked for, however often.
func TestRetentionByAgeAndAnIdleGroup(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{MaxAge: 50 * time.Millisecond, Unacknowledged: true}))
	send(t, tr, "t", "first")
	for _, group := range []string{"idle", "idler"} { // with which Redis knows how many they have read
		s := subscribe(t, tr, "t", transport.Options{Group: group})
		ack(t, s, receive(t, s, 1)...)
		s.Close()
	}
	for range 4 {
		send(t, tr, "t", numbered("m", 3)...)
		time.Sleep(60 * time.Millisecond)
		require.NoError(t, tr.Trim(t.Context(), "t"))
		require.Zero(t, server.Client().XLen(t.Context(), "echo:{t}").Val())
	}
	for _, group := range []string{"idle", "idler"} {
		s := subscribe(t, tr, "t", transport.Options{Group: group})
		_, err := s.Receive(t.Context(), make([]transport.Message, 1))
		lost, ok := errors.AsType[*transport.LostError](err)
		require.True(t, ok, err)
		require.EqualValues(t, 12, lost.Count)
	}
}

// More than one run of the script may remove.
func TestRetentionOfABacklog(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options(), redisstream.WithRetention(redisstream.Retention{MaxLen: 100, Unacknowledged: true}))
	for _, group := range []string{"behind", "ahead"} {
		subscribe(t, tr, "t", transport.Options{Group: group}).Close()
	}
	batch := make([]transport.Message, 1000)
	for i := range batch {
		batch[i] = message(fmt.Sprint(i))
	}
	for i := range 35 {
		_, err := tr.Send(t.Context(), "t", batch)
		require.NoError(t, err)
		if i < 10 {
			s := subscribe(t, tr, "t", transport.Options{Group: "ahead"})
			ack(t, s, receive(t, s, 1000)...)
			s.Close()
		}
	}
	require.NoError(t, tr.Trim(t.Context(), "t"))
	require.EqualValues(t, 100, server.Client().XLen(t.Context(), "echo:{t}").Val())
	for group, n := range map[string]uint64{"behind": 34_900, "ahead": 24_900} {
		s := subscribe(t, tr, "t", transport.Options{Group: group})
		_, err := s.Receive(t.Context(), make([]transport.Message, 1))
		lost, ok := errors.AsType[*transport.LostError](err)
		require.True(t, ok, "%s: %v", group, err)
		require.Equal(t, n, lost.Count, group)
		require.Equal(t, "900", receive(t, s, 1)[0].ID, group)
	}
}

// What is trimmed while a consumer holds it is told, whatever the consumer
// does with it next.
func TestHeldEntriesThatAreTrimmed(t *testing.T) {
	server := redistest.Start(t)
	for what, do := range map[string]func(t *testing.T, s transport.Subscription, rs []transport.Receipt){
		"nack": func(t *testing.T, s transport.Subscription, rs []transport.Receipt) {
			require.NoError(t, s.(transport.Nacker).Nack(t.Context(), rs, 0))
		},
		"release": func(t *testing.T, s transport.Subscription, rs []transport.Receipt) {
			require.NoError(t, s.(transport.Releaser).Release(t.Context(), rs))
		},
		"close": func(t *testing.T, s transport.Subscription, rs []transport.Receipt) { require.NoError(t, s.Close()) },
		"extend": func(t *testing.T, s transport.Subscription, rs []transport.Receipt) {
			err := s.(transport.Extender).Extend(t.Context(), rs, 0)
			lost, ok := errors.AsType[*transport.LeaseError](err)
			require.True(t, ok, err)
			require.Equal(t, rs[:2], lost.Lost)
			require.NoError(t, s.(transport.Acker).Ack(t.Context(), rs[2:]))
		},
	} {
		t.Run(what, func(t *testing.T) {
			tr := open(t, server.Options(), redisstream.WithPrefix(prefix()))
			topic := "t"
			s := subscribe(t, tr, topic, transport.Options{Group: "g"})
			send(t, tr, topic, numbered("m", 4)...)
			msgs := receive(t, s, 4)
			rs := make([]transport.Receipt, len(msgs))
			for i := range msgs {
				rs[i] = msgs[i].Receipt()
			}
			keys := server.Client().Keys(t.Context(), "*{t}").Val()
			for _, key := range keys {
				require.NoError(t, server.Client().XDel(t.Context(), key, msgs[0].Position.String(), msgs[1].Position.String()).Err())
			}
			do(t, s, rs)
			other := subscribe(t, tr, topic, transport.Options{Group: "g"})
			want := 2
			if what == "extend" {
				want = 0
			}
			var got []string
			var told uint64
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for len(got) < want || told < 2 {
				dst := make([]transport.Message, 2)
				n, err := other.Receive(ctx, dst)
				if lost, ok := errors.AsType[*transport.LostError](err); ok {
					told += lost.Count
				} else {
					require.NoError(t, err)
				}
				got = append(got, ids(dst[:n])...)
			}
			require.EqualValues(t, 2, told)
			require.Equal(t, []string{"m-2", "m-3"}[:want], append([]string{}, got...))
		})
	}
}

// A broadcast subscription that goes on after a position is told if what came
// after it is gone.
func TestResumingAfterWhatIsGone(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	tr := open(t, server.Options())
	at := func(n int) transport.Options {
		msgs := make([]transport.Message, 3)
		for i := range msgs {
			msgs[i] = message(fmt.Sprint(n, "-", i))
		}
		_, err := tr.Send(t.Context(), "t", msgs)
		require.NoError(t, err)
		return transport.Options{Start: transport.Start{From: transport.AfterPosition, Position: msgs[0].Position}}
	}
	lost := func(o transport.Options, want ...string) {
		t.Helper()
		s := subscribe(t, tr, "t", o)
		_, err := s.Receive(t.Context(), make([]transport.Message, 1))
		e, ok := errors.AsType[*transport.LostError](err)
		require.True(t, ok, "%v", err)
		require.Zero(t, e.Count)
		require.Equal(t, want, ids(receive(t, s, len(want))))
	}
	o := at(1)
	s := subscribe(t, tr, "t", o)
	require.Equal(t, []string{"1-1", "1-2"}, ids(receive(t, s, 2)), "nothing is lost")
	require.NoError(t, client.XTrimMaxLen(t.Context(), "echo:{t}", 1).Err())
	lost(o, "1-2")
	require.NoError(t, client.Del(t.Context(), "echo:{t}").Err())
	o2 := o
	lostNow := func() { // whether or not there is a new one yet
		at(2)
		lost(o2, "2-0", "2-1", "2-2")
	}
	o2.Start.Position.Hi += 1e9
	lostNow()
}

func TestGroups(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	none, err := tr.Groups(t.Context(), "t")
	require.NoError(t, err)
	assert.Empty(t, none)
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	send(t, tr, "t", numbered("m", 10)...)
	time.Sleep(20 * time.Millisecond)
	msgs := receive(t, s, 6)
	ack(t, s, msgs[:2]...)
	require.NoError(t, s.(transport.Nacker).Nack(t.Context(), []transport.Receipt{msgs[2].Receipt()}, time.Hour))
	infos, err := tr.Groups(t.Context(), "t")
	require.NoError(t, err)
	require.Len(t, infos, 1)
	info := infos[0]
	assert.Equal(t, "g", info.Name)
	assert.EqualValues(t, 4, info.Pending)
	assert.EqualValues(t, 1, info.Waiting)
	assert.EqualValues(t, 4, info.Lag)
	assert.GreaterOrEqual(t, info.Oldest, 20*time.Millisecond)
	assert.Less(t, info.Oldest, 5*time.Second)
}

func TestIdleCost(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	var receiving sync.WaitGroup
	defer receiving.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const groups, broadcasts = 3, 2
	for i := range groups + broadcasts {
		o := transport.Options{Group: fmt.Sprint("g", i)}
		if i >= groups {
			o.Group = ""
		}
		s := subscribe(t, tr, "t", o)
		receiving.Go(func() { s.Receive(ctx, make([]transport.Message, 1)) })
	}
	time.Sleep(time.Second)
	const span = 5 * time.Second
	sent := sentCommands(server.Client().Info(t.Context(), "commandstats").Val())
	time.Sleep(span)
	rate := float64(sentCommands(server.Client().Info(t.Context(), "commandstats").Val())-sent) / span.Seconds() / (groups + broadcasts)
	t.Logf("%.2f commands a second per idle subscription", rate)
	assert.LessOrEqual(t, rate, 2.0)
}

// sentCommands counts reads and scripts: what an idle transport sends.
func sentCommands(info string) (n int) {
	for line := range strings.Lines(info) {
		var k int
		name, rest, _ := strings.Cut(line, ":")
		switch name {
		case "cmdstat_xreadgroup", "cmdstat_xread", "cmdstat_evalsha", "cmdstat_eval", "cmdstat_client|unblock":
			fmt.Sscanf(rest, "calls=%d", &k)
			n += k
		}
	}
	return n
}

// Close and a cancelled context end a wait at once, and leave no name behind.
func TestStoppingIsQuick(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	for _, group := range []string{"g", ""} {
		s := subscribe(t, tr, "t", transport.Options{Group: group})
		for _, stop := range []string{"cancel", "close"} {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan time.Time, 1)
			go func() {
				s.Receive(ctx, make([]transport.Message, 1))
				ended <- time.Now()
			}()
			time.Sleep(100 * time.Millisecond)
			begin := time.Now()
			if stop == "cancel" {
				cancel()
			} else {
				require.NoError(t, s.Close())
				assert.Less(t, time.Since(begin), 100*time.Millisecond)
			}
			assert.Less(t, (<-ended).Sub(begin), 100*time.Millisecond, "%s, group %q", stop, group)
			cancel()
		}
	}
	eventually(t, 5*time.Second, "the consumer's name to go", func() bool {
		consumers, err := server.Client().XInfoConsumers(t.Context(), "echo:{t}", "g").Result()
		return err == nil && len(consumers) == 0
	})
}

// Consumers that died and hold nothing are removed; those that hold something never.
func TestDeadConsumersAreRemoved(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	tr := open(t, server.Options())
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	send(t, tr, "t", "a")
	require.NoError(t, s.Close())
	read := func(consumer string) {
		client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: consumer, Streams: []string{"echo:{t}", ">"}, Count: 1, Block: -1})
	}
	read("holds.1000000")
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), "echo:{t}", "g", "old").Err())
	time.Sleep(30 * time.Millisecond)
	require.NoError(t, client.XGroupCreateConsumer(t.Context(), "echo:{t}", "g", "young").Err())
	n, err := redisstream.Sweep(tr, "echo:{t}", "g", 20*time.Millisecond)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n)
	consumers, err := client.XInfoConsumers(t.Context(), "echo:{t}", "g").Result()
	require.NoError(t, err)
	var names []string
	for _, c := range consumers {
		names = append(names, c.Name)
	}
	assert.ElementsMatch(t, []string{"holds.1000000", "young"}, names)
}

// The entries of a dead consumer are taken over in batches, and new messages
// do not wait until all of them are.
func TestRecoveryOfManyEntries(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	tr := open(t, server.Options())
	const n = 20_000
	msgs := make([]transport.Message, n)
	for i := range msgs {
		msgs[i] = message(fmt.Sprint("old-", i))
	}
	_, err := tr.Send(t.Context(), "t", msgs)
	require.NoError(t, err)
	s := subscribe(t, tr, "t", transport.Options{Group: "g"})
	read, err := client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "dead.10", Streams: []string{"echo:{t}", ">"}, Count: n}).Result()
	require.NoError(t, err)
	require.Len(t, read[0].Messages, n)
	time.Sleep(20 * time.Millisecond)
	send(t, tr, "t", "new")

	begin := time.Now()
	seen := map[string]int{}
	before := 0
	dst := make([]transport.Message, 1000)
	for len(seen) < n+1 {
		k, err := s.Receive(t.Context(), dst)
		require.NoError(t, err)
		for _, m := range dst[:k] {
			if seen[m.ID]++; m.ID == "new" {
				before = len(seen) - 1
			} else {
				assert.Equal(t, 2, m.Attempt)
			}
		}
		ack(t, s, dst[:k]...)
	}
	t.Logf("%d entries taken over in %v, %d of them before a new message", n, time.Since(begin), before)
	assert.Less(t, time.Since(begin), 5*time.Second, "thousands a second")
	assert.Less(t, before, n/4)
	for id, k := range seen {
		assert.Equal(t, 1, k, id)
	}
}

// A slow handler under a flood: memory stays within bounds, leases are kept,
// and no more is taken than was asked for.
func TestSlowHandler(t *testing.T) {
	server := redistest.Start(t)
	tr := open(t, server.Options())
	bus := busOver(t, tr)
	l := newLedger()
	p := echo.NewProducer(bus, jobs)
	batch := make([]job, 5000)
	for i := range batch {
		batch[i] = job{i, strings.Repeat("x", 1000)}
		l.published(batch[i], nil)
	}
	require.NoError(t, p.PublishBatch(t.Context(), batch))
	var handling, most atomic.Int32
	release := make(chan struct{})
	c, err := echo.Subscribe(t.Context(), bus, jobs, echo.WithGroup("g"), echo.WithLease(300*time.Millisecond), echo.WithConcurrency(4), echo.WithPrefetch(20, 1<<20))
	require.NoError(t, err)
	go c.Run(context.Background(), func(_ context.Context, m echo.Message[job]) error {
		most.Store(max(most.Load(), handling.Add(1)))
		defer handling.Add(-1)
		<-release
		l.handle(m.Value, m.ID, m.Attempt)
		return nil
	})
	eventually(t, 5*time.Second, "handlers", func() bool { return handling.Load() == 4 })
	var m runtime.MemStats
	for range 10 {
		time.Sleep(150 * time.Millisecond)
		assert.LessOrEqual(t, pending(t, server, key, "g"), 20)
	}
	runtime.GC()
	runtime.ReadMemStats(&m)
	assert.Zero(t, tr.Stats().LeasesLost)
	close(release)
	l.check(t, 20*time.Second, 0)
	assert.EqualValues(t, 4, most.Load())
}

// Handlers that panic, exit or fail have their messages delivered again;
// others are not touched.
func TestHandlersThatFail(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	bus := busOver(t, tr)
	l := newLedger()
	l.publishAll(t.Context(), bus, "p", 40, 0)
	c, err := echo.Subscribe(t.Context(), bus, jobs, echo.WithGroup("g"), echo.WithRetry(echo.Retry{Min: time.Millisecond, Max: 20 * time.Millisecond}))
	require.NoError(t, err)
	go c.Run(context.Background(), func(_ context.Context, m echo.Message[job]) error {
		if m.Attempt == 1 {
			switch m.Value.N % 8 {
			case 1:
				panic("a value")
			case 2:
				panic(error(nil))
			case 3:
				runtime.Goexit()
			case 4:
				return fmt.Errorf("failed")
			}
		}
		l.handle(m.Value, m.ID, m.Attempt)
		return nil
	})
	l.check(t, 10*time.Second, 0)
	eventually(t, 5*time.Second, "all to be acknowledged", func() bool { return tr.Stats().Acked == 40 })
	assert.EqualValues(t, 20, tr.Stats().Redelivered)
}

// A handler that never returns keeps its lease and does not keep Close.
func TestHandlerThatNeverReturns(t *testing.T) {
	tr := fresh(shared.Options(), redisstream.WithLease(300*time.Millisecond))
	defer tr.Close()
	bus := busOver(t, tr)
	publisher := echo.NewProducer(bus, jobs)
	require.NoError(t, publisher.Publish(t.Context(), job{1, "p"}))
	c, err := echo.Subscribe(t.Context(), bus, jobs, echo.WithGroup("g"))
	require.NoError(t, err)
	started, never := make(chan struct{}), make(chan struct{})
	defer close(never)
	go c.Run(context.Background(), func(ctx context.Context, m echo.Message[job]) error {
		close(started)
		<-never
		return nil
	})
	<-started
	time.Sleep(time.Second)
	assert.EqualValues(t, 1, tr.Stats().Received, "its lease is kept")
	assert.Zero(t, tr.Stats().LeasesLost)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	account, err := bus.Close(ctx)
	assert.Error(t, err)
	assert.Equal(t, 1, account.Abandoned)
	assert.Less(t, time.Since(begin), time.Second)
}

// Both directions of sharing a stream with the Crystal shard Echo.
func TestCrystalStream(t *testing.T) {
	type World struct{ Name string }
	worlds := echo.NewTopic[World]("World")
	server := redistest.Start(t)
	client := server.Client()
	bus := busOver(t, open(t, server.Options(), redisstream.WithCrystalFormat()))
	var mu sync.Mutex
	var got []string
	c, err := echo.Subscribe(t.Context(), bus, worlds, echo.WithGroup("g"))
	require.NoError(t, err)
	go c.Run(context.Background(), func(_ context.Context, m echo.Message[World]) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, m.ID+" "+m.Value.Name)
		return nil
	})
	theirs := base64.URLEncoding.EncodeToString([]byte(`{"Name":"Earth","_id":"u-1","_time":"2026-01-02T03:04:05.123Z"}`))
	require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: "World", Values: []string{"payload", theirs}}).Err())
	require.NoError(t, echo.NewProducer(bus, worlds).Publish(t.Context(), World{"Mars"}))
	eventually(t, 5*time.Second, "both worlds", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 2 })
	assert.Equal(t, "u-1 Earth", got[0])
	assert.Contains(t, got[1], " Mars")

	entries := client.XRange(t.Context(), "World", "-", "+").Val()
	require.Len(t, entries[1].Values, 1)
	data, err := base64.URLEncoding.DecodeString(entries[1].Values["payload"].(string))
	require.NoError(t, err)
	var ours map[string]any
	require.NoError(t, json.Unmarshal(data, &ours))
	assert.Equal(t, "Mars", ours["Name"])
	assert.NotEmpty(t, ours["_id"])
	_, err = time.Parse(time.RFC3339, ours["_time"].(string))
	assert.NoError(t, err)

	err = echo.NewProducer(bus, worlds).Publish(t.Context(), World{"Venus"}, echo.WithKey("k"))
	assert.ErrorContains(t, err, "no room for a key")
	assert.ErrorIs(t, err, transport.ErrNotPublished)
}

// A message of a megabyte, and one of nothing.
func TestSizes(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	s := subscribe(t, tr, "t", transport.Options{Group: "g", MaxPendingBytes: 3 << 20})
	for _, size := range []int{0, 1, 64 << 10, 1 << 20, 16 << 20} {
		m := message(fmt.Sprint(size))
		m.Data = []byte(strings.Repeat("x", size))
		_, err := tr.Send(t.Context(), "t", []transport.Message{m, m})
		require.NoError(t, err)
		for range 2 {
			got := receive(t, s, 1)
			require.Len(t, got[0].Data, size)
			ack(t, s, got...)
		}
	}
}
