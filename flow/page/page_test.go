package page_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
	"github.com/echobus/echo/flow/page"
)

// flows are one of each kind, with names that a page must not take for markup.
func flows(t *testing.T) (*flow.Flow[[]int, [][]int], *flow.Pipeline) {
	odd := flow.Try("odd", func(i int) (int, error) {
		switch {
		case i == 4:
			return 0, errors.New("four")
		case i%2 == 0:
			return 0, flow.ErrSkip
		}
		return i, nil
	})
	f, err := flow.New("<b>import</b>", flow.Then(
		flow.Each("rows", 0, flow.With(odd, flow.Retry(2, 0, 0))),
		flow.All("write", flow.Tap("sqlite", nothing[[]int]), flow.Tap(`"<script>alert(1)</script>"`, nothing[[]int]))))
	require.NoError(t, err)
	bus := echo.New()
	t.Cleanup(func() { bus.Close(context.Background()) })
	orders, payments := echo.NewTopic[int]("orders"), echo.NewTopic[int]("payments")
	from := func(topic *echo.Topic[int]) flow.Stream[int] {
		c, err := echo.Subscribe(t.Context(), bus, topic, echo.WithGroup("flow"))
		require.NoError(t, err)
		return flow.FromTopic(c)
	}
	pipe, err := flow.Pipe("matching", flow.Via(
		flow.Join("match", from(orders), from(payments), flow.Joining[int, int]{Within: time.Minute}),
		flow.Map("count", func(flow.Joined[int, int]) int { return 1 })))
	require.NoError(t, err)
	return f, pipe
}

func nothing[T any](context.Context, T) error { return nil }

func TestHandler(t *testing.T) {
	f, pipe := flows(t)
	_, err := f.Run(t.Context(), []int{1, 2, 3})
	require.NoError(t, err)
	s := httptest.NewServer(http.StripPrefix("/flows", page.Handler(f, pipe)))
	defer s.Close()
	answer, err := http.Get(s.URL + "/flows/sight.json")
	require.NoError(t, err)
	defer answer.Body.Close()
	var sights []flow.Sight
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&sights))
	assert.Equal(t, []flow.Sight{f.Sight(), pipe.Sight()}, sights)
	assert.Equal(t, "application/json", answer.Header.Get("Content-Type"))
	assert.Contains(t, answer.Header.Get("Content-Security-Policy"), "default-src 'none'")
	for path, status := range map[string]int{"/flows/": 200, "/flows/page.js": 200, "/flows/page.css": 200, "/flows/../page.go": 404, "/flows/nothing": 404} {
		answer, err := http.Get(s.URL + path)
		require.NoError(t, err)
		answer.Body.Close()
		assert.Equal(t, status, answer.StatusCode, path)
	}
	answer, err = http.Post(s.URL+"/flows/sight.json", "", nil)
	require.NoError(t, err)
	answer.Body.Close()
	assert.Equal(t, http.StatusMethodNotAllowed, answer.StatusCode)
	assert.PanicsWithValue(t, "page: flow 2 of 2 is nil", func() { page.Handler(f, nil) })
}

// browser returns what a page in a real browser consists of after a while.
func browser(t *testing.T, url string) string {
	t.Helper()
	chromium := cmp.Or(os.Getenv("CHROMIUM"), "/usr/bin/chromium")
	if _, err := os.Stat(chromium); err != nil {
		t.Fatalf("there is no %s; install it: apt-get update && apt-get install -y chromium (or say in CHROMIUM where it is)", chromium)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=2500", "--dump-dom", url)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	require.NoError(t, err)
	return string(out)
}

func TestPageDrawsWhatHappens(t *testing.T) {
	f, pipe := flows(t)
	handler := page.Handler(f, pipe)
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sight.json" && asked.Add(1) <= 3 { // something happens while the page is open
			f.Run(r.Context(), []int{1, 2, 3})
		}
		if asked.Load() == 3 {
			f.Run(r.Context(), []int{4})
		}
		handler.ServeHTTP(w, r)
	}))
	defer s.Close()
	dom := browser(t, s.URL)
	assert.Greater(t, asked.Load(), int32(3), "it asks again")
	text := regexp.MustCompile(`<[^>]+>`).ReplaceAllString(dom, "\n")
	for _, want := range []string{
		"live", "&lt;b&gt;import&lt;/b&gt;", `"&lt;script&gt;alert(1)&lt;/script&gt;`, "2 attempts", "of 10 done", "3 skipped", "2 failed, 1 retried",
		"matching", "orders", "payments", "match", "count", "write",
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, dom, "<script>alert")
	for _, want := range []string{`class="each`, `class="func failed"`, `data-path="matching/match/orders"`, `class="topic"`} {
		assert.Contains(t, dom, want)
	}
	assert.Len(t, regexp.MustCompile(`<svg `).FindAllString(dom, -1), 2)
	assert.Len(t, regexp.MustCompile(`<path `).FindAllString(dom, -1), 6, "each, its step, two writers; two topics, the join, its step")
}

// A page stays as it was when the program is gone, and says so.
func TestPageWithoutServer(t *testing.T) {
	f, _ := flows(t)
	handler := page.Handler(f)
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sight.json" && asked.Add(1) > 1 {
			http.Error(w, "gone", http.StatusBadGateway)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	defer s.Close()
	dom := browser(t, s.URL)
	assert.Contains(t, dom, "not live: the server said 502")
	assert.Contains(t, dom, "sqlite")
}
