package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long anything here may take that should take no time.
const patience = 20 * time.Second

// find returns the path of a program. Without it the test fails, and says what
// installs it: a peer that is skipped is one that nobody tests.
func find(t testing.TB, program, install string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} { // Debian's servers are not on a user's PATH
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, program))
		}
	}
	require.NoErrorf(t, err, "%s is missing; make setup installs it, and so does\n\t%s", program, install)
	return path
}

// node is a server of a transport, on a port of its own.
type node struct {
	h    *wsstream.Handler
	srv  *http.Server
	addr string
	done chan struct{}
}

// serve starts a node, as docs/websocket.md says one is.
func serve(t testing.TB, tr transport.Transport, opts ...wsstream.HandlerOption) *node {
	t.Helper()
	h := wsstream.NewHandler(tr, opts...)
	require.NoError(t, h.Err())
	mux := http.NewServeMux()
	mux.Handle("/echo", h)
	mux.Handle("/events", h.Events())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &node{
		h: h, addr: l.Addr().String(), done: make(chan struct{}),
		srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10},
	}
	go func() {
		defer close(n.done)
		n.srv.Serve(l)
	}()
	t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	n.h.Close()
	n.srv.Close()
	<-n.done
}

// memory returns a transport in memory.
func memory(t testing.TB) *memstream.Transport {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	return mem
}

// keep returns what a topic keeps.
func keep(t testing.TB, mem *memstream.Transport, topic string) []transport.Message {
	t.Helper()
	s, err := mem.Subscribe(t.Context(), topic, transport.Options{Start: transport.Start{From: transport.Oldest}})
	require.NoError(t, err)
	defer s.Close()
	var msgs []transport.Message
	dst := make([]transport.Message, 256)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		n, err := s.Receive(ctx, dst)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return msgs
		}
		require.NoError(t, err)
		msgs = append(msgs, dst[:n]...)
	}
}

// requireSettled fails if a group has a message of a topic left to take.
func requireSettled(t testing.TB, mem *memstream.Transport, topic, group string) {
	t.Helper()
	s, err := mem.Subscribe(t.Context(), topic, transport.Options{Group: group})
	require.NoError(t, err)
	defer s.Close()
	dst := make([]transport.Message, 8)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	n, err := s.Receive(ctx, dst)
	require.ErrorIs(t, err, context.DeadlineExceeded, "of group %s there is something left in %s: %v", group, topic, dst[:n])
}

func ids(msgs []transport.Message) []string {
	ids := make([]string, len(msgs))
	for i := range msgs {
		ids[i] = msgs[i].ID
	}
	return ids
}

func numbered(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return ids
}

func send(t testing.TB, tr transport.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := tr.Send(t.Context(), topic, []transport.Message{{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte("data of " + id)}})
		require.NoError(t, err)
	}
}

// guests lets clients in by their tokens. A guest may do anything with topics
// whose names begin with "open.".
type guests struct {
	mu   sync.Mutex
	seen []string // what clients sent along, as "token Authorization"
}

// briefly is how long the token "brief" is good.
const briefly = time.Second

func (g *guests) authorize(_ context.Context, r *http.Request, token string) (*wsstream.Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = append(g.seen, token+" "+r.Header.Get("Authorization"))
	open := func(topic string) bool { return strings.HasPrefix(topic, "open.") }
	grant := &wsstream.Grant{
		Subject:   "guest",
		Subscribe: func(topic, _ string) bool { return open(topic) },
		Publish:   open,
	}
	switch token {
	case "":
		return nil, wsstream.ErrNoToken
	case "guest":
	case "brief":
		grant.Expires = time.Now().Add(briefly)
	case "other":
		grant.Subject = "other"
	default:
		return nil, errors.New("nobody knows this token")
	}
	return grant, nil
}

// report is a line that a peer wrote: what it did, or what it wants done.
type report struct {
	Do   string   // "drain", or empty
	Form string   // of the protocol
	Did  []string // the steps that the peer took and found right
	Sent []sent   // what it published in "open.<form>", in order
}

type sent struct {
	ID, Key, Type, Time string
	Header              map[string]string
	Data                []byte // in base64, as JSON has it
}

// run runs a peer until it ends, and returns what it reported. It calls do when
// the peer wants something done.
func run(t testing.TB, do func(what string), program string, args ...string) []report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var reports []report
	var bad error
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			bad = fmt.Errorf("%q is no report: %w", lines.Bytes(), err)
			continue
		}
		if r.Do != "" {
			do(r.Do)
			continue
		}
		reports = append(reports, r)
	}
	err = cmd.Wait()
	require.NoError(t, err, "%s\n%s", filepath.Base(program), stderr.String())
	require.NoError(t, bad)
	require.NoError(t, lines.Err())
	return reports
}

// requireKept checks that a topic has what a peer says it published there, each
// once, with all that came with it.
func requireKept(t testing.TB, mem *memstream.Transport, topic string, want []sent) {
	t.Helper()
	msgs := keep(t, mem, topic)
	require.Len(t, msgs, len(want))
	for i := range want {
		w, m := &want[i], &msgs[i]
		require.Equal(t, w.ID, m.ID)
		at, err := time.Parse(time.RFC3339Nano, w.Time)
		require.NoError(t, err)
		require.True(t, at.Equal(m.Time), "%s: got %v, want %v", m.ID, m.Time, at)
		require.Equal(t, []any{w.Key, w.Type, string(w.Data)}, []any{m.Key, m.Type, string(m.Data)}, m.ID)
		require.Equal(t, len(w.Header), len(m.Header), m.ID)
		for k, v := range w.Header {
			require.Equal(t, v, m.Header[k], m.ID)
		}
	}
}

// A client in Python, over a library that knows nothing of echo, does all that
// docs/websocket-protocol.md says a client may do, in both forms.
func TestPythonWebsockets(t *testing.T) {
	t.Parallel()
	python := python(t)
	mem := memory(t)
	g := &guests{}
	n := serve(t, mem, wsstream.WithAuthorizer(g.authorize), wsstream.WithHeartbeat(500*time.Millisecond, 1500*time.Millisecond), wsstream.WithHold(2*time.Second), wsstream.WithMaxMessage(1<<20))
	reports := run(t, func(what string) {
		assert.Equal(t, "drain", what)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		assert.NoError(t, n.h.Drain(ctx, 50*time.Millisecond))
	}, python, "testdata/peer.py", "ws://"+n.addr+"/echo")
	require.Len(t, reports, 2)
	for i, form := range []string{"json", "bin"} {
		r := reports[i]
		require.Equal(t, form, r.Form)
		require.ElementsMatch(t, []string{
			"hello", "tokens", "publish and broadcast", "starts", "bytes of credit", "group", "resume by position", "publish again", "resume a session",
			"lease", "give back the rest", "liveness", "errors", "close codes",
		}, r.Did)
		require.Len(t, r.Sent, 1000)
		requireKept(t, mem, "open."+form, r.Sent)
		requireSettled(t, mem, "open.jobs."+form, "g")
		requireSettled(t, mem, "open.session."+form, "g")
		require.Equal(t, numbered("m", 600), ids(keep(t, mem, "open.resume."+form)))
		require.Equal(t, numbered("m", 50), ids(keep(t, mem, "open.again."+form)))
		require.Empty(t, keep(t, mem, "secret"))
	}
	require.Contains(t, g.seen, "guest ")
	stats := n.h.Stats()
	require.GreaterOrEqual(t, stats.Duplicates, uint64(6), "what was sent again, though it was answered")
	require.Zero(t, stats.Lost)
}

// python returns a Python that has the package websockets: that of Debian does,
// even where another one comes first on the PATH.
func python(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), p, "-c", "import websockets").Run() == nil {
			return p
		}
	}
	t.Fatal("no Python has the package websockets; make setup installs it, and so does\n\tsudo apt-get install -y python3-websockets")
	return ""
}

// The package ws, as a client that says what it wants: how it cuts and encodes
// its messages makes no difference, and what it offers is not taken.
func TestNodeWS(t *testing.T) {
	t.Parallel()
	nodejs := find(t, "node", "sudo apt-get install -y nodejs")
	install(t, "../../clients/js", "ws")
	mem := memory(t)
	g := &guests{}
	n := serve(t, mem, wsstream.WithAuthorizer(g.authorize), wsstream.WithMaxMessage(64<<10))
	reports := run(t, func(what string) { assert.Fail(t, "nothing is to be done", what) }, nodejs, "testdata/peer.mjs", "ws://"+n.addr+"/echo")
	require.Len(t, reports, 2)
	for i, form := range []string{"json", "bin"} {
		r := reports[i]
		require.Equal(t, form, r.Form)
		require.Equal(t, []string{
			"no compression", "publish and broadcast", "fragments", "a group", "as large as may be", "too large",
			"control frames", "of the wrong kind",
		}, r.Did)
		require.NotEmpty(t, r.Sent)
		requireKept(t, mem, "open."+form, r.Sent)
		requireSettled(t, mem, "open."+form, "g")
	}
	require.Contains(t, g.seen, "guest Bearer guest")
	require.Eventually(t, func() bool { return n.h.Stats().Links == 0 }, patience, 10*time.Millisecond)
}

// install installs the packages of dir, as make test does, if one is missing.
func install(t testing.TB, dir, pkg string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "node_modules", pkg)); err == nil {
		return
	}
	npm := find(t, "npm", "sudo apt-get install -y npm")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoErrorf(t, err, "the package %s is missing; this installs it:\n\tcd clients/js && npm ci\n%s", pkg, out)
}
