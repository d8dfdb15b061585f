package wsstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// fuse is a connection that breaks after so many bytes, in either direction.
type fuse struct {
	net.Conn
	left *atomic.Int64
}

func (f fuse) take(n int) int {
	if left := f.left.Add(-int64(n)); left < 0 {
		n = max(0, n+int(left))
	}
	return n
}

func (f fuse) blow() error {
	f.Conn.(*net.TCPConn).SetLinger(0)
	f.Close()
	return errors.New("the fuse blew")
}

func (f fuse) Write(b []byte) (int, error) {
	k := f.take(len(b))
	n, err := f.Conn.Write(b[:k])
	if err == nil && k < len(b) {
		err = f.blow()
	}
	return n, err
}

func (f fuse) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if k := f.take(n); k < n {
		return k, f.blow()
	}
	return n, err
}

// fused makes a client's first connections break after bytes[0], bytes[1] …
// bytes, and counts them.
func fused(n *atomic.Int64, bytes ...int64) wsstream.DialOption {
	return wsstream.WithHTTPClient(&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if i := int(n.Add(1)) - 1; err == nil && i < len(bytes) {
				left := new(atomic.Int64)
				left.Store(bytes[i])
				c = fuse{c, left}
			}
			return c, err
		},
	}})
}

// Wherever the link breaks, at whatever byte of whichever frame, the session
// ends as if it had not: nothing is lost, and a broadcast gets nothing twice.
func TestCutAtEveryByte(t *testing.T) {
	step := 7
	if raceEnabled {
		step = 31
	}
	if os.Getenv("ECHO_SOAK") != "" {
		step = 1
	}
	addr, _, _ := serve(t, wsstream.WithHold(300*time.Millisecond))
	backoff := wsstream.WithBackoff(time.Millisecond, 2*time.Millisecond)
	links := int64(0)
	for n := 1; ; n += step {
		var opened atomic.Int64
		session(t, addr, fmt.Sprint("t", n), fused(&opened, int64(n), int64(n)+100), backoff)
		links += opened.Load()
		if opened.Load() == 1 { // it was not cut any more
			require.Greater(t, n, 600)
			t.Logf("a session of %d bytes; %d links", n, links)
			return
		}
	}
}

// session is a short conversation with all that a client does.
func session(t *testing.T, addr, topic string, opts ...wsstream.DialOption) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tr, err := wsstream.Dial(ctx, "ws://"+addr, opts...)
	require.NoError(t, err, topic)
	defer tr.Close()
	all, err := tr.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Oldest}})
	require.NoError(t, err, topic)
	group, err := tr.Subscribe(ctx, topic, transport.Options{Group: "g"})
	require.NoError(t, err, topic)
	var want []string
	for _, batch := range [][]string{{"a"}, {"b", "c", "d"}, {"e"}} {
		msgs := make([]transport.Message, len(batch))
		for i, id := range batch {
			msgs[i] = transport.Message{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte("data of " + id)}
		}
		n, err := tr.Send(ctx, topic, msgs)
		require.NoError(t, err, topic)
		require.Equal(t, len(msgs), n)
		want = append(want, batch...)
	}
	// The group: each is acknowledged, one after having been given back.
	done := map[string]bool{}
	nacked := false
	for len(done) < len(want) {
		dst := make([]transport.Message, 2)
		n, err := group.Receive(ctx, dst)
		require.NoError(t, err, "%s: group after %v", topic, done)
		for i := range dst[:n] {
			m := &dst[i]
			rs := []transport.Receipt{m.Receipt()}
			if m.ID == "c" && !nacked {
				nacked = true
				err = group.(transport.Nacker).Nack(ctx, rs, 0)
			} else if err = group.(transport.Acker).Ack(ctx, rs); err == nil {
				done[m.ID] = true
			}
			if err != nil && !errors.Is(err, transport.ErrLeaseLost) {
				require.NoError(t, err, topic)
			}
		}
	}
	var got []string
	for len(got) < len(want) {
		dst := make([]transport.Message, 10)
		n, err := all.Receive(ctx, dst)
		require.NoError(t, err, "%s: broadcast after %v", topic, got)
		for i := range dst[:n] {
			got = append(got, dst[i].ID)
			require.NoError(t, all.(transport.Acker).Ack(ctx, []transport.Receipt{dst[i].Receipt()}))
		}
	}
	require.Equal(t, want, got, topic)
	// What was acknowledged does not come again.
	short, stop := context.WithTimeout(ctx, 5*time.Millisecond)
	defer stop()
	n, err := group.Receive(short, make([]transport.Message, 1))
	require.ErrorIs(t, err, context.DeadlineExceeded, "%s: %d came again", topic, n)
}

// The slowest of clients are served, or given up, and hold nobody up.
func TestSlowClients(t *testing.T) {
	addr, h, _ := serve(t)
	// A request that does not end is the http.Server's to bound; a hello that
	// does not come is ours.
	c := openRaw(t, addr, "echo.v1+json")
	begin := time.Now()
	code, _ := c.closed()
	require.Zero(t, code)
	require.InDelta(t, 5, time.Since(begin).Seconds(), 1)
	require.Zero(t, h.Stats().Links)
}

func TestMessageThatDoesNotEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes eleven seconds")
	}
	addr, h, _ := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.bytes(fin|opText, 0x80|100, 1, 2, 3, 4)
	begin := time.Now()
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-time.After(200 * time.Millisecond):
				c.Write([]byte{'x'})
			case <-stop:
				return
			}
		}
	}()
	defer close(stop)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	c.closed()
	require.InDelta(t, 10.5, time.Since(begin).Seconds(), 1.5)
	require.Eventually(t, func() bool { return h.Stats().Links == 0 }, time.Second, time.Millisecond)
}
