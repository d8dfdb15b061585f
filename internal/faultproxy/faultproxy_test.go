package faultproxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo/internal/faultproxy"
	"github.com/echobus/echo/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoing returns a proxy of a server that sends every line back.
func echoing(t *testing.T) *faultproxy.Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := io.WriteString(conn, line); err != nil {
						return
					}
				}
			})
		}
	})
	p := proxy(t, l.Addr().String())
	t.Cleanup(func() {
		p.Close()
		l.Close()
		running.Wait()
	})
	return p
}

func proxy(t *testing.T, target string) *faultproxy.Proxy {
	p, err := faultproxy.New(target)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

type client struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, p *faultproxy.Proxy) client {
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return client{t, conn, bufio.NewReader(conn)}
}

func (c client) send(s string) {
	c.t.Helper()
	_, err := io.WriteString(c, s)
	require.NoError(c.t, err)
}

// receive wants to read s within the time.
func (c client) receive(s string, within time.Duration) {
	c.t.Helper()
	b := make([]byte, len(s))
	c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c.in, b)
	require.NoError(c.t, err)
	require.Equal(c.t, s, string(b))
}

// nothing wants to read nothing for the time.
func (c client) nothing(d time.Duration) {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	_, err := c.in.ReadByte()
	require.ErrorIs(c.t, err, os.ErrDeadlineExceeded)
}

func (c client) isReset() {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := c.in.ReadByte()
	require.ErrorIs(c.t, err, syscall.ECONNRESET)
}

// works wants a line to come back.
func (c client) works() {
	c.t.Helper()
	c.send("hello\n")
	c.receive("hello\n", 5*time.Second)
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	require.Zero(t, p.Conns())
	one, two := dial(t, p), dial(t, p)
	one.works()
	two.works()
	require.Equal(t, 2, p.Conns())
	require.Equal(t, 2, p.Accepted())
	require.Equal(t, map[string]int{"HELLO": 2}, p.Commands())

	one.send("last\n")
	require.NoError(t, one.Conn.(*net.TCPConn).CloseWrite())
	one.receive("last\n", 5*time.Second)
	_, err := one.in.ReadByte()
	require.Equal(t, io.EOF, err)
	require.Eventually(t, func() bool { return p.Conns() == 1 }, 5*time.Second, time.Millisecond)

	require.NoError(t, p.Close())
	two.isReset()
	require.NoError(t, p.Close())
	_, err = net.Dial("tcp", p.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestUnreachableTargetResets(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l.Close()
	conn, err := net.Dial("tcp", proxy(t, l.Addr().String()).Addr())
	if err == nil { // the reset came later
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestCutResetsPresentConnections(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	old := dial(t, p)
	old.works()
	p.Cut()
	require.Zero(t, p.Conns())
	old.isReset()
	dial(t, p).works()
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	old := dial(t, p)
	old.works()
	p.Refuse(true)
	old.isReset()
	c := dial(t, p)
	_, err := c.in.ReadByte()
	require.Equal(t, io.EOF, err)
	require.Equal(t, 2, p.Accepted())
	require.Zero(t, p.Conns())
	p.Refuse(false)
	dial(t, p).works()
}

func TestBlackholeDeliversLater(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	c := dial(t, p)
	c.works()
	p.Blackhole(true)
	c.send("late\n")
	fresh := dial(t, p)
	fresh.send("late\n")
	c.nothing(50 * time.Millisecond)
	require.Equal(t, map[string]int{"HELLO": 1}, p.Commands())
	require.Equal(t, 2, p.Conns())
	p.Blackhole(false)
	c.receive("late\n", 5*time.Second)
	fresh.receive("late\n", 5*time.Second)

	p.Blackhole(true)
	require.NoError(t, fresh.Close())
	time.Sleep(20 * time.Millisecond)
	require.Equal(t, 2, p.Conns(), "that a side is gone is not told")
	p.Blackhole(false)
	require.Eventually(t, func() bool { return p.Conns() == 1 }, 5*time.Second, time.Millisecond)

	p.Blackhole(true)
	p.Cut()
	c.isReset()
}

func TestBlackholeRepliesLetsRequestsPass(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	c := dial(t, p)
	c.works()
	p.BlackholeReplies(true)
	c.send("late\n")
	require.Eventually(t, func() bool { return p.Commands()["LATE"] == 1 }, 5*time.Second, time.Millisecond)
	c.nothing(50 * time.Millisecond)
	p.BlackholeReplies(false)
	c.receive("late\n", 5*time.Second)
}

func TestDelay(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	c := dial(t, p)
	p.Delay(50*time.Millisecond, 10*time.Millisecond)
	begin := time.Now()
	c.works()
	require.GreaterOrEqual(t, time.Since(begin), 100*time.Millisecond)

	p.Delay(time.Hour, 0)
	c.send("b\n")
	c.nothing(20 * time.Millisecond)
	p.Delay(0, 0)
	c.receive("b\n", 5*time.Second)
}

func TestByteByByte(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	p.Chunk(1)
	c := dial(t, p)
	text := strings.Repeat("hello\n", 1000)
	go c.Write([]byte(text))
	c.receive(text, 5*time.Second)
	require.Equal(t, map[string]int{"HELLO": 1000}, p.Commands())
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	p.Bandwidth(10_000)
	c := dial(t, p)
	text := strings.Repeat("123456789\n", 300)
	begin := time.Now()
	c.send(text)
	c.receive(text, 5*time.Second)
	require.GreaterOrEqual(t, time.Since(begin), 250*time.Millisecond)

	c.send(strings.Repeat(text, 100)) // half a minute's worth
	p.Bandwidth(0)
	c.receive(strings.Repeat(text, 100), 5*time.Second)
}

func TestStormEndsEveryConnection(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	old := dial(t, p)
	old.works()
	p.Storm(10*time.Millisecond, 50*time.Millisecond, 1)
	old.isReset()
	dial(t, p).isReset()
	p.Storm(time.Hour, time.Hour, 1)
	c := dial(t, p)
	c.works()
	p.Storm(0, 0, 0)
	c.nothing(20 * time.Millisecond)
	c.works()
}

// Commands that the proxy is to know are sent to a real server.

func TestDropReply(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	p := proxy(t, s.Addr())
	o := s.Options()
	o.Addr, o.MaxRetries = p.Addr(), -1
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })

	require.NoError(t, c.Ping(ctx).Err())
	dropped := p.DropReply("xadd")
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	select {
	case <-dropped:
		t.Fatal("a reply to another command was dropped")
	default:
	}
	add := &redis.XAddArgs{Stream: "s", Values: []string{"f", "v"}}
	require.Error(t, c.XAdd(ctx, add).Err())
	<-dropped
	require.Equal(t, int64(1), s.Client().XLen(ctx, "s").Val())
	require.NoError(t, c.XAdd(ctx, add).Err())
	require.Equal(t, int64(2), s.Client().XLen(ctx, "s").Val())
	require.Equal(t, 2, p.Commands()["XADD"])
}

func TestDropReplyOfACommandUnderWay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	p := proxy(t, s.Addr())
	c := dial(t, p)
	c.send("BLPOP list 10\r\n")
	require.Eventually(t, func() bool { return p.Commands()["BLPOP"] == 1 }, 5*time.Second, time.Millisecond)
	dropped := p.DropReply("BLPOP")
	require.NoError(t, s.Client().RPush(ctx, "list", "a").Err())
	<-dropped
	c.isReset()
	require.Zero(t, s.Client().LLen(ctx, "list").Val())
}

func TestDropInAPipeline(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	reply, request := (*faultproxy.Proxy).DropReply, (*faultproxy.Proxy).DropRequest
	for _, test := range []struct {
		name        string
		drop        func(*faultproxy.Proxy, string) <-chan struct{}
		command     string
		chunk       int
		least, most int64 // entries that the server then has
	}{
		{"the reply", reply, "XADD", 0, 1, 2},
		{"the reply, byte by byte", reply, "XADD", 1, 1, 2},
		{"the reply to two words", reply, "xadd  S", 0, 1, 2},
		{"the request", request, "XADD", 0, 0, 0},
		{"the request, byte by byte", request, "XADD", 1, 0, 0},
		{"the request of two words", request, "XADD s", 7, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.NoError(t, s.Client().FlushAll(ctx).Err())
			p := proxy(t, s.Addr())
			p.Chunk(test.chunk)
			dropped := test.drop(p, test.command)
			c := dial(t, p)
			c.send("*1\r\n$4\r\nPING\r\n" + "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8\r\nXADD\r\n\r\n\r\n" +
				strings.Repeat("*5\r\n$4\r\nxadd\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nf\r\n$1\r\nv\r\n", 2))
			<-dropped
			c.receive("+PONG\r\n+OK\r\n", 5*time.Second)
			c.isReset()
			n := s.Client().XLen(ctx, "s").Val()
			require.True(t, test.least <= n && n <= test.most, "%d entries, want %d to %d", n, test.least, test.most)

			again := dial(t, p)
			again.send("*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nf\r\n$1\r\nv\r\n")
			require.NoError(t, again.SetReadDeadline(time.Now().Add(5*time.Second)))
			kind, err := again.in.ReadByte()
			require.NoError(t, err)
			require.Equal(t, byte('$'), kind, "one was dropped, not two")
		})
	}
}

func TestRealClientThroughEverything(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := redistest.Start(t)
	p := proxy(t, s.Addr())
	p.Delay(0, 2*time.Millisecond)
	p.Chunk(5)
	p.Storm(10*time.Millisecond, 100*time.Millisecond, 7)
	o := s.Options()
	o.Addr, o.MaxRetries = p.Addr(), -1
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	var done, failed int
	for begin := time.Now(); time.Since(begin) < time.Second; {
		if c.Incr(ctx, "n").Err() == nil {
			done++
		} else {
			failed++
		}
	}
	n, err := s.Client().Get(ctx, "n").Int()
	require.NoError(t, err)
	t.Logf("%d done, %d failed, %d counted, %d connections", done, failed, n, p.Accepted())
	require.NotZero(t, failed)
	require.True(t, done <= n && n <= done+failed)
}

func TestModesMayChangeAtAnyTime(t *testing.T) {
	t.Parallel()
	p := echoing(t)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for i := range 4 {
		text := fmt.Sprintf("hello %d\n", i)
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					talk(t, p, text)
				}
			}
		})
	}
	modes := []func(on bool){
		p.Blackhole,
		p.BlackholeReplies,
		p.Refuse,
		func(bool) { p.Cut() },
		func(bool) { p.Delay(time.Millisecond, time.Millisecond) },
		func(bool) { p.Chunk(2) },
		func(bool) { p.Storm(0, 5*time.Millisecond, 1) },
		func(bool) { p.Storm(0, 0, 0) },
		func(bool) { p.DropRequest("hello") },
		func(bool) { p.DropReply("hello 1") },
	}
	for i := range 100 {
		mode := modes[i%len(modes)]
		mode(true)
		time.Sleep(2 * time.Millisecond)
		mode(false)
	}
	close(stop)
	running.Wait()
	require.NotEmpty(t, p.Commands()["HELLO"])
}

// talk sends text again and again until the connection fails, and wants the
// same back or nothing.
func talk(t *testing.T, p *faultproxy.Proxy, text string) {
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
	got := make([]byte, len(text))
	for {
		if _, err := io.WriteString(conn, text); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, got); err != nil {
			return
		}
		if string(got) != text {
			t.Errorf("got %q, want %q", got, text)
			return
		}
	}
}
