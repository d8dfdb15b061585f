package wsstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/faultproxy"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
	"github.com/echobus/echo/wsstream"
)

// nodes are handlers behind one address, which new links reach by turns.
type nodes struct {
	handlers []*wsstream.Handler
	server   *httptest.Server
	proxy    *faultproxy.Proxy
	next     atomic.Int64
}

func newNodes(t testing.TB, over ...transport.Transport) *nodes {
	t.Helper()
	n := &nodes{}
	for _, tr := range over {
		n.handlers = append(n.handlers, wsstream.NewHandler(tr, wsstream.WithAnonymous(wsstream.Everything("")), wsstream.WithHold(2*time.Second)))
	}
	n.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.handlers[int(n.next.Add(1))%len(n.handlers)].ServeHTTP(w, r)
	}))
	var err error
	n.proxy, err = faultproxy.New(n.server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() {
		n.proxy.Close()
		for _, h := range n.handlers {
			h.Close()
		}
		n.server.Close()
	})
	return n
}

func (n *nodes) dial(t testing.TB, opts ...wsstream.DialOption) *wsstream.Transport {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tr, err := wsstream.Dial(ctx, "ws://"+n.proxy.Addr(), append([]wsstream.DialOption{wsstream.WithBackoff(time.Millisecond, 50*time.Millisecond)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { tr.Close() })
	return tr
}

func TestConformanceOverRedis(t *testing.T) {
	server := redistest.Start(t)
	var n atomic.Int64
	transporttest.Run(t, func(t testing.TB) transport.Transport {
		client := redis.NewClient(server.Options())
		tr := redisstream.New(client, redisstream.WithPrefix(fmt.Sprint("p", n.Add(1))))
		h := wsstream.NewHandler(tr, wsstream.WithAnonymous(wsstream.Everything("")))
		s := httptest.NewServer(h)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := wsstream.Dial(ctx, s.URL)
		require.NoError(t, err)
		return linked{c, func() {
			h.Close()
			s.Close()
			tr.Close()
			client.Close()
		}}
	})
}

func TestConformanceOverABadNetwork(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport {
		mem := memstream.New()
		n := newNodes(t, mem)
		n.proxy.Delay(200*time.Microsecond, time.Millisecond)
		n.proxy.Chunk(700)
		c := n.dial(t)
		return linked{c, func() {
			n.proxy.Close()
			n.handlers[0].Close()
			n.server.Close()
			mem.Close()
		}}
	})
}

// Links that break all the time, between clients and two nodes over one
// transport: nothing accepted is lost, to groups or broadcasts.
func TestLinksThatBreak(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	brokenLinks(t, newNodes(t, mem, mem))
}

// With one node, which remembers what it published, nothing is stored twice.
func TestLinksThatBreakToOneNode(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	assert.Zero(t, brokenLinks(t, newNodes(t, mem)))
}

func TestLinksThatBreakOverRedis(t *testing.T) {
	server := redistest.Start(t)
	var over []transport.Transport
	for range 2 {
		client := redis.NewClient(server.Options())
		t.Cleanup(func() { client.Close() })
		tr := redisstream.New(client)
		t.Cleanup(func() { tr.Close() })
		over = append(over, tr)
	}
	brokenLinks(t, newNodes(t, over...))
}

// brokenLinks returns how many messages the broadcast subscription got again,
// which are those that were stored twice.
func brokenLinks(t *testing.T, n *nodes) (stored int) {
	const publishers, each = 4, 1500
	var mu sync.Mutex
	handled, seen := map[string]int{}, map[string]int{}
	accepted, unknown := map[string]bool{}, map[string]bool{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var consuming sync.WaitGroup
	defer consuming.Wait()
	defer cancel()
	var clients []*wsstream.Transport
	for range 2 {
		c := n.dial(t)
		clients = append(clients, c)
		s, err := c.Subscribe(t.Context(), "t", transport.Options{Group: "g", Lease: 2 * time.Second})
		require.NoError(t, err)
		consuming.Go(func() {
			dst := make([]transport.Message, 20)
			for {
				k, err := s.Receive(ctx, dst)
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("group: Receive: %v", err)
					}
					return
				}
				var rs []transport.Receipt
				mu.Lock()
				for i := range dst[:k] {
					handled[dst[i].ID]++
					rs = append(rs, dst[i].Receipt())
				}
				mu.Unlock()
				if err := s.(transport.Acker).Ack(ctx, rs); err != nil && !errors.Is(err, transport.ErrLeaseLost) && ctx.Err() == nil {
					t.Errorf("Ack: %v", err)
				}
			}
		})
	}
	b, err := n.dial(t, wsstream.WithJSON()).Subscribe(t.Context(), "t", transport.Options{})
	require.NoError(t, err)
	consuming.Go(func() {
		dst := make([]transport.Message, 20)
		for {
			k, err := b.Receive(ctx, dst)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("broadcast: Receive: %v", err)
				}
				return
			}
			var rs []transport.Receipt
			mu.Lock()
			for i := range dst[:k] {
				seen[dst[i].ID]++
				rs = append(rs, dst[i].Receipt())
			}
			mu.Unlock()
			b.(transport.Acker).Ack(ctx, rs)
		}
	})
	n.proxy.Storm(20*time.Millisecond, 200*time.Millisecond, 1)
	var publishing sync.WaitGroup
	for p := range publishers {
		tr := n.dial(t)
		publishing.Go(func() {
			for i := 0; i < each; i += 5 {
				batch := make([]transport.Message, 5)
				for k := range batch {
					batch[k] = transport.Message{ID: fmt.Sprintf("p%d-%d", p, i+k), Data: make([]byte, 100)}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				k, err := tr.Send(ctx, "t", batch)
				cancel()
				mu.Lock()
				for j := range batch {
					if j < k {
						accepted[batch[j].ID] = true
					} else if !errors.Is(err, transport.ErrNotPublished) {
						unknown[batch[j].ID] = true
					}
				}
				mu.Unlock()
				if err != nil {
					t.Logf("Send: %v", err)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	publishing.Wait()
	n.proxy.Storm(0, 0, 0)
	missing := func() (m int) {
		mu.Lock()
		defer mu.Unlock()
		for id := range accepted {
			if handled[id] == 0 || seen[id] == 0 {
				m++
			}
		}
		return m
	}
	begin := time.Now()
	for missing() > 0 && time.Since(begin) < 15*time.Second {
		time.Sleep(5 * time.Millisecond)
	}
	if missing() > 0 {
		for i, h := range n.handlers {
			t.Logf("node %d: %+v\n%s", i, h.Stats(), h.Dump())
		}
		for _, c := range clients {
			t.Logf("%s", c.Dump())
		}
	}
	mu.Lock()
	defer mu.Unlock()
	again := 0
	for id := range accepted {
		if handled[id] == 0 {
			t.Errorf("%s was not handled by the group", id)
		}
		if seen[id] == 0 {
			t.Errorf("%s was not seen by the broadcast", id)
		}
		again += handled[id] - 1
		stored += seen[id] - 1
	}
	assert.Len(t, accepted, publishers*each)
	t.Logf("%d accepted, %d unknown, %d repetitions in the group, %d in the broadcast, %d links, drained after %v",
		len(accepted), len(unknown), again, stored, n.next.Load(), time.Since(begin).Round(time.Millisecond))
	return stored
}
