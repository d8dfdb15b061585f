package wsstream_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// people are those whom tokens name: "alice" may do all with topics that begin
// with her name, and read those that begin with "public".
type people struct {
	mu      sync.Mutex
	revoked map[string]bool // topics
	expires time.Time
}

func (p *people) authorize(_ context.Context, r *http.Request, token string) (*wsstream.Grant, error) {
	if token == "" {
		return nil, wsstream.ErrNoToken
	}
	name, ok := strings.CutPrefix(token, "s3cret-")
	if !ok {
		return nil, fmt.Errorf("no such token")
	}
	name, _, _ = strings.Cut(name, "-")
	own := func(topic string) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return strings.HasPrefix(topic, name) && !p.revoked[topic]
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &wsstream.Grant{
		Subject:   name,
		Expires:   p.expires,
		Subscribe: func(topic, group string) bool { return own(topic) || group == "" && strings.HasPrefix(topic, "public") },
		Publish:   own,
	}, nil
}

func TestTokens(t *testing.T) {
	var log bytes.Buffer
	p := &people{}
	addr, _, _ := serve(t, wsstream.WithAuthorizer(p.authorize), wsstream.WithInsecureQueryToken("access_token"), wsstream.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	protocol := "Sec-WebSocket-Protocol: echo.v1+json\r\n"
	bearer := func(token string) string { return "echo.bearer." + base64.RawURLEncoding.EncodeToString([]byte(token)) }
	for what, c := range map[string]struct {
		head, hello string
		code        int // of the err; 0 if the link opens
	}{
		"in a header":                  {upgrade + protocol + "Authorization: Bearer s3cret-alice\r\n", `{"t":"hello"}`, 0},
		"in the hello":                 {upgrade + protocol, `{"t":"hello","token":"s3cret-alice"}`, 0},
		"as a sub-protocol":            {upgrade + "Sec-WebSocket-Protocol: echo.v1+json, " + bearer("s3cret-alice") + "\r\n", `{"t":"hello"}`, 0},
		"in the URL, as was asked for": {strings.Replace(upgrade, "GET /", "GET /?access_token=s3cret-alice", 1) + protocol, `{"t":"hello"}`, 0},
		"none":                         {upgrade + protocol, `{"t":"hello"}`, 201},
		"a wrong one":                  {upgrade + protocol, `{"t":"hello","token":"guess"}`, 202},
		"two":                          {upgrade + protocol + "Authorization: Bearer s3cret-alice\r\n", `{"t":"hello","token":"s3cret-alice"}`, 202},
		"another scheme":               {upgrade + protocol + "Authorization: Basic s3cret-alice\r\n", `{"t":"hello"}`, 201},
	} {
		t.Run(what, func(t *testing.T) {
			r, resp := request(t, addr, c.head+"\r\n")
			require.Equal(t, 101, resp.StatusCode)
			require.NotContains(t, fmt.Sprint(resp.Header), "bearer")
			r.say(c.hello)
			if c.code == 0 {
				r.expect("welcome")
				return
			}
			f := r.expect("err")
			require.EqualValues(t, c.code, f["code"])
			require.NotContains(t, f, "text", "why is not told")
			code, _ := r.closed()
			require.Equal(t, 4203, code)
		})
	}
	require.NotContains(t, log.String(), "s3cret")
}

func TestAnonymousClientsRead(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithAnonymous(nil))
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello"}`)
	c.expect("err") // nobody may do anything

	addr, _, _ = serve(t, readOnly)
	c = openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"t"}`)
	c.expect("subok")
	c.say(`{"t":"sub","sid":2,"topic":"t","group":"g"}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
	c.say(`{"t":"pub","rid":1,"topic":"t","id":"a"}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
}

func TestRights(t *testing.T) {
	p := &people{revoked: map[string]bool{}}
	addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize))
	send(t, mem, "bob.1", "exists")
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"s3cret-alice"}`)
	c.expect("welcome")
	// A topic that is there and one that is not look the same to those who may not.
	var seen []object
	for _, topic := range []string{"bob.1", "nobody.1"} {
		for _, f := range []string{`{"t":"sub","sid":1,"topic":"%s"}`, `{"t":"sub","sid":1,"topic":"%s","group":"g"}`, `{"t":"pub","rid":1,"topic":"%s","id":"a"}`} {
			c.say(fmt.Sprintf(f, topic))
			seen = append(seen, c.expect("err"))
		}
	}
	require.Equal(t, seen[:3], seen[3:])
	require.EqualValues(t, 204, seen[0]["code"])

	c.say(`{"t":"sub","sid":1,"topic":"public.news","credit":10,"bytes":1000}`, `{"t":"sub","sid":2,"topic":"alice.1","credit":10,"bytes":1000}`,
		`{"t":"sub","sid":3,"topic":"alice.1","group":"g","credit":10,"bytes":1000}`)
	for range 3 {
		c.expect("subok")
	}
	// A right that is taken away ends at the next refresh at the latest.
	p.mu.Lock()
	p.revoked["alice.1"] = true
	p.mu.Unlock()
	c.say(`{"t":"pub","rid":1,"topic":"alice.1","id":"a"}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
	c.say(`{"t":"auth","rid":2,"token":"s3cret-alice-fresh"}`)
	ended := map[any]bool{c.expect("subend")["sid"]: true}
	ended[c.expect("subend")["sid"]] = true
	require.Equal(t, map[any]bool{2.0: true, 3.0: true}, ended)
	require.EqualValues(t, 2, c.expect("ok")["rid"])
	send(t, mem, "alice.1", "secret")
	send(t, mem, "public.news", "news")
	require.Equal(t, "news", c.expect("msg")["id"])

	// A token of somebody else ends the link.
	c.say(`{"t":"auth","rid":3,"token":"s3cret-bob"}`)
	code, _ := c.closed()
	require.Equal(t, 4202, code)
}

func TestExpiry(t *testing.T) {
	p := &people{expires: time.Now().Add(1500 * time.Millisecond)}
	addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize), wsstream.WithHeartbeat(time.Second, time.Second))
	c, d := openRaw(t, addr, "echo.v1+json"), openRaw(t, addr, "echo.v1+json")
	for _, c := range []*raw{c, d} {
		c.say(`{"t":"hello","token":"s3cret-alice"}`)
		ttl := c.expect("welcome")["ttl"].(float64)
		require.Greater(t, ttl, 500.0)
		require.LessOrEqual(t, ttl, 1500.0)
		c.say(`{"t":"sub","sid":1,"topic":"public","credit":1000,"bytes":100000}`)
		c.expect("subok")
	}
	p.mu.Lock()
	p.expires = time.Now().Add(time.Hour)
	p.mu.Unlock()
	d.say(`{"t":"auth","rid":1,"token":"s3cret-alice-2"}`)
	require.Greater(t, d.expect("ok")["ttl"].(float64), 3e6)
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				send(t, mem, "public", fmt.Sprint("m", i))
			}
		}
	})
	defer sending.Wait()
	defer close(stop)
	begin := time.Now()
	code, _ := c.closed()
	require.Equal(t, 4201, code)
	require.Less(t, time.Since(begin), 2500*time.Millisecond)
	d.said = nil
	d.say(`{"t":"ping","n":1}`)
	d.expect("pong") // it has a fresh token
}

func TestKick(t *testing.T) {
	p := &people{}
	addr, h, _ := serve(t, wsstream.WithAuthorizer(p.authorize))
	links := map[string]*raw{}
	var session any
	for _, name := range []string{"alice", "bob"} {
		c := openRaw(t, addr, "echo.v1+json")
		c.say(`{"t":"hello","token":"s3cret-` + name + `"}`)
		f := c.expect("welcome")
		if name == "alice" {
			session = f["session"]
		}
		links[name] = c
	}
	require.Equal(t, 1, h.Kick(func(subject string) bool { return subject == "alice" }))
	code, _ := links["alice"].closed()
	require.Equal(t, 4202, code)
	links["bob"].say(`{"t":"ping","n":1}`)
	links["bob"].expect("pong")
	c := openRaw(t, addr, "echo.v1+json")
	c.say(fmt.Sprintf(`{"t":"hello","token":"s3cret-alice","session":"%s"}`, session))
	require.NotContains(t, c.expect("welcome"), "resumed")
}

// A session is for who knows its secret and is the same subject.
func TestSessionsAreNotStolen(t *testing.T) {
	p := &people{}
	addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize))
	send(t, mem, "alice.1", "a", "b")
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"s3cret-alice"}`)
	session := c.expect("welcome")["session"].(string)
	c.say(`{"t":"sub","sid":1,"topic":"alice.1","group":"g","credit":1,"bytes":1000}`)
	c.expect("dlv")
	id, _, _ := strings.Cut(session, ".")
	for what, hello := range map[string]string{
		"the id alone":      `{"t":"hello","token":"s3cret-alice","session":"` + id + `"}`,
		"a wrong secret":    `{"t":"hello","token":"s3cret-alice","session":"` + id + `.AAAA"}`,
		"another subject":   `{"t":"hello","token":"s3cret-bob","session":"` + session + `"}`,
		"one that is none":  `{"t":"hello","token":"s3cret-alice","session":"x.y"}`,
		"one without a dot": `{"t":"hello","token":"s3cret-alice","session":"."}`,
	} {
		thief := openRaw(t, addr, "echo.v1+json")
		thief.say(hello)
		require.NotContains(t, thief.expect("welcome"), "resumed", what)
	}
	c.say(`{"t":"ack","rid":1,"sid":1,"ns":[1]}`)
	require.NotContains(t, c.expect("ok"), "ns", "the owner still holds it")

	// The owner takes it over, and the former link goes.
	again := openRaw(t, addr, "echo.v1+json")
	again.say(`{"t":"hello","token":"s3cret-alice","session":"` + session + `"}`)
	require.Equal(t, true, again.expect("welcome")["resumed"])
	code, _ := c.closed()
	require.Equal(t, 4303, code)
	again.say(`{"t":"sub","sid":1,"topic":"alice.1","group":"g","resumed":true,"seen":1,"credit":5,"bytes":1000}`)
	require.Equal(t, true, again.expect("subok")["resumed"])
	require.Equal(t, "b", again.expect("dlv")["id"])

	// After a bye there is nothing to take over.
	again.say(`{"t":"bye"}`)
	again.closed()
	late := openRaw(t, addr, "echo.v1+json")
	late.say(`{"t":"hello","token":"s3cret-alice","session":"` + session + `"}`)
	require.NotContains(t, late.expect("welcome"), "resumed")
}

// Rights are looked at again when a session is resumed.
func TestResumeNeedsTheRight(t *testing.T) {
	p := &people{revoked: map[string]bool{}}
	addr, _, mem := serve(t, wsstream.WithAuthorizer(p.authorize))
	send(t, mem, "alice.1", "a")
	c := openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"s3cret-alice"}`)
	session := c.expect("welcome")["session"].(string)
	c.say(`{"t":"sub","sid":1,"topic":"alice.1","group":"g","credit":1,"bytes":1000}`)
	c.expect("dlv")
	p.mu.Lock()
	p.revoked["alice.1"] = true
	p.mu.Unlock()
	c.Close()
	c = openRaw(t, addr, "echo.v1+json")
	c.say(`{"t":"hello","token":"s3cret-alice","session":"` + session + `"}`)
	c.expect("welcome")
	c.say(`{"t":"sub","sid":1,"topic":"alice.1","group":"g","resumed":true,"seen":1,"credit":1,"bytes":1000}`)
	require.EqualValues(t, 204, c.expect("err")["code"])
	// What was held goes to others at once.
	s, err := mem.Subscribe(t.Context(), "alice.1", transport.Options{Group: "g"})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = s.Receive(ctx, make([]transport.Message, 1))
	require.NoError(t, err)
}

// Data cannot break out of its frame, whoever publishes it.
func TestPoison(t *testing.T) {
	addr, _, mem := serve(t)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"t","credit":100,"bytes":1000000}`)
	c.expect("subok")
	for _, m := range []transport.Message{
		{ID: "1", Type: "application/json", Data: []byte("{\"a\":\n1}\n{\"t\":\"drain\"}")},
		{ID: "2", Type: "application/json", Data: []byte("{\"a\":\n1}")},
		{ID: "3", Type: "text/plain", Data: []byte("\n{\"t\":\"drain\"}\n")},
		{ID: "4", Type: "text/plain", Data: []byte("\xff\xfe\n")},
		{ID: "5\n{\"t\":\"drain\"}", Key: "\xff\n", Type: "\xff\n", Header: map[string]string{"__proto__": "\xff\n{\"t\":\"drain\"}"}},
		{ID: "6", Type: "application/json", Data: []byte(strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000))},
		{ID: "7", Type: "application/json", Data: []byte(`{"a":1,"a":2}`)},
	} {
		_, err := mem.Send(t.Context(), "t", []transport.Message{m})
		require.NoError(t, err)
	}
	for i := 1; i <= 7; {
		for _, f := range c.hear() { // which reads lines that are JSON, in UTF-8
			require.Contains(t, []any{"run", "msg"}, f["t"])
			if f["t"] == "msg" {
				require.True(t, strings.HasPrefix(f["id"].(string), fmt.Sprint(i)))
				i++
			}
		}
	}
}

// readOnly undoes what serve allows.
var readOnly = wsstream.WithAnonymous(&wsstream.Grant{Subscribe: func(_, group string) bool { return group == "" }})

// A client in Go gets a token before each connect, refreshes it, and ends when
// it is refused.
func TestClientTokens(t *testing.T) {
	p := &people{expires: time.Now().Add(2 * time.Second)}
	addr, h, _ := serve(t, wsstream.WithAuthorizer(p.authorize))
	var asked atomic.Int64
	tr, err := wsstream.Dial(t.Context(), "ws://"+addr, wsstream.WithToken(func(context.Context) (string, error) {
		if n := asked.Add(1); n > 1 {
			p.mu.Lock()
			p.expires = time.Now().Add(time.Hour)
			p.mu.Unlock()
		}
		return fmt.Sprintf("s3cret-alice-%d", asked.Load()), nil
	}))
	require.NoError(t, err)
	defer tr.Close()
	s, err := tr.Subscribe(t.Context(), "alice.1", transport.Options{Group: "g"})
	require.NoError(t, err)
	time.Sleep(3 * time.Second) // after the first token
	send(t, tr, "alice.1", "a")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = s.Receive(ctx, make([]transport.Message, 1))
	require.NoError(t, err)
	assert.EqualValues(t, 2, asked.Load(), "once for the link, once to refresh")
	assert.EqualValues(t, 1, h.Stats().Opened)

	_, err = wsstream.Dial(t.Context(), "ws://"+addr, wsstream.WithToken(func(context.Context) (string, error) { return "guess-1234", nil }))
	e, ok := errors.AsType[*wsstream.Error](err)
	require.True(t, ok, err)
	assert.Equal(t, wsstream.CodeBadToken, e.Code)
	assert.NotContains(t, err.Error(), "guess")
	_, err = tr.Subscribe(t.Context(), "bob.1", transport.Options{})
	e, ok = errors.AsType[*wsstream.Error](err)
	require.True(t, ok, err)
	assert.Equal(t, wsstream.CodeForbidden, e.Code)
	n, err := tr.Send(t.Context(), "bob.1", []transport.Message{{ID: "x"}})
	assert.Zero(t, n)
	assert.ErrorIs(t, err, transport.ErrNotPublished)
}
