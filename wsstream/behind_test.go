package wsstream_test

import (
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// What Redis has trimmed, or lost, while a client was away is a gap to it: at a
// node that knows nothing of the topic, and at one that reads it.
func TestLossesOverRedis(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	stream := "echo:{t}"
	tr := overRedis(t, server)
	open := func(addr, pos string) *raw {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(fmt.Sprintf(`{"t":"sub","sid":1,"topic":"t","from":"pos","pos":%q,"credit":1000,"bytes":1000000}`, pos))
		c.expect("subok")
		return c
	}
	fresh := func() string {
		addr, _ := serveOver(t, overRedis(t, server))
		return addr
	}
	for what, lose := range map[string]func(){
		"trimmed":    func() { require.NoError(t, client.XTrimMaxLen(t.Context(), stream, 3).Err()) },
		"a lost log": func() { require.NoError(t, client.FlushAll(t.Context()).Err()); send(t, tr, "t", "17", "18", "19") },
		"all trimmed": func() {
			require.NoError(t, client.XTrimMaxLen(t.Context(), stream, 0).Err())
			send(t, tr, "t", "17", "18", "19")
		},
	} {
		t.Run(what, func(t *testing.T) {
			require.NoError(t, client.FlushAll(t.Context()).Err())
			send(t, tr, "t", "first")
			first, err := client.XRange(t.Context(), stream, "-", "+").Result()
			require.NoError(t, err, "the topic's stream is %s", stream)
			require.Len(t, first, 1)
			warm := fresh()
			w := open(warm, first[0].ID) // and stays
			send(t, tr, "t", ids(20)...)
			for i := range 20 {
				require.Equal(t, fmt.Sprint(i), w.expect("msg")["id"])
			}
			lose()
			cold := fresh()
			var work sync.WaitGroup
			for range 10 {
				c := open(cold, first[0].ID)
				work.Go(func() {
					c.expect("gap")
					for i := 17; i < 20; i++ {
						assert.Equal(t, fmt.Sprint(i), c.expect("msg")["id"])
					}
				})
			}
			work.Wait()
			if what == "trimmed" { // the other node still has all of it
				c := open(warm, first[0].ID)
				for i := range 20 {
					require.Equal(t, fmt.Sprint(i), c.expect("msg")["id"])
				}
			}
		})
	}
}

// Entries that are no messages, at the end of what a client comes back for, hold
// nobody up.
func TestForeignEntriesOverRedis(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	tr := overRedis(t, server)
	addr, h := serveOver(t, overRedis(t, server))
	send(t, tr, "t", "a")
	early := dial(t, "ws://"+addr)
	subs := []transport.Subscription{}
	first, err := client.XRange(t.Context(), "echo:{t}", "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, first, 1)
	var at transport.Position
	require.NoError(t, at.UnmarshalText([]byte(first[0].ID)))
	for range 5 {
		require.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: "echo:{t}", Values: []any{"no", "message"}}).Err())
	}
	newest, err := early.Subscribe(t.Context(), "t", transport.Options{})
	require.NoError(t, err) // which makes the node read from behind them
	subs = append(subs, newest)
	for range 3 {
		s, err := early.Subscribe(t.Context(), "t", transport.Options{Start: transport.Start{From: transport.AfterPosition, Position: at}})
		require.NoError(t, err)
		subs = append(subs, s)
	}
	time.Sleep(300 * time.Millisecond)
	send(t, tr, "t", "b")
	for _, s := range subs {
		dst := make([]transport.Message, 2)
		n, err := s.Receive(t.Context(), dst)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, "b", dst[0].ID)
	}
	require.EqualValues(t, 1, h.Stats().Opened)
}

// TLS, under which a link is no plain TCP connection.
func TestLinksOverTLS(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	h := wsstream.NewHandler(mem, wsstream.WithAnonymous(wsstream.Everything("")), wsstream.WithMaxMessage(64<<10))
	s := httptest.NewTLSServer(h)
	defer s.Close()
	defer h.Close()
	c := dial(t, s.URL, wsstream.WithHTTPClient(s.Client()))
	sub, err := c.Subscribe(t.Context(), "t", transport.Options{Group: "g"})
	require.NoError(t, err)
	msgs := make([]transport.Message, 500)
	for i := range msgs {
		msgs[i] = transport.Message{ID: fmt.Sprint(i), Data: make([]byte, 1000)}
	}
	_, err = c.Send(t.Context(), "t", msgs)
	require.NoError(t, err)
	dst := make([]transport.Message, 100)
	for got := 0; got < len(msgs); {
		n, err := sub.Receive(t.Context(), dst)
		require.NoError(t, err)
		for _, m := range dst[:n] {
			require.Equal(t, fmt.Sprint(got), m.ID)
			require.NoError(t, sub.(transport.Acker).Ack(t.Context(), []transport.Receipt{m.Receipt()}))
			got++
		}
	}
	require.NoError(t, h.Drain(t.Context(), 100*time.Millisecond))
}
