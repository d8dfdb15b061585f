package migrate_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

// bridge runs a bridge of topic t until stop is called, or the test ends.
func bridge(t testing.TB, from, to transport.Transport, opts ...migrate.BridgeOption) (meter *migrate.BridgeMeter, stop func()) {
	t.Helper()
	meter = new(migrate.BridgeMeter)
	opts = append([]migrate.BridgeOption{migrate.WithBackoff(time.Millisecond, 10*time.Millisecond), migrate.WithMeter(meter)}, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- migrate.Bridge(ctx, from, to, []string{"t"}, opts...) }()
	done := false
	stop = func() {
		if cancel(); !done {
			done = true
			assert.NoError(t, <-result)
		}
	}
	t.Cleanup(stop)
	return meter, stop
}

func memory(t testing.TB, opts ...memstream.Option) *memstream.Transport {
	return opened(t, memstream.New(opts...))
}

func TestBridgeCopiesMessagesAsTheyAre(t *testing.T) {
	from, to := memory(t), memory(t)
	bridge(t, from, to)
	want := message("m-1")
	want.Key, want.Header = "k", map[string]string{"h": "v"}
	_, err := from.Send(t.Context(), "t", []transport.Message{want})
	require.NoError(t, err)
	got := receive(t, group(t, to, "t"), 1)[0]
	want.Header["echo-bridge"] = "-"
	want.Attempt, want.Position, want.Token = 1, got.Position, got.Token
	assert.Equal(t, want, got)
}

func TestBridgeKeepsTheOrderOfATopicHoweverTheOtherEndStores(t *testing.T) {
	for name, ends := range map[string]func(transport.Transport) transport.Transport{
		"well":             func(tr transport.Transport) transport.Transport { return tr },
		"one at a time":    transporttest.OneAtATime,
		"parts of a batch": func(tr transport.Transport) transport.Transport { return transporttest.ShortSend(tr, 7) },
		"or refuses every other time": func(tr transport.Transport) transport.Transport {
			return &flaky{Transport: tr, err: errors.Join(transport.ErrNotPublished, transport.ErrFull)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := memory(t), memory(t)
			send(t, from, "t", numbered("m", 300)...)
			meter, stop := bridge(t, from, ends(to), migrate.WithBatch(64))
			assert.Equal(t, numbered("m", 300), ids(receive(t, group(t, to, "t"), 300)))
			eventually(t, 10*time.Second, "all to be settled", func() bool {
				i := inspect(t, from, "t")
				return i.Group("bridge").Pending == 0
			})
			stop()
			s := meter.Stats()
			assert.EqualValues(t, []uint64{300, 0, 0}, []uint64{s.Copied, s.Repeated, s.Dead})
		})
	}
}

// flaky is a transport of which every other Send fails. If it stores, what failed was stored.
type flaky struct {
	transport.Transport
	err    error
	stores bool
	count  atomic.Int64
}

func (f *flaky) Unwrap() transport.Transport { return f.Transport }

func (f *flaky) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if f.count.Add(1)%2 == 1 {
		if f.stores {
			f.Transport.Send(ctx, topic, msgs)
		}
		return 0, f.err
	}
	return f.Transport.Send(ctx, topic, msgs)
}

func TestBridgeSendsAgainWhatMayHaveBeenStored(t *testing.T) {
	for name, c := range map[string]struct {
		opts []migrate.BridgeOption
		kept int64
	}{
		"twice under one ID":                  {nil, 20},
		"once where the other end sees to it": {[]migrate.BridgeOption{migrate.WithOnce(time.Minute)}, 10},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := memory(t), memory(t)
			send(t, from, "t", numbered("m", 10)...)
			meter, stop := bridge(t, from, &flaky{Transport: to, err: errors.New("connection reset"), stores: true}, c.opts...)
			eventually(t, 10*time.Second, "ten copies", func() bool { return meter.Stats().Copied == 10 })
			stop()
			assert.Equal(t, c.kept, inspect(t, to, "t").Messages)
			assert.Equal(t, migrate.BridgeStats{Copied: 10, Repeated: 10, Refused: 1}, meter.Stats())
		})
	}
}

func TestBridgeHoldsItsMessagesForAsLongAsTheOtherEndFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, to := memory(t), memory(t)
		down := &outage{Transport: to}
		down.on.Store(true)
		send(t, from, "t", numbered("m", 5)...)
		meter, stop := bridge(t, from, down, migrate.WithLease(time.Second), migrate.WithBackoff(time.Second, 5*time.Second))
		time.Sleep(time.Hour) // the bubble's
		down.on.Store(false)
		assert.Equal(t, numbered("m", 5), ids(receive(t, group(t, to, "t"), 5)))
		synctest.Wait()
		stop()
		s := meter.Stats()
		assert.EqualValues(t, []uint64{5, 0}, []uint64{s.Copied, s.Repeated})
		assert.Greater(t, s.Refused, uint64(500), "tried at least every 5 s")
		assert.Less(t, s.Refused, uint64(2000))
	})
}

// outage is a transport that refuses while it is on.
type outage struct {
	transport.Transport
	on atomic.Bool
}

func (o *outage) Unwrap() transport.Transport { return o.Transport }

func (o *outage) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	if o.on.Load() {
		return 0, transport.ErrNotPublished
	}
	return o.Transport.Send(ctx, topic, msgs)
}

func TestBridgeThatEndsGivesBackWhatItDidNotCopy(t *testing.T) {
	from, to := memory(t), memory(t)
	down := &outage{Transport: to}
	down.on.Store(true)
	send(t, from, "t", numbered("m", 5)...)
	meter, stop := bridge(t, from, down)
	eventually(t, 10*time.Second, "a refusal", func() bool { return meter.Stats().Refused > 0 })
	stop()
	msgs := receive(t, subscribe(t, from, "t", transport.Options{Group: "bridge"}), 5)
	assert.Equal(t, numbered("m", 5), ids(msgs))
	assert.Equal(t, 1, msgs[0].Attempt, "nothing was tried")
}

func TestMessageThatIsRefusedForEverBecomesADeadLetterWhereItCameFrom(t *testing.T) {
	orders := echo.NewTopic[string]("t")
	from := memory(t)
	small, large := memory(t, memstream.WithMaxBytes(1000)), memory(t)
	bus := echo.New(echo.WithTransport(transport.KeepOpen(from)))
	p := echo.NewProducer(bus, orders)
	for _, v := range []string{"a", strings.Repeat("x", 2000), "b"} {
		require.NoError(t, p.Publish(t.Context(), v))
	}
	meter, stop := bridge(t, from, small)
	eventually(t, 10*time.Second, "all to be seen to", func() bool { s := meter.Stats(); return s.Copied == 2 && s.Dead == 1 })
	stop()

	letters, err := echo.Subscribe(t.Context(), bus, echo.DeadLetters(orders), echo.WithGroup("look"))
	require.NoError(t, err)
	for m, err := range letters.Messages(t.Context()) {
		require.NoError(t, err)
		assert.Equal(t, []string{echo.ReasonRejected, "bridge"}, []string{m.Value.Reason, m.Value.Group})
		assert.Contains(t, m.Value.Error, "too large")
		assert.Len(t, m.Value.Value, 2000)
		break
	}
	done, err := echo.Redrive(t.Context(), bus, orders, nil, 0)
	require.NoError(t, err)
	assert.Equal(t, 1, done.Sent)
	bridge(t, from, large)
	got := receive(t, group(t, large, "t"), 1)[0]
	assert.Len(t, got.Data, 2002)
	assert.NotContains(t, got.Header, "echo-for", "there it is for everybody")
	_, err = bus.Close(t.Context())
	require.NoError(t, err)
}

func TestBridgeStopsAtARefusalIfItIsToldTo(t *testing.T) {
	from, to := memory(t), memory(t, memstream.WithMaxBytes(1000))
	big := message("big")
	big.Data = make([]byte, 2000)
	_, err := from.Send(t.Context(), "t", []transport.Message{message("a"), big, message("b")})
	require.NoError(t, err)
	err = migrate.Bridge(t.Context(), from, to, []string{"other", "t"}, migrate.WithStopOnRefusal())
	require.ErrorIs(t, err, transport.ErrTooLarge)
	assert.ErrorContains(t, err, "topic t: message big is refused")
	i := inspect(t, from, "t")
	assert.EqualValues(t, 2, i.Group("bridge").Pending+i.Group("bridge").Lag, "the refused one and the next one stay")
}

func TestOppositeBridgesDoNotLoop(t *testing.T) {
	for name, c := range map[string]struct{ there, back []migrate.BridgeOption }{
		"without names": {},
		"with names":    {[]migrate.BridgeOption{migrate.WithSites("a", "b")}, []migrate.BridgeOption{migrate.WithSites("b", "a")}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := memory(t), memory(t)
			there, _ := bridge(t, a, b, c.there...)
			back, _ := bridge(t, b, a, c.back...)
			send(t, a, "t", numbered("a", 50)...)
			send(t, b, "t", numbered("b", 50)...)
			all := append(numbered("a", 50), numbered("b", 50)...)
			for _, end := range []transport.Transport{a, b} {
				s := group(t, end, "t")
				assert.ElementsMatch(t, all, ids(receive(t, s, 100)))
				nothing(t, s, 50*time.Millisecond)
			}
			for _, m := range []*migrate.BridgeMeter{there, back} {
				assert.Equal(t, migrate.BridgeStats{Copied: 50, Returned: 50}, m.Stats())
			}
		})
	}
}

func TestMessagesPassAChainOfBridgesThatNameTheirEnds(t *testing.T) {
	a, b, c := memory(t), memory(t), memory(t)
	bridge(t, a, b, migrate.WithSites("a", "b"))
	bridge(t, b, c, migrate.WithSites("b", "c"))
	last, _ := bridge(t, c, a, migrate.WithSites("c", "a"))
	send(t, a, "t", "m-1")
	got := receive(t, group(t, c, "t"), 1)[0]
	assert.Equal(t, "a,b", got.Header["echo-bridge"])
	eventually(t, 10*time.Second, "the last bridge to see it", func() bool { return last.Stats().Returned == 1 })
	assert.EqualValues(t, 1, inspect(t, a, "t").Messages)

	limited, _ := bridge(t, c, memory(t), migrate.WithHops(2), migrate.WithGroup("limited"))
	eventually(t, 10*time.Second, "the limit", func() bool { return limited.Stats().Returned == 1 })
}

func TestBridgeSaysWhatIsWrongBeforeItBegins(t *testing.T) {
	from, to := memory(t), memory(t)
	values := memory(t, memstream.WithValues())
	for name, c := range map[string]struct {
		from, to transport.Transport
		topics   []string
		opt      migrate.BridgeOption
		want     string
	}{
		"no topics":          {from, to, nil, nil, "no topics"},
		"a topic twice":      {from, to, []string{"t", "t"}, nil, "topic t is named twice"},
		"a name":             {from, to, []string{"t "}, nil, "may not have"},
		"a nil transport":    {from, nil, []string{"t"}, nil, "transport is nil"},
		"values":             {values, to, []string{"t"}, nil, "by reference"},
		"once":               {from, bare{to}, []string{"t"}, migrate.WithOnce(time.Second), "does not deduplicate"},
		"no verbs":           {mute{from}, to, []string{"t"}, nil, "cannot acknowledge"},
		"a group":            {from, to, []string{"t"}, migrate.WithGroup("a b"), "WithGroup"},
		"an empty batch":     {from, to, []string{"t"}, migrate.WithBatch(0), "WithBatch(0)"},
		"a lease":            {from, to, []string{"t"}, migrate.WithLease(0), "WithLease"},
		"back-off":           {from, to, []string{"t"}, migrate.WithBackoff(2, 1), "WithBackoff"},
		"one site":           {from, to, []string{"t"}, migrate.WithSites("a", "a"), "the two ends are one"},
		"hops":               {from, to, []string{"t"}, migrate.WithHops(0), "WithHops(0)"},
		"no window":          {from, to, []string{"t"}, migrate.WithOnce(0), "WithOnce"},
		"no meter":           {from, to, []string{"t"}, migrate.WithMeter(nil), "WithMeter"},
		"no logger":          {from, to, []string{"t"}, migrate.WithLogger(nil), "WithLogger"},
		"a closed transport": {closed(), to, []string{"t"}, nil, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := []migrate.BridgeOption{}
			if c.opt != nil {
				opts = append(opts, c.opt)
			}
			require.ErrorContains(t, migrate.Bridge(t.Context(), c.from, c.to, c.topics, opts...), c.want)
		})
	}
}

func closed() transport.Transport {
	tr := memstream.New()
	tr.Close()
	return tr
}

func TestBridgeEndsWhenEitherTransportIsClosed(t *testing.T) {
	for i := range 2 {
		ends := []*memstream.Transport{memory(t), memory(t)}
		result := make(chan error, 1)
		meter := new(migrate.BridgeMeter)
		go func() {
			result <- migrate.Bridge(t.Context(), ends[0], ends[1], []string{"t", "u"}, migrate.WithMeter(meter))
		}()
		send(t, ends[0], "t", "m-1")
		eventually(t, 10*time.Second, "a copy", func() bool { return meter.Stats().Copied == 1 })
		ends[i].Close()
		if i == 1 {
			send(t, ends[0], "t", "m-2")
		}
		require.ErrorIs(t, <-result, transport.ErrClosed)
	}
}

// A bridge is killed in the middle of its work, again and again.
func TestBridgeKilledAtAnyTimeLosesNothing(t *testing.T) {
	const n, kills = 6000, 15
	from, to := prefix(), prefix()
	env := append(os.Environ(), workerAddr+"="+shared.Addr(), workerFrom+"="+from, workerTo+"="+to, "GORACE=atexit_sleep_ms=0", "GOCOVERDIR="+t.TempDir())
	source := opened(t, overRedis(redisstream.WithPrefix(from)))
	target := opened(t, overRedis(redisstream.WithPrefix(to)))
	s := group(t, target, "t")
	for i := range n / 100 {
		var batch []string
		for k := range 100 {
			batch = append(batch, strconv.Itoa(100*i+k))
		}
		send(t, source, "t", batch...)
	}
	for k := range kills + 1 {
		p, err := os.StartProcess(os.Args[0], []string{os.Args[0]}, &os.ProcAttr{Env: env, Files: []*os.File{nil, os.Stdout, os.Stderr}})
		require.NoError(t, err)
		for until := kept(t, target) + 50 + rand.IntN(100); k < kills && kept(t, target) < until; { // so that it is busy when it is killed
			require.NoError(t, t.Context().Err())
		}
		if k == kills {
			eventually(t, workerLease+20*time.Second, "the rest", func() bool {
				i := inspect(t, source, "t")
				g := i.Group("bridge")
				return g.Lag == 0 && g.Pending == 0
			})
		}
		p.Kill()
		p.Wait()
	}
	seen, handled := map[string]int{}, kept(t, target)
	for _, m := range receive(t, s, handled) {
		seen[m.ID]++
	}
	assert.Len(t, seen, n)
	t.Logf("%d messages, %d kills, %d repetitions", n, kills, handled-n)
	assert.LessOrEqual(t, handled-n, kills*2*16, "what a bridge may be in the middle of")
}
