package echo

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

// A family of one topic keeps what every subscription promises.
func TestConformanceOfAFamily(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport { return familiar{memstream.New()} })
}

// familiar is a transport whose subscriptions are families of one topic.
type familiar struct{ *memstream.Transport }

func (t familiar) Unwrap() transport.Transport { return t.Transport }

func (t familiar) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	return subscribeFamily(ctx, New(WithTransport(alone{t.Transport, topic})), topic, opts, moverOf)
}

func moverOf(_ string, sub transport.Subscription) (transport.Mover, error) {
	mover, _ := transport.As[transport.Mover](sub)
	return mover, nil
}

// alone is a transport with one topic.
type alone struct {
	*memstream.Transport
	topic string
}

func (t alone) Topics(context.Context, string) ([]string, error) { return []string{t.topic}, nil }

// broken is a transport whose subscriptions to bad topics acknowledge nothing,
// and may end after the first message.
type broken struct {
	*memstream.Transport
	ends bool
}

var errBroken = errors.New("broken")

func (t broken) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	sub, err := t.Transport.Subscribe(ctx, topic, opts)
	if err == nil && strings.HasSuffix(topic, "bad") {
		sub = &brokenSub{Subscription: sub, ends: t.ends}
	}
	return sub, err
}

type brokenSub struct {
	transport.Subscription
	ends, used bool
}

func (s *brokenSub) Unwrap() transport.Subscription                 { return s.Subscription }
func (s *brokenSub) Ack(context.Context, []transport.Receipt) error { return errBroken }

func (s *brokenSub) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if s.ends && s.used {
		return 0, errBroken
	}
	s.used = true
	return s.Subscription.Receive(ctx, dst)
}

// familyOf is a family of topics with messages in each, of one byte.
func familyOf(t *testing.T, tr transport.Transport, opts transport.Options, n int, topics ...string) *family {
	for _, topic := range topics {
		for range n {
			_, err := tr.Send(t.Context(), topic, []transport.Message{{ID: rand.Text(), Time: time.Now(), Data: []byte("1")}})
			require.NoError(t, err)
		}
	}
	f, err := subscribeFamily(t.Context(), New(WithTransport(tr)), "t.*", opts, moverOf)
	require.NoError(t, err)
	t.Cleanup(func() {
		f.Close()
		tr.Close()
	})
	return f
}

// takeAll receives n messages.
func takeAll(t *testing.T, f *family, n int) (msgs []transport.Message) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(msgs) < n {
		dst := make([]transport.Message, n-len(msgs))
		k, err := f.Receive(ctx, dst)
		require.NoError(t, err)
		msgs = append(msgs, dst[:k]...)
	}
	return msgs
}

func TestWhatEndsOneTopicOfAPatternEndsItAndIsNamed(t *testing.T) {
	f := familyOf(t, broken{memstream.New(), true}, transport.Options{Group: "g"}, 1, "t.bad", "t.good")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var err error
	for n := 0; err == nil && n < 3; n++ {
		_, err = f.Receive(ctx, make([]transport.Message, 1))
	}
	for range 2 {
		require.ErrorIs(t, err, errBroken)
		require.ErrorContains(t, err, "topic t.bad")
		_, err = f.Receive(ctx, make([]transport.Message, 1))
	}
	require.NoError(t, f.Close())
	_, err = f.Receive(ctx, make([]transport.Message, 1))
	require.ErrorIs(t, err, ErrClosed)
}

func TestAFailureOfOneTopicHidesNoLeaseLostInAnother(t *testing.T) {
	f := familyOf(t, broken{memstream.New(), false}, transport.Options{Group: "g"}, 2, "t.bad", "t.good")
	byTopic := map[string][]transport.Receipt{}
	for _, m := range takeAll(t, f, 4) {
		topic, _ := f.topicOf(&m)
		byTopic[topic] = append(byTopic[topic], m.Receipt())
	}
	gone := byTopic["t.good"][0]
	require.NoError(t, f.Ack(t.Context(), []transport.Receipt{gone}))
	err := f.Ack(t.Context(), []transport.Receipt{gone, byTopic["t.bad"][0], byTopic["t.good"][1]})
	require.ErrorIs(t, err, errBroken)
	late, alone := lostBy(err)
	require.NotNil(t, late)
	assert.Equal(t, []transport.Receipt{gone}, late.Lost)
	assert.False(t, alone)
	late, alone = lostBy(f.Ack(t.Context(), byTopic["t.good"]))
	assert.ElementsMatch(t, byTopic["t.good"], late.Lost)
	assert.True(t, alone)
}

func TestBoundsOfAPatternAreForAllItsTopicsTogether(t *testing.T) {
	for _, opts := range []transport.Options{{Group: "g", MaxPending: 5}, {Group: "g", MaxPendingBytes: 5}} {
		f := familyOf(t, memstream.New(), opts, 4, "t.a", "t.b")
		held := takeAll(t, f, 5)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		n, err := f.Receive(ctx, make([]transport.Message, 1))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, n)
		require.NoError(t, f.Ack(t.Context(), []transport.Receipt{held[0].Receipt(), held[4].Receipt()}))
		takeAll(t, f, 2)
	}
}
