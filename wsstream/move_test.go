package wsstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// granted authorizes everybody with one grant.
func granted(g wsstream.Grant) wsstream.HandlerOption {
	return wsstream.WithAuthorizer(func(context.Context, *http.Request, string) (*wsstream.Grant, error) { return &g, nil })
}

func TestWhoConsumesMayPutMessagesAmongTheDeadLettersAndNowhereElse(t *testing.T) {
	addr, _, mem := serve(t, granted(wsstream.Grant{Subscribe: func(string, string) bool { return true }}))
	for i := range 3 {
		send(t, mem, "t", fmt.Sprint("m", i))
	}
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"t","group":"g","credit":10,"bytes":100000}`)
	c.expect("subok")
	for n := 0; n < 3; {
		for _, f := range c.hear() {
			if f["t"] == "dlv" {
				n++
			}
		}
	}
	move := func(rid int, topic, ns string) map[string]any {
		c.say(fmt.Sprintf(`{"t":"move","rid":%d,"sid":1,"ns":%s,"topic":%q,"id":"m","type":"text/plain","string":"x"}`, rid, ns, topic))
		return c.hear()[0]
	}
	assert.EqualValues(t, 204, move(1, "elsewhere", "[1]")["code"])
	assert.EqualValues(t, 101, move(2, "t.dead", "[1,2]")["code"])
	assert.EqualValues(t, 101, move(3, "t.dead", "[]")["code"])
	assert.Equal(t, "ok", move(4, "t.dead", "[1]")["t"])
	assert.Equal(t, []any{1.0}, move(5, "t.dead", "[1]")["ns"], "it is held no more")
	i, err := mem.Inspect(t.Context(), "t")
	require.NoError(t, err)
	assert.EqualValues(t, 2, i.Group("g").Pending, "what was refused is still held")
	c.say(`{"t":"unsub","rid":6,"sid":1}`)
	c.expect("ok")
	assert.Equal(t, []any{2.0}, move(7, "t.dead", "[2]")["ns"], "after the end nothing is held")
}

// However many ask at once, and lose patience, all are answered.
func TestManyInspectAtOnce(t *testing.T) {
	mem := memstream.New()
	t.Cleanup(func() { mem.Close() })
	send(t, mem, "t", "m")
	addr, _ := serveOver(t, slowInspection{mem, 20 * time.Millisecond})
	tr := dial(t, "ws://"+addr)
	var asking sync.WaitGroup
	for n := range 30 {
		asking.Go(func() {
			for range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*time.Millisecond)
				if _, err := tr.Inspect(ctx, "t"); err != nil {
					assert.ErrorIs(t, err, context.DeadlineExceeded)
				}
				cancel()
			}
			i, err := tr.Inspect(t.Context(), "t")
			assert.NoError(t, err)
			assert.EqualValues(t, 1, i.Messages)
		})
	}
	asking.Wait()
}

// slowInspection takes a while to inspect a topic.
type slowInspection struct {
	transport.Transport
	takes time.Duration
}

func (s slowInspection) Unwrap() transport.Transport { return s.Transport }

func (s slowInspection) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	time.Sleep(s.takes)
	return s.Transport.(transport.Inspector).Inspect(ctx, topic)
}

func TestRepliesTakeTheRightToPublish(t *testing.T) {
	addr, _, _ := serve(t, granted(wsstream.Grant{Subscribe: func(string, string) bool { return true }}))
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"pub","rid":1,"topic":"reply.x","id":"a","type":"text/plain","string":"x"}`)
	assert.EqualValues(t, 204, c.expect("err")["code"])
	c.say(`{"t":"sub","sid":1,"topic":"reply.x","credit":1,"bytes":1}`)
	assert.EqualValues(t, 204, c.hear()[0]["code"])

	addr, _, _ = serve(t, granted(wsstream.Grant{Publish: func(topic string) bool { return topic == "questions" }}), wsstream.WithMaxTopics(1))
	c = openRaw(t, addr, "echo.v1+json")
	c.hello()
	c.say(`{"t":"sub","sid":1,"topic":"reply.x","credit":1,"bytes":1000}`)
	c.expect("subok")
	c.say(`{"t":"pub","rid":1,"topic":"reply.x","id":"a","type":"text/plain","string":"x","delay":5}`)
	assert.EqualValues(t, 405, c.expect("err")["code"], "a reply is not delayed")
	c.say(`{"t":"pub","rid":2,"topic":"questions","id":"a","type":"text/plain","string":"x","name":"a"}`)
	assert.EqualValues(t, 101, c.expect("err")["code"], "a name has a window")
}

func TestAFloodOfQuestionsIsRefusedAndEachIsAnswered(t *testing.T) {
	addr, _, _ := serve(t, granted(*wsstream.Everything("")))
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	const n = 50
	var batch strings.Builder
	for i := range n {
		fmt.Fprintf(&batch, `{"t":"inspect","rid":%d,"topic":"t"}`+"\n", i+1)
	}
	c.say(batch.String())
	answers := 0
	for answers < n {
		for _, f := range c.hear() {
			if f["t"] == "info" || f["code"] == 104.0 {
				answers++
			}
		}
	}
}

// slowMoves is a transport whose moves take their time.
type slowMoves struct {
	transport.Transport
	take time.Duration
}

func (s slowMoves) Unwrap() transport.Transport { return s.Transport }
func (s slowMoves) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	sub, err := s.Transport.Subscribe(ctx, topic, o)
	return slowMover{sub, s.take}, err
}

type slowMover struct {
	transport.Subscription
	take time.Duration
}

func (s slowMover) Unwrap() transport.Subscription { return s.Subscription }
func (s slowMover) Move(ctx context.Context, topic string, m transport.Message, r transport.Receipt) error {
	time.Sleep(s.take)
	return s.Subscription.(transport.Mover).Move(ctx, topic, m, r)
}

func TestMovesThatAreGivenUpStillCount(t *testing.T) {
	mem := memstream.New()
	tr, _ := serveOver(t, slowMoves{mem, 50 * time.Millisecond}, wsstream.WithMaxPublish(5))
	states := make(chan wsstream.State, 100)
	link, err := wsstream.Dial(t.Context(), "ws://"+tr, wsstream.WithState(func(s wsstream.State) { states <- s }))
	require.NoError(t, err)
	defer link.Close()
	sub, err := link.Subscribe(t.Context(), "t", transport.Options{Group: "g"})
	require.NoError(t, err)
	for i := range 30 {
		send(t, mem, "t", fmt.Sprint(i))
	}
	for range 30 {
		dst := make([]transport.Message, 1)
		_, err := sub.Receive(t.Context(), dst)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		err = sub.(transport.Mover).Move(ctx, "t.dead", dst[0], dst[0].Receipt())
		cancel()
		require.True(t, errors.Is(err, context.DeadlineExceeded), "%v", err)
	}
	assert.True(t, (<-states).Up)
	assert.Empty(t, states, "the link stays up")
}
