package wsstream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/wsstream"
)

// event is a server-sent event.
type event struct{ name, id, data string }

// events opens a stream, whose events come on a channel that is closed with it.
func events(t testing.TB, url string, header ...string) (<-chan event, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	c := make(chan event, 1000)
	go func() {
		defer close(c)
		e := event{name: "message"}
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			field, value, _ := strings.Cut(s.Text(), ": ")
			switch field {
			case "":
				if e.data != "" {
					select {
					case c <- e:
					case <-ctx.Done():
						return
					}
				}
				e = event{name: "message", id: e.id}
			case "event":
				e.name = value
			case "id":
				e.id = value
			case "data":
				e.data += value
			}
		}
	}()
	return c, cancel
}

func next(t testing.TB, c <-chan event) event {
	t.Helper()
	select {
	case e, ok := <-c:
		require.True(t, ok, "the stream ended")
		return e
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
		return event{}
	}
}

func TestEvents(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	p := &people{}
	h := wsstream.NewHandler(mem, wsstream.WithAuthorizer(p.authorize), wsstream.WithInsecureQueryToken("token"), wsstream.WithOrigins("https://app.example.org"))
	s := httptest.NewServer(h.Events())
	defer s.Close()
	defer h.Close()
	url := s.URL + "?token=s3cret-alice&topic=public"
	c, cancel := events(t, url)
	require.Equal(t, "open", next(t, c).name)
	send(t, mem, "public", "a", "b", "c")
	var last event
	for _, id := range []string{"a", "b"} {
		last = next(t, c)
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(last.data), &m))
		require.Equal(t, id, m["id"])
		require.Equal(t, last.id, m["pos"])
		require.Equal(t, "data of "+id, m["string"])
	}
	cancel()
	// Where the last one ended, as a browser does.
	c, cancel = events(t, url, "Last-Event-ID", last.id, "Origin", "https://app.example.org")
	require.Equal(t, last.id, named(t, c, "open").id)
	require.Contains(t, next(t, c).data, `"id":"c"`)
	cancel()
	c, _ = events(t, url+"&from=oldest")
	named(t, c, "open")
	for range 3 {
		next(t, c)
	}
	require.Eventually(t, func() bool { return h.Stats().Links == 1 }, 5*time.Second, time.Millisecond)
	// A position that is not kept is a gap.
	c2, _ := events(t, url, "Last-Event-ID", "1-1")
	named(t, c2, "open")
	require.Equal(t, "gap", next(t, c2).name)

	for what, x := range map[string]struct {
		query  string
		header []string
		status int
	}{
		"no topic":        {"token=s3cret-alice", nil, 400},
		"a bad position":  {"token=s3cret-alice&topic=public&from=pos&pos=x", nil, 400},
		"a bad start":     {"token=s3cret-alice&topic=public&from=x", nil, 400},
		"no token":        {"topic=public", nil, 401},
		"a wrong token":   {"topic=public&token=x", nil, 401},
		"no right":        {"token=s3cret-alice&topic=bob.1", nil, 403},
		"another origin":  {"token=s3cret-alice&topic=public", []string{"Origin", "https://evil.example.org"}, 403},
		"a wrong last ID": {"token=s3cret-alice&topic=public", []string{"Last-Event-ID", "x"}, 400},
	} {
		req, err := http.NewRequest("GET", s.URL+"?"+x.query, nil)
		require.NoError(t, err)
		for i := 0; i < len(x.header); i += 2 {
			req.Header.Set(x.header[i], x.header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, x.status, resp.StatusCode, what)
	}
	resp, err := http.Post(url, "text/plain", nil)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 405, resp.StatusCode)

	// Somebody who does not read holds nobody up; Close ends all.
	for i := range 2000 {
		send(t, mem, "public", fmt.Sprint("x", i))
	}
	for range 2000 {
		next(t, c)
	}
	require.NoError(t, h.Close())
	require.Contains(t, named(t, c, "end").data, `"code":504`)
	_, ok := <-c
	require.False(t, ok)
}

// named returns the next event, which must be named so.
func named(t testing.TB, c <-chan event, name string) event {
	t.Helper()
	e := next(t, c)
	require.Equal(t, name, e.name)
	return e
}
