package redisstream_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// with is a message with terms.
func with(id string, terms *transport.Terms) transport.Message {
	return transport.Message{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte(id), Terms: terms}
}

func inspect(t *testing.T, tr *redisstream.Transport, topic string) transport.Info {
	t.Helper()
	i, err := tr.Inspect(t.Context(), topic)
	require.NoError(t, err)
	return i
}

func TestTermsMayReachAsFarAsTimeDoes(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	far := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, terms := range []transport.Terms{{Due: far}, {Once: "a", Window: math.MaxInt64}, {Once: "a", Window: math.MaxInt64}} {
		_, err := tr.Send(t.Context(), "t", []transport.Message{with("m", &terms)})
		require.NoError(t, err)
	}
	i := inspect(t, tr, "t")
	assert.EqualValues(t, 1, i.Delayed)
	assert.EqualValues(t, 1, i.Messages)
	assert.EqualValues(t, 1, tr.Stats().Duplicates)
}

func TestMessagesWithAndWithoutTermsGoTogetherWhateverScriptsTheServerKnows(t *testing.T) {
	server := redistest.Start(t)
	tr := fresh(server.Options())
	defer tr.Close()
	for round := range 3 {
		require.NoError(t, server.Client().ScriptFlush(t.Context()).Err())
		n, err := tr.Send(t.Context(), "t", []transport.Message{
			with(fmt.Sprint("a", round), &transport.Terms{Once: fmt.Sprint(round), Window: time.Minute}), with(fmt.Sprint("b", round), nil),
			with(fmt.Sprint("c", round), &transport.Terms{Once: fmt.Sprint(round), Window: time.Minute}),
		})
		require.NoError(t, err)
		assert.Equal(t, 3, n)
	}
	assert.EqualValues(t, 6, inspect(t, tr, "t").Messages)
}

func TestNamesThatAreTooManyAreForgottenAndCounted(t *testing.T) {
	tr := fresh(shared.Options(), redisstream.WithRemembered(2))
	defer tr.Close()
	for _, name := range []string{"a", "b", "c", "c", "a"} {
		_, err := tr.Send(t.Context(), "t", []transport.Message{with(name, &transport.Terms{Once: name, Window: time.Minute})})
		require.NoError(t, err)
	}
	i := inspect(t, tr, "t")
	assert.EqualValues(t, 4, i.Messages, "a was forgotten")
	assert.EqualValues(t, 1, i.Duplicates)
	assert.EqualValues(t, 2, i.Forgotten)
}

// A name is remembered only with its message: one that the server had no memory
// for, or whose stream is none, can be sent again.
func TestAMessageThatIsRefusedIsNotRememberedAsStored(t *testing.T) {
	server := redistest.Start(t)
	tr := fresh(server.Options(), redisstream.WithSendTimeout(100*time.Millisecond), redisstream.WithPrefix("p"))
	defer tr.Close()
	once := func(topic string) error {
		_, err := tr.Send(t.Context(), topic, []transport.Message{with("m", &transport.Terms{Once: "a", Window: time.Minute})})
		return err
	}
	require.NoError(t, once("warm"))
	client := server.Client()
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
	for range 3 {
		require.ErrorIs(t, once("t"), transport.ErrNotPublished)
	}
	require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "0").Err())
	require.NoError(t, once("t"))
	assert.EqualValues(t, 1, inspect(t, tr, "t").Messages)

	require.NoError(t, client.Set(t.Context(), "p:{u}", "no stream", 0).Err())
	require.ErrorIs(t, once("u"), transport.ErrNotPublished)
	require.NoError(t, client.Del(t.Context(), "p:{u}").Err())
	require.NoError(t, once("u"))
	assert.EqualValues(t, 1, inspect(t, tr, "u").Messages)
	ttl := client.PTTL(t.Context(), "p:{u}:once").Val()
	assert.True(t, ttl > 0 && ttl <= time.Minute+time.Second, "names go when their windows are over, here after %v", ttl)
}

// A Move whose request is lost for longer than the lease does not say that it was done.
func TestAMoveWhoseOutcomeIsUnknownSaysSo(t *testing.T) {
	server := redistest.Start(t)
	proxy, options := proxied(t, server)
	options.ReadTimeout = 700 * time.Millisecond
	tr, other := fresh(options, redisstream.WithPrefix("p")), fresh(server.Options(), redisstream.WithPrefix("p"))
	defer tr.Close()
	defer other.Close()
	sub, err := tr.Subscribe(t.Context(), "t", transport.Options{Group: "g", Lease: 300 * time.Millisecond})
	require.NoError(t, err)
	_, err = tr.Send(t.Context(), "t", []transport.Message{with("m", nil)})
	require.NoError(t, err)
	dst := make([]transport.Message, 1)
	_, err = sub.Receive(t.Context(), dst)
	require.NoError(t, err)
	second, err := other.Subscribe(t.Context(), "t", transport.Options{Group: "g", Lease: time.Minute})
	require.NoError(t, err)
	_, err = tr.Subscribe(t.Context(), "t.dead", transport.Options{}) // so that its name is noted
	require.NoError(t, err)
	proxy.Blackhole(true)
	moved := make(chan error, 1)
	go func() {
		moved <- sub.(transport.Mover).Move(context.Background(), "t.dead", dst[0], dst[0].Receipt())
	}()
	taken := make([]transport.Message, 1)
	_, err = second.Receive(t.Context(), taken)
	require.NoError(t, err)
	proxy.Cut()
	proxy.Blackhole(false)
	assert.ErrorContains(t, <-moved, "may have moved it")
	assert.Zero(t, inspect(t, other, "t.dead").Messages)
	assert.EqualValues(t, 1, inspect(t, other, "t").Group("g").Pending)
}

func TestTopicsThatNobodyUsesAreLookedAtNoMore(t *testing.T) {
	server := redistest.Start(t)
	tr := fresh(server.Options(), redisstream.WithRetention(redisstream.Retention{MaxLen: 10}))
	defer tr.Close()
	for i := range 50 {
		for _, topic := range []string{fmt.Sprint("t", i), transport.InboxTopic(fmt.Sprint(i))} {
			sub, err := tr.Subscribe(t.Context(), topic, transport.Options{})
			require.NoError(t, err)
			require.NoError(t, sub.Close())
		}
		_, err := tr.Send(t.Context(), transport.InboxTopic(fmt.Sprint("x", i)), []transport.Message{with("m", nil)})
		require.NoError(t, err)
	}
	require.NoError(t, tr.Close())
	tr = fresh(server.Options())
	defer tr.Close()
	for i := range 50 {
		sub, err := tr.Subscribe(t.Context(), fmt.Sprint("t", i), transport.Options{})
		require.NoError(t, err)
		require.NoError(t, sub.Close())
	}
	time.Sleep(2500 * time.Millisecond) // the last look, which finds nothing due
	require.NoError(t, server.Client().ConfigResetStat(t.Context()).Err())
	time.Sleep(2500 * time.Millisecond)
	for line := range strings.Lines(server.Client().Info(t.Context(), "commandstats").Val()) {
		assert.NotContains(t, line, "evalsha")
	}
	_, err := tr.Send(t.Context(), transport.InboxTopic("a"), []transport.Message{with("m", &transport.Terms{Due: time.Now().Add(time.Hour)})})
	assert.ErrorIs(t, err, transport.ErrNotPublished)
}

// The oldest names are forgotten first, however long their windows are: who asks
// for long ones ends nobody else's.
func TestLongWindowsDoNotOutliveShortOnes(t *testing.T) {
	tr := fresh(shared.Options(), redisstream.WithRemembered(10))
	defer tr.Close()
	send := func(name string, window time.Duration) {
		_, err := tr.Send(t.Context(), "t", []transport.Message{with(name, &transport.Terms{Once: name, Window: window})})
		require.NoError(t, err)
	}
	for i := range 20 {
		send(fmt.Sprint("long", i), 100*365*24*time.Hour)
	}
	for range 5 {
		send("good", time.Hour)
	}
	i := inspect(t, tr, "t")
	assert.EqualValues(t, 21, i.Messages, "good is stored once")
	assert.EqualValues(t, 4, i.Duplicates)
	assert.EqualValues(t, 11, i.Forgotten)
}

// What is due at once is read once, and what is no message is set aside.
func TestLargeMessagesThatAreDueAtOnceTakeTheServerNoTime(t *testing.T) {
	server := redistest.Start(t)
	tr := fresh(server.Options(), redisstream.WithPrefix("p"))
	defer tr.Close()
	client := server.Client()
	ctx := t.Context()
	const n = 300
	due := time.Now().Add(2 * time.Second)
	for _, bad := range []string{"no message", "\x93\xa1m\xa1a\xa1k", "\x92\xa1m\x01"} { // of MessagePack: m, a, k; m, 1
		require.NoError(t, client.ZAdd(ctx, "p:{t}:later", redis.Z{Score: float64(due.UnixMilli()), Member: bad}).Err())
	}
	for i := range n {
		m := with(fmt.Sprint("m", i), &transport.Terms{Due: due})
		m.Data = make([]byte, 100_000)
		_, err := tr.Send(ctx, "t", []transport.Message{m})
		require.NoError(t, err)
	}
	require.NoError(t, client.ConfigResetStat(ctx).Err())
	require.Eventually(t, func() bool { return inspect(t, tr, "t").Messages == n }, 30*time.Second, 20*time.Millisecond)
	require.EqualValues(t, 3, client.XLen(ctx, "p:{t}:aside").Val())
	stats := client.Info(ctx, "commandstats").Val()
	var calls, micros int
	for line := range strings.Lines(stats) {
		if strings.HasPrefix(line, "cmdstat_zrangebyscore:") {
			_, err := fmt.Sscanf(line, "cmdstat_zrangebyscore:calls=%d,usec=%d", &calls, &micros)
			require.NoError(t, err)
		}
	}
	assert.Less(t, calls, n+100, "each is read once")
}

// What is due is moved once, however many look after it, come and go; what was
// due while nobody was there comes late.
func TestManyMoversLoseAndDoubleNothing(t *testing.T) {
	server := redistest.Start(t)
	opened := func() *redisstream.Transport {
		tr := fresh(server.Options(), redisstream.WithPrefix("p"))
		t.Cleanup(func() { tr.Close() })
		_, err := tr.Subscribe(t.Context(), "t", transport.Options{Group: "g"})
		require.NoError(t, err)
		return tr
	}
	const n = 3000
	first := opened()
	begin := time.Now()
	for i := range n / 100 {
		var msgs []transport.Message
		for k := range 100 {
			msgs = append(msgs, with(fmt.Sprint("m", 100*i+k), &transport.Terms{Due: begin.Add(200*time.Millisecond + time.Duration(100*i+k)*time.Millisecond)}))
		}
		_, err := first.Send(t.Context(), "t", msgs)
		require.NoError(t, err)
	}
	var looking []*redisstream.Transport
	for time.Since(begin) < 1500*time.Millisecond { // they come and go while it is moved
		looking = append(looking, opened())
		if len(looking) > 5 {
			require.NoError(t, looking[0].Close())
			looking = looking[1:]
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, tr := range append(looking, first) {
		require.NoError(t, tr.Close())
	}
	late := inspect(t, fresh(server.Options(), redisstream.WithPrefix("p")), "t").Delayed
	assert.Greater(t, late, int64(n/4), "they are due while nobody is there")
	time.Sleep(time.Until(begin.Add(200*time.Millisecond + n*time.Millisecond)))
	client := server.Client()
	for range 5 {
		opened()
	}
	require.Eventually(t, func() bool { return client.ZCard(t.Context(), "p:{t}:later").Val() == 0 }, 20*time.Second, 10*time.Millisecond)
	ids := map[any]int{}
	for _, entry := range client.XRange(t.Context(), "p:{t}", "-", "+").Val() {
		ids[fmt.Sprint(entry.Values)]++
	}
	assert.EqualValues(t, n, client.XLen(t.Context(), "p:{t}").Val())
	assert.Len(t, ids, n, "each once")
}
