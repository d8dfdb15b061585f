package wsstream_test

import (
	"context"
	"fmt"
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

// A message that is refused for itself takes none with it but those of its batch.
func TestAMessageThatIsRefusedLeavesThoseOfOthersAlone(t *testing.T) {
	mem := memstream.New(memstream.WithMaxBytes(1000))
	defer mem.Close()
	addr, _ := serveOver(t, mem)
	c := openRaw(t, addr, "echo.v1+json")
	c.hello()
	pub := func(rid int, text, more string) string {
		return fmt.Sprintf(`{"t":"pub","rid":%d,"topic":"t","id":"m%d","type":"text/plain","data":%q%s}`, rid, rid, text, more)
	}
	big := strings.Repeat("x", 2000)
	c.say(pub(1, "a", ""), pub(2, big, ""), pub(3, "b", ""), pub(4, big, `,"chain":true`), pub(5, "c", `,"chain":true`), pub(6, "d", ""))
	outcome := map[int]string{}
	for len(outcome) < 6 {
		for _, f := range c.hear() {
			rid, _ := f["rid"].(float64)
			count, _ := f["count"].(float64)
			for i := range max(1, int(count)) {
				outcome[int(rid)+i] = fmt.Sprint(f["t"], f["code"])
			}
		}
	}
	const stored = "pubok<nil>"
	tooBig := fmt.Sprint("err", int(wsstream.CodeTooBig))
	require.Equal(t, map[int]string{1: stored, 2: tooBig, 3: stored, 4: tooBig, 5: tooBig, 6: stored}, outcome)
	require.Equal(t, 3, mem.Stats("t").Messages)

	tr, err := wsstream.Dial(t.Context(), "ws://"+addr)
	require.NoError(t, err)
	defer tr.Close()
	var senders sync.WaitGroup
	defer senders.Wait()
	batch := func(who string, i, size int) []transport.Message {
		msgs := []transport.Message{message(fmt.Sprint(who, i, "a")), message(fmt.Sprint(who, i, "b")), message(fmt.Sprint(who, i, "c"))}
		msgs[1].Data = make([]byte, size)
		return msgs
	}
	senders.Go(func() {
		for i := range 100 {
			n, err := tr.Send(context.Background(), "u", batch("large", i, 2000))
			assert.Equal(t, 1, n)
			assert.True(t, transport.RefusedForItself(err), err)
		}
	})
	for i := range 100 {
		n, err := tr.Send(t.Context(), "u", batch("small", i, 20))
		assert.NoError(t, err)
		assert.Equal(t, 3, n)
	}
}

func message(id string) transport.Message {
	return transport.Message{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte(id)}
}

func TestADelayBeyondTheBoundIsRefused(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithMaxDelay(time.Hour), granted(*wsstream.Everything("anybody")))
	tr, err := wsstream.Dial(t.Context(), "ws://"+addr)
	require.NoError(t, err)
	defer tr.Close()
	for delay, want := range map[time.Duration]bool{30 * time.Minute: true, 2 * time.Hour: false} {
		m := message("m")
		m.Terms = &transport.Terms{Due: time.Now().Add(delay)}
		_, err = tr.Send(t.Context(), "t", []transport.Message{m})
		if want {
			assert.NoError(t, err)
		} else {
			assert.True(t, transport.RefusedForItself(err), err)
			assert.ErrorContains(t, err, "the server bears 1h0m0s")
		}
	}
}
