package wsstream_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// When a node goes, all of its clients come to another at once, which has read
// nothing of the topic yet, and each wants to go on from its own place. The
// topic is read once for all of them.
func TestStormOfReconnects(t *testing.T) {
	const clients, messages = 2000, 100
	server := redistest.Start(t)
	node := func() (string, *wsstream.Handler, transport.Transport) {
		client := redis.NewClient(server.Options())
		tr := redisstream.New(client)
		h := wsstream.NewHandler(tr, wsstream.WithAnonymous(wsstream.Everything("")))
		s := httptest.NewServer(h)
		t.Cleanup(func() {
			h.Close()
			s.Close()
			tr.Close()
			client.Close()
		})
		return s.Listener.Addr().String(), h, tr
	}
	old, oldHandler, tr := node()
	fresh, freshHandler, _ := node()

	// each runs f for every client, not for all at the same moment.
	each := func(f func(i int)) {
		var work sync.WaitGroup
		turns := make(chan struct{}, 200)
		for i := range clients {
			turns <- struct{}{}
			work.Go(func() {
				defer func() { <-turns }() // also of one that fails
				f(i)
			})
		}
		work.Wait()
	}
	open := func(addr, from string) *raw {
		c := openRaw(t, addr, "echo.v1+json")
		c.hello()
		c.say(fmt.Sprintf(`{"t":"sub","sid":1,"topic":"t",%s,"credit":1000000,"bytes":1000000000,"manual":true}`, from))
		c.expect("subok")
		return c
	}
	// read reads messages from, up to the one numbered to, and returns the last position.
	read := func(c *raw, from, to int) (pos string) {
		c.SetDeadline(time.Now().Add(30 * time.Second)) // it was opened long ago
		for from < to {
			frames := c.hear()
			for i, f := range frames {
				switch f["t"] {
				case "run":
				case "msg":
					if !assert.Equal(t, strconv.Itoa(from), f["id"]) {
						return pos
					}
					pos = f["pos"].(string)
					if from++; from == to {
						c.said = frames[i+1:]
						return pos
					}
				default:
					t.Errorf("a frame %v", f)
				}
			}
		}
		return pos
	}

	conns := make([]*raw, clients)
	each(func(i int) { conns[i] = open(old, `"from":"newest"`) })
	for i := range messages {
		send(t, tr, "t", strconv.Itoa(i))
	}
	seen, at := make([]int, clients), make([]string, clients)
	each(func(i int) {
		seen[i] = messages/2 + rand.N(messages/2) + 1
		at[i] = read(conns[i], 0, seen[i])
		conns[i].Close()
	})
	oldHandler.Close()
	for i := range 10 { // while nobody is there
		send(t, tr, "t", strconv.Itoa(messages+i))
	}

	before := commands(t, server)
	each(func(i int) { conns[i] = open(fresh, fmt.Sprintf(`"from":"pos","pos":%q`, at[i])) })
	each(func(i int) { read(conns[i], seen[i], messages+10) })
	after := commands(t, server)
	spent := map[string]int{}
	for name, n := range after {
		if n -= before[name]; n > 0 {
			spent[name] = n
		}
	}
	t.Logf("%d clients resumed with %v", clients, spent)
	reads := spent["xread"] + spent["xrange"] + spent["xrevrange"] + spent["xinfo|stream"]
	assert.Less(t, reads, 40, "the topic is read for all, not for each")
	assert.Equal(t, clients, freshHandler.Stats().Links)
	assert.Equal(t, 1, freshHandler.Stats().Topics)

	// Those who come for what is new ask for the end of the topic together.
	before = commands(t, server)
	var more []*raw
	var mu sync.Mutex
	each(func(int) {
		c := open(fresh, `"from":"newest"`)
		mu.Lock()
		defer mu.Unlock()
		more = append(more, c)
	})
	after = commands(t, server)
	asked := after["xinfo|stream"] - before["xinfo|stream"]
	t.Logf("%d asked for the end with %d questions", clients, asked)
	assert.Less(t, asked, clients/4, "however fast the answers come")
	send(t, tr, "t", strconv.Itoa(messages+10))
	for _, c := range append(conns, more...) {
		read(c, messages+10, messages+11)
		c.Close()
	}
}

// commands is how often a server did each command.
func commands(t testing.TB, server *redistest.Server) map[string]int {
	t.Helper()
	info, err := server.Client().Info(context.Background(), "commandstats").Result()
	require.NoError(t, err)
	n := map[string]int{}
	for line := range strings.Lines(info) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		calls, _, _ := strings.Cut(rest, ",")
		n[name], _ = strconv.Atoi(calls)
	}
	return n
}
