package wsstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/faultproxy"
	"github.com/echobus/echo/internal/policytest"
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
		n.handlers = append(n.handlers, wsstream.NewHandler(tr, wsstream.WithAnonymous(wsstream.Everything("")),
			wsstream.WithHold(2*time.Second), wsstream.WithHeartbeat(500*time.Millisecond, 500*time.Millisecond)))
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

// lasts is how long trouble does: longer as ECHO_SOAK says.
func lasts() time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("ECHO_SOAK")); err == nil {
		return time.Duration(factor) * 4 * time.Second
	}
	return 4 * time.Second
}

// trouble is a way to make trouble between clients and servers.
type trouble struct {
	dial  func(t testing.TB, opts ...wsstream.DialOption) *wsstream.Transport
	begin func()
	end   func()
	tell  func() string // what there is to know if messages are missing
}

func (n *nodes) tell() (s string) {
	for i, h := range n.handlers {
		s += fmt.Sprintf("node %d: %+v\n%s", i, h.Stats(), h.Dump())
	}
	return s
}

// cuts ends every link after some time.
func (n *nodes) cuts() trouble {
	return trouble{n.dial, func() { n.proxy.Storm(20*time.Millisecond, 200*time.Millisecond, 1) }, func() { n.proxy.Storm(0, 0, 0) }, n.tell}
}

// holes lets nothing pass for a while, time and again: nobody is told that the
// other is gone.
func (n *nodes) holes() trouble {
	stop := make(chan struct{})
	var work sync.WaitGroup
	begin := func() {
		work.Go(func() {
			for i := 0; ; i++ {
				n.proxy.Blackhole(i%2 == 0)
				select {
				case <-time.After([]time.Duration{1500, 300, 100, 100}[i%4] * time.Millisecond): // the first is too long for clients
				case <-stop:
					return
				}
			}
		})
	}
	end := func() {
		close(stop)
		work.Wait()
		n.proxy.Blackhole(false)
	}
	return trouble{n.dial, begin, end, n.tell}
}

func TestConformanceOverRedis(t *testing.T) { transporttest.Run(t, linkedOverRedis(t)) }

func TestPoliciesOverRedis(t *testing.T) { policytest.Run(t, linkedOverRedis(t)) }

// linkedOverRedis links a client to a server over Redis.
func linkedOverRedis(t *testing.T) func(testing.TB) transport.Transport {
	server := redistest.Start(t)
	var n atomic.Int64
	return func(t testing.TB) transport.Transport {
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
	}
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
	brokenLinks(t, newNodes(t, mem, mem).cuts())
}

// With one node, which remembers what it published, nothing is stored twice.
func TestLinksThatBreakToOneNode(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	assert.Zero(t, brokenLinks(t, newNodes(t, mem).cuts()))
}

// Links break while keys fail, and the consumer is paused time and again: within
// a key nothing is passed by.
func TestOrderSurvivesLinksThatBreak(t *testing.T) {
	const keys, each = 4, 1000
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	n := newNodes(t, mem)
	bus := echo.New(echo.WithTransport(n.dial(t)))
	direct := echo.New(echo.WithTransport(transport.KeepOpen(mem)))
	numbers := echo.NewTopic[int]("n", echo.WithKeyFunc(func(i int) string { return strconv.Itoa(i % keys) }))
	for i := range keys * each {
		require.NoError(t, echo.NewProducer(direct, numbers).Publish(t.Context(), i))
	}
	c, err := echo.Subscribe(t.Context(), bus, numbers, echo.WithGroup("g"), echo.WithConcurrency(3), echo.WithPrefetch(64, 0),
		echo.WithRetry(echo.Retry{Table: []time.Duration{time.Millisecond}}))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n.proxy.Storm(5*time.Millisecond, 60*time.Millisecond, 1)
	var pausing sync.WaitGroup
	pausing.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(time.Duration(rand.IntN(6)) * time.Millisecond)
			c.Pause()
			c.Resume()
		}
	})
	var mu sync.Mutex
	next, done := map[string]int{}, 0
	require.NoError(t, c.Run(ctx, func(_ context.Context, m echo.Message[int]) error {
		if rand.IntN(30) == 0 {
			return errors.New("oops")
		}
		mu.Lock()
		defer mu.Unlock()
		i := m.Value / keys
		assert.LessOrEqual(t, i, next[m.Key], "key %s, attempt %d", m.Key, m.Attempt)
		if i == next[m.Key] {
			next[m.Key]++
			if done++; done == keys*each {
				cancel()
			}
		}
		return nil
	}))
	pausing.Wait()
	assert.Equal(t, keys*each, done)
}

func TestLinksThatBreakOverRedis(t *testing.T) {
	server := redistest.Start(t)
	brokenLinks(t, newNodes(t, overRedis(t, server), overRedis(t, server)).cuts())
}

func overRedis(t testing.TB, server *redistest.Server) transport.Transport {
	client := redis.NewClient(server.Options())
	t.Cleanup(func() { client.Close() })
	tr := redisstream.New(client)
	t.Cleanup(func() { tr.Close() })
	return tr
}

// Links that are dead without a word.
func TestHalfOpenLinks(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	brokenLinks(t, newNodes(t, mem, mem).holes())
}

// Two nodes over one Redis, of which one or the other is killed all the time.
func TestNodesKilledAtRandom(t *testing.T) {
	server := redistest.Start(t)
	n := &processes{t: t, redis: server.Addr()}
	for i := range 2 {
		n.start(i)
	}
	t.Cleanup(n.close)
	brokenLinks(t, trouble{n.dial, n.begin, n.end, func() string { return "" }})
	assert.Greater(t, n.kills, 5)
	t.Logf("%d nodes were killed", n.kills)
}

// processes are nodes of their own.
type processes struct {
	t     testing.TB
	redis string
	stop  chan struct{}
	work  sync.WaitGroup
	kills int

	mu    sync.Mutex
	nodes [2]*exec.Cmd
	addrs [2]string
}

// nodeEnv holds the address of Redis, for a process that is a node.
const nodeEnv = "ECHO_TEST_NODE"

// node is what such a process does: it says where it listens, and ends with
// who started it.
func node(redisAddr string) {
	tr := redisstream.New(redis.NewClient(&redis.Options{Addr: redisAddr}))
	h := wsstream.NewHandler(tr, wsstream.WithAnonymous(wsstream.Everything("")))
	s := httptest.NewServer(h)
	fmt.Println(s.Listener.Addr())
	io.Copy(io.Discard, os.Stdin)
}

func (n *processes) start(i int) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), nodeEnv+"="+n.redis)
	_, err := cmd.StdinPipe()
	require.NoError(n.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(n.t, err)
	require.NoError(n.t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(n.t, err)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[i], n.addrs[i] = cmd, strings.TrimSpace(line)
}

func (n *processes) kill(i int) {
	n.nodes[i].Process.Kill()
	n.nodes[i].Wait()
	n.kills++
}

func (n *processes) begin() {
	n.stop = make(chan struct{})
	n.work.Go(func() {
		for {
			select {
			case <-time.After(time.Duration(200+rand.IntN(400)) * time.Millisecond):
			case <-n.stop:
				return
			}
			i := rand.IntN(2)
			n.kill(i)
			n.start(i)
		}
	})
}

func (n *processes) end() {
	close(n.stop)
	n.work.Wait()
}

func (n *processes) close() {
	for i := range n.nodes {
		n.kill(i)
	}
}

// dial connects to one node or the other, whichever answers.
func (n *processes) dial(t testing.TB, opts ...wsstream.DialOption) *wsstream.Transport {
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		n.mu.Lock()
		addr := n.addrs[rand.IntN(2)]
		n.mu.Unlock()
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}}
	return dial(t, "ws://nodes/", append([]wsstream.DialOption{wsstream.WithHTTPClient(hc)}, opts...)...)
}

// brokenLinks returns how many messages the broadcast subscription got again,
// which are those that were stored twice.
func brokenLinks(t *testing.T, n trouble) (stored int) {
	const publishers = 4
	until := time.Now().Add(lasts())
	var links atomic.Int64
	count := wsstream.WithState(func(s wsstream.State) {
		if s.Up {
			links.Add(1)
		}
	})
	sent := 0
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
		c := n.dial(t, count)
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
	b, err := n.dial(t, wsstream.WithJSON(), count).Subscribe(t.Context(), "t", transport.Options{})
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
	n.begin()
	var publishing sync.WaitGroup
	for p := range publishers {
		tr := n.dial(t, count)
		publishing.Go(func() {
			for i := 0; time.Now().Before(until); i += 5 {
				batch := make([]transport.Message, 5)
				for k := range batch {
					batch[k] = transport.Message{ID: fmt.Sprintf("p%d-%d", p, i+k), Data: make([]byte, 100)}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				k, err := tr.Send(ctx, "t", batch)
				cancel()
				mu.Lock()
				sent += len(batch)
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
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	publishing.Wait()
	n.end()
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
		t.Log(n.tell())
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
	assert.Len(t, accepted, sent)
	assert.Greater(t, links.Load(), int64(12))
	t.Logf("%d links, %d accepted, %d unknown, %d repetitions in the group, %d in the broadcast, drained after %v",
		links.Load(), len(accepted), len(unknown), again, stored, time.Since(begin).Round(time.Millisecond))
	return stored
}
