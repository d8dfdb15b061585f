//go:build unix

package interop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// proxy is a kind of proxy.
type proxy struct {
	program, install string
	// config completes what docs/websocket.md says with what it leaves to the
	// reader: a port, two nodes, and files in dir.
	config func(documented, dir, addr string, nodes []*node) string
	// args of the program, which stays in the foreground.
	args   func(dir string) []string
	reload syscall.Signal
}

var nginx = proxy{
	program: "nginx", install: "sudo apt-get install -y nginx",
	config: func(documented, dir, addr string, nodes []*node) string {
		var user string
		if os.Geteuid() == 0 { // or its workers may not enter dir
			user = "user root;"
		}
		return fmt.Sprintf(`
%s
daemon off;
worker_processes 1;
worker_shutdown_timeout 100ms; # of links, after a reload; the default is for ever
pid %[2]s/pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	upstream backend {
		server %s;
		server %s;
	}
	server {
		listen %s;
%s
	}
}
`, user, dir, nodes[0].addr, nodes[1].addr, addr, documented)
	},
	args: func(dir string) []string {
		return []string{"-p", dir, "-e", "stderr", "-c", dir + "/conf"}
	},
	reload: syscall.SIGHUP,
}

var haproxy = proxy{
	program: "haproxy", install: "sudo apt-get install -y haproxy",
	config: func(documented, dir, addr string, nodes []*node) string {
		return fmt.Sprintf(`
global
    hard-stop-after 100ms # of links, after a reload; the default is for ever
%s
frontend in
    bind %s
    default_backend nodes
backend nodes
    server a %s
    server b %s
`, documented, addr, nodes[0].addr, nodes[1].addr)
	},
	args: func(dir string) []string {
		return []string{"-W", "-p", dir + "/pid", "-f", dir + "/conf"}
	},
	reload: syscall.SIGUSR2,
}

// documented returns the configuration below a heading of docs/websocket.md.
func documented(t testing.TB, heading string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/websocket.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(page), "\n### "+heading+"\n")
	require.True(t, ok, "docs/websocket.md has no heading %s", heading)
	section, _, _ = strings.Cut(section, "\n#")
	var b strings.Builder
	for line := range strings.Lines(section) {
		line, code := strings.CutPrefix(line, "    ")
		if !code && strings.TrimSpace(line) != "" {
			if b.Len() > 0 {
				break
			}
			continue
		}
		b.WriteString(line)
	}
	require.Contains(t, b.String(), "75s", "the configuration is not where it was")
	return b.String()
}

// process is a program that was started, with what it starts: a group of processes.
type process struct {
	pid    int
	done   chan struct{} // closed when the first of them has ended
	killed bool
	log    string
}

// start starts a program, which ends with the test. When the test's own process
// is killed, a shell sees the end of its input and kills the program.
func start(t testing.TB, dir, program string, args ...string) *process {
	t.Helper()
	p := &process{done: make(chan struct{}), log: dir + "/log"}
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start())
	p.pid = cmd.Process.Pid
	go func() {
		defer close(p.done)
		cmd.Wait()
	}()
	t.Cleanup(func() { p.end(t) })
	guard := exec.Command("sh", "-c", `read -r _; kill -s KILL -- "-$0"`, strconv.Itoa(p.pid))
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // or an interrupt ends it first
	_, err = guard.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, guard.Start())
	t.Cleanup(func() {
		guard.Process.Kill()
		guard.Wait()
	})
	return p
}

// signal sends a signal to all of a process.
func (p *process) signal(s syscall.Signal) error { return syscall.Kill(-p.pid, s) }

// kill ends a process without a warning.
func (p *process) kill() {
	p.killed = true
	p.signal(syscall.SIGKILL)
	<-p.done
}

// end ends a process in order, and sees to it that nothing of it is left.
func (p *process) end(t testing.TB) {
	if p.killed {
		return
	}
	syscall.Kill(p.pid, syscall.SIGTERM)
	for end := time.Now().Add(patience); p.signal(0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("something is left of a program that was told to end:\n%s", p.said())
			p.signal(syscall.SIGKILL)
			break
		}
	}
	<-p.done
}

// said is what a process printed.
func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// site is a proxy before two nodes that serve the same topics.
type site struct {
	t     testing.TB
	kind  proxy
	mem   *memstream.Transport
	nodes []*node
	dir   string
	addr  string
	proc  *process
}

// build starts a site. Each edit replaces one text of the documented configuration
// by another.
func (p proxy) build(t testing.TB, opts []wsstream.HandlerOption, edits ...[2]string) *site {
	t.Helper()
	s := &site{t: t, kind: p, mem: memory(t), dir: t.TempDir()}
	opts = append([]wsstream.HandlerOption{
		wsstream.WithAnonymous(wsstream.Everything("")),
		wsstream.WithHold(500 * time.Millisecond), // what a node holds of groups for a client that is now at the other one
	}, opts...)
	for range 2 {
		s.nodes = append(s.nodes, serve(t, s.mem, opts...))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.addr = l.Addr().String()
	require.NoError(t, l.Close())
	conf := documented(t, p.program)
	for _, e := range edits {
		require.Contains(t, conf, e[0])
		conf = strings.ReplaceAll(conf, e[0], e[1])
	}
	conf = p.config(conf, s.dir, s.addr, s.nodes)
	require.NoError(t, os.WriteFile(s.dir+"/conf", []byte(conf), 0o600))
	s.start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", p.program, s.proc.said())
		}
	})
	return s
}

// start starts the proxy, and waits until it accepts.
func (s *site) start() {
	s.t.Helper()
	s.proc = start(s.t, s.dir, find(s.t, s.kind.program, s.kind.install), s.kind.args(s.dir)...)
	for {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-s.proc.done:
			require.FailNow(s.t, s.kind.program+" does not run", s.proc.said())
		case <-s.t.Context().Done():
			require.NoError(s.t, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// reload makes the proxy read its configuration again.
func (s *site) reload() {
	s.t.Helper()
	b, err := os.ReadFile(s.dir + "/pid")
	require.NoError(s.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(s.t, err)
	require.NoError(s.t, syscall.Kill(pid, s.kind.reload))
}

// link is a client that went through the proxy.
type link struct {
	*wsstream.Transport
	mu   sync.Mutex
	ups  int
	errs []error // why it was down
}

func (s *site) dial(opts ...wsstream.DialOption) *link {
	s.t.Helper()
	l := &link{}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	tr, err := wsstream.Dial(ctx, "ws://"+s.addr+"/echo", append([]wsstream.DialOption{
		wsstream.WithHTTPClient(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}),
		wsstream.WithBackoff(20*time.Millisecond, 200*time.Millisecond),
		wsstream.WithState(func(st wsstream.State) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if st.Up {
				l.ups++
			} else {
				l.errs = append(l.errs, st.Err)
			}
		}),
	}, opts...)...)
	require.NoError(s.t, err)
	l.Transport = tr
	s.t.Cleanup(func() { tr.Close() })
	return l
}

// was is how often the link has been up, and why it was down.
func (l *link) was() (ups int, errs []error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ups, append([]error(nil), l.errs...)
}

// traffic goes through a site for as long as a test wants, and everything that
// was published arrives.
type traffic struct {
	s      *site
	links  []*link
	stop   chan struct{}
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu        sync.Mutex // guards the rest
	published []string
	broadcast []string
	group     map[string]bool // what came, and whether it was acknowledged
	errs      error
}

// traffic publishes to a topic through one client, and subscribes through
// others: two broadcasts and two members of a group.
func (s *site) traffic(topic string) *traffic {
	s.t.Helper()
	f := &traffic{s: s, stop: make(chan struct{}), group: make(map[string]bool)}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	s.t.Cleanup(func() {
		cancel()
		f.work.Wait()
	})
	to := func(group string, opts ...wsstream.DialOption) {
		l := s.dial(opts...)
		f.links = append(f.links, l)
		sub, err := l.Subscribe(ctx, topic, transport.Options{Group: group})
		require.NoError(s.t, err)
		f.work.Go(func() {
			dst := make([]transport.Message, 16)
			for {
				n, err := sub.Receive(ctx, dst)
				if err == nil {
					f.took(ctx, sub, group, dst[:n])
					continue
				}
				if ctx.Err() == nil {
					f.fail(fmt.Errorf("receiving: %w", err))
				}
				return
			}
		})
	}
	to("")
	to("g")
	to("g", wsstream.WithJSON())
	out := s.dial()
	f.links = append(f.links, out)
	f.work.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-f.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			id := fmt.Sprint("m", i)
			within, cancel := context.WithTimeout(ctx, patience)
			_, err := out.Send(within, topic, []transport.Message{{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte(id)}})
			cancel()
			if err != nil {
				f.fail(fmt.Errorf("publishing: %w", err))
				return
			}
			f.mu.Lock()
			f.published = append(f.published, id)
			f.mu.Unlock()
		}
	})
	return f
}

func (f *traffic) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = errors.Join(f.errs, err)
}

// took notes messages that came.
func (f *traffic) took(ctx context.Context, sub transport.Subscription, group string, msgs []transport.Message) {
	for i := range msgs {
		if group == "" {
			f.mu.Lock()
			f.broadcast = append(f.broadcast, msgs[i].ID)
			f.mu.Unlock()
			continue
		}
		id := msgs[i].ID
		f.mu.Lock()
		if f.group[id] {
			f.errs = errors.Join(f.errs, fmt.Errorf("%s was acknowledged, and came again", id))
		}
		f.group[id] = false
		f.mu.Unlock()
		err := sub.(transport.Acker).Ack(ctx, []transport.Receipt{msgs[i].Receipt()})
		switch {
		case err == nil:
			f.mu.Lock()
			f.group[id] = true
			f.mu.Unlock()
		case errors.Is(err, transport.ErrLeaseLost), ctx.Err() != nil: // it may come again
		default:
			f.fail(fmt.Errorf("acknowledging: %w", err))
		}
	}
}

// count is how many messages went all the way.
func (f *traffic) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return min(len(f.published), len(f.broadcast), len(f.group))
}

// goesOn waits until messages that are published from now on have arrived.
func (f *traffic) goesOn() {
	f.s.t.Helper()
	f.mu.Lock()
	from := len(f.published)
	f.mu.Unlock()
	require.Eventually(f.s.t, func() bool { return f.count() >= from+20 }, patience, 5*time.Millisecond, "traffic stopped after %d messages", from)
}

// end stops publishing, and checks that all that was published is kept once, and
// came once and in order to who gets everything, and to the group.
func (f *traffic) end(topic string) {
	t := f.s.t
	t.Helper()
	close(f.stop)
	assert.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		n := len(f.published)
		return f.errs != nil || len(f.broadcast) >= n && len(f.group) >= n
	}, patience, 5*time.Millisecond)
	time.Sleep(50 * time.Millisecond) // for what comes twice
	f.cancel()
	f.work.Wait()
	require.NoError(t, f.errs)
	require.Equal(t, f.published, ids(keep(t, f.s.mem, topic)), "each is stored once")
	require.Equal(t, f.published, f.broadcast, "a broadcast loses nothing and gets nothing twice")
	require.Len(t, f.group, len(f.published), "the group loses nothing")
	for _, id := range f.published {
		require.Contains(t, f.group, id)
	}
}

// linksOf returns how many links each node has.
func (s *site) linksOf() [2]int {
	return [2]int{s.nodes[0].h.Stats().Links, s.nodes[1].h.Stats().Links}
}

// behind checks what holds behind a proxy that is configured as docs/websocket.md
// says. Nobody but the proxy knows of the nodes.
func behind(t *testing.T, p proxy) {
	find(t, p.program, p.install) // once, and not in each test below
	t.Run("clients publish and subscribe, and both nodes get them", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, nil)
		f := s.traffic("t")
		require.Eventually(t, func() bool { return s.linksOf() == [2]int{2, 2} }, patience, 5*time.Millisecond)
		f.goesOn()
		f.end("t")
		big := bytes.Repeat([]byte("a lot "), 1<<20/6)
		_, err := f.links[3].Send(t.Context(), "t", []transport.Message{{ID: "big", Type: "text/plain", Data: big}})
		require.NoError(t, err)
		sub, err := f.links[2].Subscribe(t.Context(), "t", transport.Options{Start: transport.Start{From: transport.AfterID, ID: f.published[len(f.published)-1]}})
		require.NoError(t, err)
		m := receive(t, sub)
		require.True(t, bytes.Equal(big, m.Data))
		for _, l := range f.links {
			ups, errs := l.was()
			require.Equal(t, 1, ups)
			require.Empty(t, errs)
			l.Close()
		}
		require.Eventually(t, func() bool { return s.linksOf() == [2]int{} }, patience, 5*time.Millisecond, "the nodes see that their clients left")
	})

	t.Run("pages are let in by their origin", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, []wsstream.HandlerOption{wsstream.WithOrigins("https://app.example.org")})
		_, port, err := net.SplitHostPort(s.addr)
		require.NoError(t, err)
		for _, x := range []struct {
			what, host, origin string
			status             int
		}{
			{"no page", s.addr, "", 101},
			{"a page from here", s.addr, "http://" + s.addr, 101},
			{"a page from here, by name", "echo.example.org:" + port, "http://echo.example.org:" + port, 101},
			{"a page from here, on the default port", "echo.example.org", "http://echo.example.org", 101},
			{"a page from another port", s.addr, "http://127.0.0.1:1", 403},
			{"a page from the default port", s.addr, "http://127.0.0.1", 403},
			{"a page from elsewhere", s.addr, "http://evil.example.org", 403},
			{"a page over TLS, which the proxy might have ended", "echo.example.org", "https://echo.example.org", 403},
			{"a page over TLS whose origin was named", "app.example.org", "https://app.example.org", 101},
		} {
			require.Equal(t, x.status, s.upgrade(x.host, x.origin), x.what)
			want := x.status
			if want == 101 {
				want = 200
			}
			resp := s.get(x.host, x.origin)
			require.Equal(t, want, resp.StatusCode, "%s, events", x.what)
			resp.Body.Close()
		}
	})

	t.Run("events come one by one, at once", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, []wsstream.HandlerOption{wsstream.WithHeartbeat(200*time.Millisecond, patience)})
		resp := s.get(s.addr, "")
		defer resp.Body.Close()
		require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
		lines := bufio.NewScanner(resp.Body)
		id := func() string {
			for lines.Scan() {
				if _, id, ok := strings.Cut(lines.Text(), `"id":"`); ok {
					return id[:strings.IndexByte(id, '"')]
				}
			}
			require.FailNow(t, "the stream ended", "%v", lines.Err())
			return ""
		}
		for lines.Scan() && lines.Text() != "event: open" {
		}
		begin := time.Now()
		for i := range 20 { // the next is published when the one before has come
			send(t, s.mem, "t", fmt.Sprint("m", i))
			require.Equal(t, fmt.Sprint("m", i), id())
		}
		require.Less(t, time.Since(begin), 2*time.Second, "a proxy that waits for more does so for 200 ms")
		resp.Body.Close()
		// haproxy sees it when it has something to write, as a heartbeat.
		require.Eventually(t, func() bool { return s.linksOf() == [2]int{} }, patience, 5*time.Millisecond, "the node sees that the client left")
	})

	t.Run("idle links stay while heartbeats are shorter than the timeout, and go on by themselves if not", func(t *testing.T) {
		t.Parallel()
		const idle = 2 * time.Second
		short := [2]string{"75s", "2s"}
		stay := p.build(t, []wsstream.HandlerOption{wsstream.WithHeartbeat(500*time.Millisecond, patience)}, short)
		fall := p.build(t, []wsstream.HandlerOption{wsstream.WithHeartbeat(time.Minute, time.Minute)}, short)
		subscribe := func(s *site) (links [2]*link, subs [2]transport.Subscription) {
			for i, group := range []string{"", "g"} {
				var err error
				links[i] = s.dial()
				subs[i], err = links[i].Subscribe(t.Context(), "t", transport.Options{Group: group})
				require.NoError(t, err)
			}
			return links, subs
		}
		takes := func(subs [2]transport.Subscription, id string) {
			t.Helper()
			require.Equal(t, id, receive(t, subs[0]).ID)
			m := receive(t, subs[1])
			require.Equal(t, id, m.ID)
			require.NoError(t, subs[1].(transport.Acker).Ack(t.Context(), []transport.Receipt{m.Receipt()}))
		}
		begin := time.Now()
		links, subs := subscribe(stay)
		events := stay.get(stay.addr, "")
		defer events.Body.Close()

		fallen, theirs := subscribe(fall)
		send(t, fall.mem, "t", "before")
		takes(theirs, "before")
		for _, l := range fallen {
			require.Eventually(t, func() bool { _, errs := l.was(); return len(errs) > 0 }, patience, time.Millisecond)
			send(t, fall.mem, "t", "while it is down") // or just up again
			require.Eventually(t, func() bool { ups, _ := l.was(); return ups > 1 }, patience, time.Millisecond)
		}
		require.Greater(t, time.Since(begin), idle)
		send(t, fall.mem, "t", "after")
		takes(theirs, "while it is down")
		takes(theirs, "while it is down")
		takes(theirs, "after")

		time.Sleep(time.Until(begin.Add(idle * 7 / 4)))
		send(t, stay.mem, "t", "m")
		takes(subs, "m")
		for lines := bufio.NewScanner(events.Body); ; {
			require.True(t, lines.Scan(), "the stream of events ended: %v", lines.Err())
			if strings.Contains(lines.Text(), `"id":"m"`) {
				break
			}
		}
		for _, l := range links {
			ups, errs := l.was()
			require.Equal(t, 1, ups)
			require.Empty(t, errs)
		}
	})

	t.Run("a node that leaves takes nothing with it", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, nil)
		f := s.traffic("t")
		f.goesOn()
		require.Equal(t, [2]int{2, 2}, s.linksOf())
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		require.NoError(t, s.nodes[0].h.Drain(ctx, 200*time.Millisecond))
		f.goesOn() // while it refuses
		require.Eventually(t, func() bool { return s.linksOf() == [2]int{0, 4} }, patience, 5*time.Millisecond)
		s.nodes[0].close()
		f.goesOn()
		links := f.links
		begin := time.Now()
		for range 4 { // who comes now need not know
			links = append(links, s.dial())
		}
		require.Less(t, time.Since(begin), 3*time.Second)
		for _, l := range links {
			_, errs := l.was()
			for _, err := range errs {
				require.ErrorContains(t, err, "going away", "nobody is sent to a node that drains, or is not there")
			}
		}
		f.end("t")
	})

	t.Run("links survive a reload of the proxy", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, nil)
		f := s.traffic("t")
		f.goesOn()
		s.reload()
		for _, l := range f.links { // the old process gives its links up soon, as it is told to here
			require.Eventually(t, func() bool { ups, _ := l.was(); return ups > 1 }, patience, 5*time.Millisecond)
		}
		f.goesOn()
		f.end("t")
	})

	t.Run("links survive the death of the proxy", func(t *testing.T) {
		t.Parallel()
		s := p.build(t, nil)
		f := s.traffic("t")
		f.goesOn()
		s.proc.kill()
		for _, l := range f.links {
			require.Eventually(t, func() bool { _, errs := l.was(); return len(errs) > 0 }, patience, 5*time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // of attempts that fail
		s.start()
		f.goesOn()
		f.end("t")
	})
}

func TestBehindNginx(t *testing.T) {
	t.Parallel()
	behind(t, nginx)
}

func TestBehindHAProxy(t *testing.T) {
	t.Parallel()
	behind(t, haproxy)
}

// upgrade asks for a link as a page of an origin would, and returns the status.
func (s *site) upgrade(host, origin string) int {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	require.NoError(s.t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	head := "GET /echo HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: echo.v1+json\r\n"
	if origin != "" {
		head += "Origin: " + origin + "\r\n"
	}
	_, err = io.WriteString(conn, head+"\r\n")
	require.NoError(s.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(s.t, err)
	if resp.StatusCode == 101 {
		require.Equal(s.t, "echo.v1+json", resp.Header.Get("Sec-WebSocket-Protocol"))
	}
	return resp.StatusCode
}

// get asks for the events of topic t.
func (s *site) get(host, origin string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.addr+"/events?topic=t", nil)
	require.NoError(s.t, err)
	req.Host = host
	if origin != "" {
		req.Header.Set("Origin", origin)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(s.t, err)
	return resp
}

// receive receives one message.
func receive(t testing.TB, s transport.Subscription) transport.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dst := make([]transport.Message, 1)
	n, err := s.Receive(ctx, dst)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	return dst[0]
}
