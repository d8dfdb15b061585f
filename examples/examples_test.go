package examples_test

import (
	"bufio"
	"context"
	"fmt"
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

	"github.com/echobus/echo/internal/redistest"
)

// built returns the folder with all examples, built once.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "echo-examples")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-race", "-o", dir, "./...").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// run runs an example and returns what it printed.
func run(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	dir, err := built()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// lines that each example prints, in any order.
var prints = map[string][]string{
	"quickstart": {
		"billing  got order o-1 for 12.50", "billing  got order o-3 for 99.90",
		"shipping got order o-2 for 8.00", "screen   got order o-3 for 99.90",
		"closed: 0 messages abandoned, error <nil>",
	},
	"fanin":              {"device-4: 200 readings", "1000 readings in all"},
	"fanout":             {"published 100, archived 100, shown 100, alarms 20"},
	"manytomany":         {"the greeters shared 100 worlds and 100 marcos", "the audit saw 100 worlds and 100 marcos"},
	"workqueue":          {"a worker crashed with 10 jobs in its hands", "200 of 200 jobs done, 11 of them at a second attempt"},
	"cache-invalidation": {"stale reads before any write: 0", "stale reads after the writes, once the invalidations arrived: 0"},
	"telemetry":          {telemetryTree},
	"migrate": {
		"1. old: 100 published", "2. tee: 100 on both",
		"3. drainover: 160 from old, 100 from new, 100 that were on both and came once",
		"4. new: 400 of 400 handled, each once and in order: true",
	},
	"batch":  {"996 rows stored, 4 tried twice, 4 set aside"},
	"retry":  {retried},
	"delay":  {delayed},
	"rpc":    {answered},
	"schema": {upcast},
}

const telemetryTree = `checkout
  send orders, stored
    process orders, attempt 1, error: card declined
    process orders, attempt 2
      send invoices, stored
        process invoices, attempt 1`

const retried = `bob-1 is charged at attempt 1
ann-1 is charged at attempt 2
ann-2 is charged at attempt 1
dan-1 is charged at attempt 2
cid-1 is dead in billing, rejected at attempt 1: nothing to pay
eve-1 is dead in billing, attempts at attempt 3: card declined
1 is sent home, 1 is kept
eve-1 is charged at attempt 1
5 handled, 6 failures, 2 dead letters`

const delayed = `due after 0s: the oven is on
due after 0s: pay invoice 7
due after 300ms: turn the oven down
due after 600ms: the cake is ready
due after 900ms: fetch the guests
5 handled, 1 expired`

const answered = `a pear is 40, a plum is 15, said ["desk 1" "desk 2"]
code not_found: we have no mango
truffle: too late: true
a melon is 350`

const upcast = `golden/v0.json is {Cents:1990 Currency:EUR}
golden/v1.json is {Cents:1990 Currency:EUR}
golden/v2.json is {Cents:1990 Currency:EUR}
version 0, now {Cents:250 Currency:EUR}
version 1, now {Cents:375 Currency:EUR}
version 2, now {Cents:500 Currency:CHF}
dead, upcast: "a lot": upcast from version 0: that is no price`

func TestExamples(t *testing.T) {
	for name, want := range prints {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, "", name)
			require.NoError(t, err, out)
			for _, line := range want {
				assert.Contains(t, out, line+"\n")
			}
		})
	}
}

func TestEveryExampleIsTested(t *testing.T) {
	mains, err := filepath.Glob("*/main.go")
	require.NoError(t, err)
	for _, path := range mains {
		name := filepath.Dir(path)
		ownTest := name == "logtail" || name == "redis" || name == "orders" || name == "chat" || name == "ticker" || name == "flow-stream" || name == "outbox" || name == "flow-etl" // modules of their own
		assert.True(t, ownTest || prints[name] != nil, "example %s has no test", name)
	}
}

// A flow that is killed fifty times in the middle of its work loses nothing.
func TestFlowStream(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("REDIS_URL", server.URL())
	out, err := run(t, "", "flow-stream", "-kills", "50")
	require.NoError(t, err, out)
	assert.Contains(t, out, "from flow.orders | (order, look up(customer, price)) | enrich | to flow.invoices | batch 50 in 50ms | to flow.shipments\n")
	assert.Contains(t, out, "killed 50 times: 3000 of 3000 orders have an invoice, 3000 were shipped, none is lost\n")
	t.Log(out)
}

// The quickstart over Redis: in one process, and as two.
func TestRedis(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("REDIS_URL", server.URL())
	want := append([]string{"listening"}, prints["quickstart"]...)
	out, err := run(t, "", "redis")
	require.NoError(t, err, out)
	for _, line := range want {
		assert.Contains(t, out, line+"\n")
	}

	dir, err := built()
	require.NoError(t, err)
	listener := exec.CommandContext(t.Context(), filepath.Join(dir, "redis"), "listen")
	pipe, err := listener.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, listener.Start())
	lines := bufio.NewScanner(pipe)
	require.True(t, lines.Scan())
	require.Equal(t, "listening", lines.Text())
	out, err = run(t, "", "redis", "publish")
	require.NoError(t, err, out)
	var heard strings.Builder
	for lines.Scan() {
		heard.WriteString(lines.Text() + "\n")
	}
	require.NoError(t, listener.Wait())
	for _, line := range prints["quickstart"] {
		assert.Contains(t, heard.String(), line+"\n")
	}

	t.Setenv("REDIS_URL", "redis://user:secret@127.0.0.1:1/0")
	out, err = run(t, "", "redis")
	require.Error(t, err)
	assert.Contains(t, out, "connection refused")
	assert.NotContains(t, out, "secret")
}

// The examples that take their transport by URL say the same over Redis.
func TestOverRedisByURL(t *testing.T) {
	t.Setenv("ECHO_URL", redistest.Start(t).URL())
	for _, name := range []string{"retry", "delay", "rpc", "schema"} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, "", name)
			require.NoError(t, err, out)
			assert.Equal(t, prints[name][0]+"\n", out)
		})
	}
}

// The difference between the two quickstarts is what it says.
func TestRedisIsTheQuickstart(t *testing.T) {
	lines := func(name string) map[string]bool {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		m := map[string]bool{}
		for line := range strings.Lines(string(data)) {
			m[strings.TrimSpace(line)] = true
		}
		return m
	}
	there := lines("redis/main.go")
	for line := range lines("quickstart/main.go") {
		if strings.HasPrefix(line, "//") || line == "bus := echo.New() // in memory" {
			continue
		}
		assert.True(t, there[line], "the quickstart's line %q is not in redis", line)
	}
	assert.True(t, there["bus := echo.New(echo.WithTransport(server))"])
}

func TestOrders(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("REDIS_URL", server.URL())
	out, err := run(t, "", "orders", "-for", "5s", "-rate", "100")
	require.NoError(t, err, out)
	assert.Contains(t, out, "every one billed and shipped")
	assert.Contains(t, out, "shipping-1 is killed")
	assert.Regexp(t, `\d s  billing +\d+ .*shipping +\d+ #`, out, "a graph")
}

func TestQuickstartIsShort(t *testing.T) {
	data, err := os.ReadFile("quickstart/main.go")
	require.NoError(t, err)
	assert.Less(t, strings.Count(string(data), "\n"), 60)
}

func TestLogtail(t *testing.T) {
	var dpkg, access strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&dpkg, "2026-01-02 03:04:05 status %s pkg%d:amd64 1.0\n", []string{"installed", "unpacked"}[i%2], i)
		fmt.Fprintf(&access, "127.0.0.1 - - [10/Oct/2026:13:55:36 -0700] \"GET /%d HTTP/1.1\" %d 2326\r\n", i, 200+i%4*100)
	}
	for name, c := range map[string]struct {
		log  string
		want []string
	}{
		"dpkg's log":            {dpkg.String(), []string{"   10000 status installed", "   10000 status unpacked"}},
		"a web server's log":    {access.String(), []string{"    5000 GET 2xx", "    5000 GET 5xx"}},
		"an empty log":          {"", nil},
		"no newline at the end": {"a\nb", []string{"the last line has no newline"}},
		"a line of 3 MiB":       {strings.Repeat("x", 3<<20) + "\nshort\n", []string{"1 lines were longer"}},
		"not UTF-8":             {"\xff\xfe\n\n\x00\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			newlines := strings.Count(c.log, "\n")
			all := newlines
			if c.log != "" && !strings.HasSuffix(c.log, "\n") {
				all++
			}
			path := filepath.Join(t.TempDir(), "log")
			require.NoError(t, os.WriteFile(path, []byte(c.log), 0o600))
			for _, run := range []func() (string, error){
				func() (string, error) { return run(t, "", "logtail", path) },
				func() (string, error) { return run(t, c.log, "logtail", "-workers", "1") },
			} {
				out, err := run()
				require.NoError(t, err, out)
				assert.Contains(t, out, fmt.Sprintf("lines published %d, parsed and seen %d, wc -l %d\n", all, all, newlines))
				for _, want := range c.want {
					assert.Contains(t, out, want)
				}
				assert.NotContains(t, out, "\x1b", "escape sequences where there is no terminal")
			}
		})
	}
	for path, want := range map[string]string{"/no/such/log": "no such file", t.TempDir(): "is a directory"} {
		out, err := run(t, "", "logtail", path)
		assert.Error(t, err)
		assert.Contains(t, out, want)
	}
}

// start starts an example that goes on until the test ends, and returns its
// first lines.
func start(t *testing.T, n int, name string, args ...string) []string {
	t.Helper()
	dir, err := built()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, name), args...)
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Wait() }) // killed by the context
	var lines []string
	for s := bufio.NewScanner(pipe); len(lines) < n && s.Scan(); {
		lines = append(lines, s.Text())
	}
	require.Len(t, lines, n)
	return lines
}

// What is said in one place is heard in another, also by who comes later and
// at another node.
func TestChat(t *testing.T) {
	server := redistest.Start(t)
	for what, c := range map[string]struct {
		nodes int
		args  []string
	}{
		"in memory":  {1, []string{"-addr", "127.0.0.1:0"}},
		"over Redis": {2, []string{"-addr", "127.0.0.1:0", "-redis", server.URL()}},
	} {
		t.Run(what, func(t *testing.T) {
			var links []string
			for _, line := range start(t, c.nodes, "chat", c.args...) {
				links = append(links, strings.Replace(line, "talk at http", "ws", 1)+"/echo")
			}
			out, err := run(t, "hello\n", "chat", "-join", links[0], "-name", "alice")
			require.NoError(t, err, out)
			require.Contains(t, out, "alice: hello")
			out, err = run(t, "hi, alice\n", "chat", "-join", links[len(links)-1], "-name", "bob")
			require.NoError(t, err, out)
			require.Contains(t, out, "alice: hello")
			require.Contains(t, out, "bob: hi, alice")

			resp, err := http.Get(strings.TrimSuffix(strings.Replace(links[0], "ws", "http", 1), "/echo") + "/echo.js")
			require.NoError(t, err)
			defer resp.Body.Close()
			require.Equal(t, 200, resp.StatusCode)
			require.Contains(t, resp.Header.Get("Content-Type"), "javascript")
		})
	}
}

func TestTicker(t *testing.T) {
	server := redistest.Start(t)
	for _, args := range [][]string{nil, {"-redis", server.URL()}} {
		out, err := run(t, "", "ticker", append(args, "-addr", "127.0.0.1:0", "-links", "50", "-rate", "20", "-for", "3500ms")...)
		require.NoError(t, err, out)
		assert.Contains(t, out, "50 links are open\n")
		assert.Regexp(t, `\d{3,} deliveries  p50`, out)
	}
}
