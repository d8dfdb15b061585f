package wsstream_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// faulty is a transport whose subscriptions fail for good while it is broken.
type faulty struct {
	transport.Transport
	broken atomic.Bool
	opened atomic.Int64 // subscriptions so far
}

var errFaulty = errors.New("the transport is broken, and that is a secret")

func (f *faulty) Unwrap() transport.Transport { return f.Transport }

func (f *faulty) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	if f.broken.Load() {
		return nil, errFaulty
	}
	f.opened.Add(1)
	s, err := f.Transport.Subscribe(ctx, topic, o)
	return faultySub{s, f}, err
}

type faultySub struct {
	transport.Subscription
	f *faulty
}

func (s faultySub) Unwrap() transport.Subscription { return s.Subscription }

func (s faultySub) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	for {
		if s.f.broken.Load() {
			return 0, errFaulty
		}
		short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		n, err := s.Subscription.Receive(short, dst)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return n, err
		}
	}
}

// When the transport behind fails for good, subscriptions that were open go on
// as soon as it works again; those that were not are told, and not why.
func TestSubscriptionsOutliveFaultsOfTheTransport(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	f := &faulty{Transport: mem}
	n := newNodes(t, f)
	client := n.dial(t)
	for _, group := range []string{"", "g"} {
		topic := "t" + group
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s, err := client.Subscribe(ctx, topic, transport.Options{Group: group})
		require.NoError(t, err)
		got := make(chan string, 100)
		done := make(chan error, 1)
		go func() {
			dst := make([]transport.Message, 8)
			for {
				k, err := s.Receive(ctx, dst)
				if err != nil {
					done <- err
					return
				}
				for _, m := range dst[:k] {
					if err := s.(transport.Acker).Ack(ctx, []transport.Receipt{m.Receipt()}); err != nil && !errors.Is(err, transport.ErrLeaseLost) {
						done <- err
						return
					}
					got <- m.ID
				}
			}
		}()
		send(t, mem, topic, "a")
		require.Equal(t, "a", <-got)
		for _, id := range []string{"b", "c"} {
			f.broken.Store(true)
			time.Sleep(50 * time.Millisecond)
			_, err := client.Subscribe(ctx, topic, transport.Options{Group: group})
			var refused *wsstream.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, wsstream.CodeUnavailable, refused.Code)
			require.NotContains(t, err.Error(), "secret")
			send(t, mem, topic, id)
			f.broken.Store(false)
			require.Equal(t, id, <-got)
		}
		s.Close()
		require.ErrorIs(t, <-done, transport.ErrClosed)
		require.Empty(t, got)
	}
}

// A node that closes takes no subscription with it: clients go on at another.
func TestSubscriptionsOutliveTheirNode(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	for range 20 {
		n := newNodes(t, mem, mem)
		client := n.dial(t)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		s, err := client.Subscribe(ctx, "t", transport.Options{})
		require.NoError(t, err)
		at := int(n.next.Load()) % 2
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			n.handlers[at].Close()
		}()
		send(t, mem, "t", "a")
		dst := make([]transport.Message, 1)
		_, err = s.Receive(ctx, dst)
		require.NoError(t, err)
		require.Equal(t, "a", dst[0].ID)
		<-closed
		client.Close()
		cancel()
	}
}
