package wsstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// script is a server that says what a test wants.
type script struct {
	t  testing.TB
	ws *websocket.Conn
}

// scripted starts a server that does play for each link.
func scripted(t testing.TB, play func(s script)) (url string) {
	t.Helper()
	var playing sync.WaitGroup
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo.v1+json"}})
		if err != nil {
			return
		}
		playing.Go(func() {
			defer ws.CloseNow()
			play(script{t, ws})
		})
	}))
	t.Cleanup(func() {
		s.Close()
		playing.Wait()
	})
	return s.URL
}

func (s script) say(frames ...string) {
	s.ws.Write(context.Background(), websocket.MessageText, []byte(strings.Join(frames, "\n")))
}

// hear returns what comes next, "" if nothing will.
func (s script) hear() string {
	_, b, err := s.ws.Read(context.Background())
	if err != nil {
		return ""
	}
	return string(b)
}

// until reads until something with what comes, and returns all of it.
func (s script) until(what string) (all string) {
	for {
		m := s.hear()
		all += m
		if m == "" || strings.Contains(all, what) {
			return all
		}
	}
}

func dial(t testing.TB, url string, opts ...wsstream.DialOption) *wsstream.Transport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := wsstream.Dial(ctx, url, append([]wsstream.DialOption{wsstream.WithBackoff(time.Millisecond, 20*time.Millisecond)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// However much is published at once, it goes in messages that the server takes.
func TestPublishesOfAnySize(t *testing.T) {
	for what, x := range map[string]struct {
		opts       []wsstream.HandlerOption
		form       []wsstream.DialOption
		many, size int
	}{
		"many large":          {nil, nil, 200, 64 << 10},
		"many large in JSON":  {nil, []wsstream.DialOption{wsstream.WithJSON()}, 100, 64 << 10},
		"many small":          {nil, nil, 4000, 10},
		"to a frugal server":  {[]wsstream.HandlerOption{wsstream.WithMaxMessage(64 << 10), wsstream.WithMaxPublish(10)}, nil, 200, 30 << 10},
		"just what it takes":  {[]wsstream.HandlerOption{wsstream.WithMaxMessage(8192)}, nil, 20, 8000},
		"in JSON, just so":    {[]wsstream.HandlerOption{wsstream.WithMaxMessage(8192)}, []wsstream.DialOption{wsstream.WithJSON()}, 20, 5900},
		"in calls, not alone": {[]wsstream.HandlerOption{wsstream.WithMaxMessage(64 << 10)}, nil, 50, 60 << 10},
	} {
		t.Run(what, func(t *testing.T) {
			addr, h, mem := serve(t, x.opts...)
			c := dial(t, "ws://"+addr, x.form...)
			var work sync.WaitGroup
			const each = 2
			for i := range x.many / each {
				work.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					msgs := make([]transport.Message, each)
					for k := range msgs {
						msgs[k] = transport.Message{ID: fmt.Sprintf("%d-%d", i, k), Time: time.Now(), Type: "application/octet-stream", Data: make([]byte, x.size)}
					}
					_, err := c.Send(ctx, "t", msgs)
					assert.NoError(t, err)
				})
			}
			work.Wait()
			require.Equal(t, x.many, mem.Stats("t").Messages)
			require.EqualValues(t, 1, h.Stats().Opened, "the link bore it")
		})
	}
}

// A message that no server takes, or this one does not, is refused before it is
// sent; the others of the call are what the result says.
func TestPublishesThatCannotBe(t *testing.T) {
	addr, h, mem := serve(t, wsstream.WithMaxMessage(4096))
	for form, opts := range map[string][]wsstream.DialOption{"binary": nil, "json": {wsstream.WithJSON()}} {
		c := dial(t, "ws://"+addr, opts...)
		header := map[string]string{}
		for i := range 200 {
			header[fmt.Sprint(i)] = ""
		}
		for what, m := range map[string]transport.Message{
			"too large":               {ID: "x", Data: make([]byte, 5000)},
			"with a long ID":          {ID: strings.Repeat("x", 200)},
			"with many headers":       {ID: "x", Header: header},
			"before the times":        {ID: "x", Time: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)},
			"after the times":         {ID: "x", Time: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)},
			"with much to be escaped": {ID: "x", Key: strings.Repeat("\x01", 4000)},
		} {
			if what == "with much to be escaped" && form == "binary" {
				continue // where nothing is
			}
			before := mem.Stats(form).Messages
			n, err := c.Send(t.Context(), form, []transport.Message{{ID: "a"}, m, {ID: "c"}})
			require.ErrorIs(t, err, transport.ErrNotPublished, what)
			require.Equal(t, 1, n, what)
			require.Equal(t, before+1, mem.Stats(form).Messages, what)
		}
	}
	require.EqualValues(t, 2, h.Stats().Opened)
}

// What a later link holds is not settled by what was delivered on an earlier one.
func TestSettlementsOfAnEarlierSession(t *testing.T) {
	links := 0
	said := make(chan string, 1)
	held := make(chan bool)
	url := scripted(t, func(s script) {
		links++
		s.hear()
		s.say(`{"t":"welcome","session":"x","ping":60000}`)
		s.until(`"t":"sub"`)
		if links == 1 {
			s.say(`{"t":"subok","sid":1,"lease":60000}`)
			s.until(`"flow"`)
			s.say(`{"t":"run","sid":1}`, `{"t":"dlv","n":1,"attempt":1,"pos":"1-1","id":"X"}`)
			<-held
			return
		}
		// The group is open, but the client does not know it yet.
		heard := make(chan string)
		go func() { heard <- s.until(`"bye"`) }()
		time.Sleep(200 * time.Millisecond)
		s.say(`{"t":"subok","sid":1,"lease":60000}`)
		time.Sleep(100 * time.Millisecond)
		s.ws.CloseNow()
		said <- <-heard
	})
	up := make(chan bool, 10)
	c := dial(t, url, wsstream.WithJSON(), wsstream.WithState(func(s wsstream.State) { up <- s.Up }))
	require.True(t, <-up)
	s, err := c.Subscribe(t.Context(), "t", transport.Options{Group: "g"})
	require.NoError(t, err)
	dst := make([]transport.Message, 1)
	_, err = s.Receive(t.Context(), dst)
	require.NoError(t, err)
	held <- true
	require.False(t, <-up)
	require.True(t, <-up)
	go s.Receive(t.Context(), dst[:1:1])
	err = s.(transport.Acker).Ack(t.Context(), []transport.Receipt{dst[0].Receipt()})
	require.ErrorIs(t, err, transport.ErrLeaseLost)
	require.NotContains(t, <-said, `"ack"`)
}

// Dial and Close end, whenever they are called.
func TestCloseWhileConnecting(t *testing.T) {
	addr, _, _ := serve(t)
	for i := range 400 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(300+i*3)*time.Microsecond)
		c, err := wsstream.Dial(ctx, "ws://"+addr)
		if err == nil {
			c.Close()
		}
		cancel()
	}
}

func TestDialNeedsAURL(t *testing.T) {
	for _, url := range []string{"localhost:8080", "ws://%zz", "", "ftp://localhost/", "ws://"} {
		_, err := wsstream.Dial(context.Background(), url+"?token=s3cret")
		require.Error(t, err, url)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

// A client leaves a server that drains at a moment of its own, and is at the
// next one at once.
func TestClientsLeaveWhenAskedTo(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	n := newNodes(t, mem, mem)
	const clients, window = 20, 2 * time.Second
	var draining atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if draining.Load() {
			n.handlers[1].ServeHTTP(w, r)
		} else {
			n.handlers[0].ServeHTTP(w, r)
		}
	}))
	defer s.Close()
	var mu sync.Mutex
	var away time.Duration
	var left []time.Duration
	var begin time.Time
	back := make(chan bool, clients)
	for range clients {
		var down time.Time
		dial(t, s.URL, wsstream.WithState(func(s wsstream.State) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case !s.Up:
				down = time.Now()
				left = append(left, down.Sub(begin))
			case !down.IsZero():
				away += time.Since(down)
				down = time.Time{}
				back <- true
			}
		}))
	}
	mu.Lock()
	begin = time.Now()
	mu.Unlock()
	draining.Store(true)
	require.NoError(t, n.handlers[0].Drain(t.Context(), window))
	require.Less(t, time.Since(begin), window+time.Second)
	for range clients {
		<-back
	}
	mu.Lock()
	defer mu.Unlock()
	require.Less(t, away/clients, 200*time.Millisecond)
	early := 0
	for _, d := range left {
		if d < window/2 {
			early++
		}
	}
	require.Greater(t, early, 1)
	require.Less(t, early, 19)
}

// A token that is good for ever, or hardly at all, is not asked for all the time.
func TestTokensAreNotAskedForAllTheTime(t *testing.T) {
	for _, expires := range []time.Time{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().AddDate(250, 0, 0)} {
		p := &people{expires: expires}
		addr, _, _ := serve(t, wsstream.WithAuthorizer(p.authorize))
		var asked atomic.Int64
		dial(t, "ws://"+addr, wsstream.WithToken(func(context.Context) (string, error) {
			asked.Add(1)
			return "s3cret-alice", nil
		}))
		time.Sleep(100 * time.Millisecond)
		require.EqualValues(t, 1, asked.Load())
	}
	var asked atomic.Int64
	url := scripted(t, func(s script) {
		s.hear()
		s.say(`{"t":"welcome","session":"x","ttl":1,"ping":60000}`)
		for s.hear() != "" {
			s.say(fmt.Sprintf(`{"t":"ok","rid":%d,"ttl":1}`, asked.Load()-1))
		}
	})
	dial(t, url, wsstream.WithJSON(), wsstream.WithToken(func(context.Context) (string, error) {
		asked.Add(1)
		return "t", nil
	}))
	time.Sleep(1500 * time.Millisecond)
	require.LessOrEqual(t, asked.Load(), int64(2))
}

// Whoever gives up waiting for a publish does not make room for others: the
// server is still at it.
func TestPublishesGivenUpStillCount(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	behind := &slow{Transport: mem, takes: 300 * time.Millisecond}
	addr, h := serveOver(t, behind, wsstream.WithMaxPublish(5))
	c := dial(t, "ws://"+addr)
	for i := range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := c.Send(ctx, "t", []transport.Message{{ID: fmt.Sprint(i)}})
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	_, err := c.Send(t.Context(), "t", []transport.Message{{ID: "last"}})
	require.NoError(t, err)
	require.EqualValues(t, 1, h.Stats().Opened)
	require.Zero(t, h.Stats().Errors)
}

// States are told one after another, in order, and the callback may close the
// transport.
func TestStates(t *testing.T) {
	url := scripted(t, func(s script) {
		s.hear()
		s.say(`{"t":"welcome","session":"x","ping":60000}`)
	})
	var mu sync.Mutex
	var states []bool
	closed := make(chan error)
	var c *wsstream.Transport
	ready := make(chan struct{})
	c = dial(t, url, wsstream.WithJSON(), wsstream.WithBackoff(time.Microsecond, 10*time.Microsecond), wsstream.WithState(func(s wsstream.State) {
		mu.Lock()
		states = append(states, s.Up)
		n := len(states)
		mu.Unlock()
		if n == 50 {
			<-ready
			closed <- c.Close()
		}
	}))
	close(ready)
	require.NoError(t, <-closed)
	mu.Lock()
	defer mu.Unlock()
	for i := range 50 {
		require.Equal(t, i%2 == 0, states[i])
	}
}

// A loss is told in its place, after the messages before it.
func TestGapInItsPlace(t *testing.T) {
	end := make(chan bool)
	url := scripted(t, func(s script) {
		s.hear()
		s.say(`{"t":"welcome","session":"x","ping":60000}`)
		s.until(`"t":"sub"`)
		s.say(`{"t":"subok","sid":1,"pos":"1-0"}`,
			`{"t":"run","sid":1}`, `{"t":"msg","pos":"1-1","prev":"1-0","id":"a"}`, `{"t":"msg","pos":"1-2","prev":"1-1","id":"b"}`,
			`{"t":"gap","count":3,"pos":"1-5"}`, `{"t":"msg","pos":"1-6","prev":"1-5","id":"c"}`, `{"t":"gap","count":1,"pos":"1-7"}`)
		<-end
	})
	defer close(end)
	c := dial(t, url, wsstream.WithJSON())
	s, err := c.Subscribe(t.Context(), "t", transport.Options{})
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond)
	var told []string
	dst := make([]transport.Message, 10)
	for len(told) < 5 {
		n, err := s.Receive(t.Context(), dst)
		for _, m := range dst[:n] {
			told = append(told, m.ID)
		}
		if lost, ok := errors.AsType[*transport.LostError](err); ok {
			told = append(told, fmt.Sprintf("%d lost up to %v", lost.Count, lost.Next))
		}
	}
	require.Equal(t, []string{"a", "b", "3 lost up to 1-5", "c", "1 lost up to 1-7"}, told)
	require.Equal(t, transport.Position{Hi: 1, Lo: 7}, s.(transport.Positioner).Position())
}

// A server that answers too little is believed what it said.
func TestReceiptsWithoutPositions(t *testing.T) {
	url := scripted(t, func(s script) {
		s.hear()
		s.say(`{"t":"welcome","session":"x","ping":60000,"max_publish":10}`)
		s.until(`"id":"b"`)
		s.say(`{"t":"pubok","rid":1,"count":2}`, `{"t":"pubok","rid":100,"count":1000000000000000}`)
		s.until(`"id":"e"`)
		s.say(`{"t":"pubok","rid":3,"count":1}`, `{"t":"err","rid":4,"code":303}`, `{"t":"pubok","rid":5,"count":1}`)
		s.until("bye")
	})
	c := dial(t, url, wsstream.WithJSON())
	n, err := c.Send(t.Context(), "t", []transport.Message{{ID: "a"}, {ID: "b"}})
	require.NoError(t, err)
	require.Equal(t, 2, n)
	// That a later one is stored does not go with "the rest is not".
	n, err = c.Send(t.Context(), "t", []transport.Message{{ID: "c"}, {ID: "d"}, {ID: "e"}})
	require.Equal(t, 1, n)
	require.ErrorIs(t, err, transport.ErrPublishUnknown)
	require.NotErrorIs(t, err, transport.ErrNotPublished)
}

// A server that closes the link because of what the client asked for is not
// asked again.
func TestRequestsThatEndLinks(t *testing.T) {
	var links atomic.Int64
	url := scripted(t, func(s script) {
		s.hear()
		s.say(`{"t":"welcome","session":"x","ping":60000}`)
		if n := links.Add(1); n == 1 {
			s.until(`"poison"`)
			s.ws.Close(4301, "that is no frame")
			return
		}
		for {
			switch m := s.hear(); {
			case m == "":
				return
			case strings.Contains(m, "poison"):
				s.ws.Close(4301, "again")
				return
			case strings.Contains(m, "good"):
				s.say(`{"t":"pubok","rid":2,"count":1}`)
			}
		}
	})
	c := dial(t, url, wsstream.WithJSON())
	_, err := c.Send(t.Context(), "t", []transport.Message{{ID: "poison"}})
	require.ErrorIs(t, err, transport.ErrPublishUnknown)
	_, err = c.Send(t.Context(), "t", []transport.Message{{ID: "good"}})
	require.NoError(t, err)
	require.EqualValues(t, 2, links.Load())
}
