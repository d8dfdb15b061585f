package echo_test

import (
	"context"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// A topic's name is accepted exactly when it matches the documented pattern.
func FuzzTopicName(f *testing.F) {
	for _, s := range []string{"orders", "a.b-c_d", "", ".a", "a b", "ü", "a\n", "{a}", "0", "a.*", "*.a.#", "#.a", "a*"} {
		f.Add(s)
	}
	pattern := regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9._-]{0,199}\z`)
	bus := newBus(f)
	f.Fuzz(func(t *testing.T, name string) {
		c, err := echo.Subscribe(context.Background(), bus, echo.NewTopic[int](name))
		words := strings.Split(name, ".") // of which some may stand for any
		for i, w := range words {
			if w == "*" || w == "#" && i == len(words)-1 {
				words[i] = "x"
			}
		}
		if ok := pattern.MatchString(strings.Join(words, ".")); ok != (err == nil) {
			t.Fatalf("name %q: got %v, matches the pattern: %v", name, err, ok)
		}
		if err == nil {
			c.Close()
		}
	})
}

// What Publish accepts of a key, an ID and a header arrives unchanged; the
// rest is refused.
func FuzzHeaders(f *testing.F) {
	f.Add("k", "id", "tenant", "blue")
	f.Add("", "", "", "")
	f.Add("\xff", "a\x00", "a b", "\r\n")
	f.Add("ü", "日本", "echo-x", "\x7f")
	f.Fuzz(func(t *testing.T, key, id, name, value string) {
		bus := newBus(t)
		c := subscribe(t, bus, orders)
		p := echo.NewProducer(bus, orders)
		err := p.Publish(t.Context(), anOrder, echo.WithKey(key), echo.WithID(id), echo.WithHeader(name, value))
		if err != nil {
			err = p.Publish(t.Context(), anOrder, echo.WithID("next"))
			if m := take(t, c, 1)[0]; err != nil || m.ID != "next" {
				t.Fatalf("after a refusal: got %v, %v", m, err)
			}
			return
		}
		m := take(t, c, 1)[0]
		if m.Key != key || m.ID != id || !maps.Equal(m.Headers, map[string]string{name: value}) || m.Value != anOrder {
			t.Fatalf("got %+v, want key %q, ID %q, header %q: %q", m, key, id, name, value)
		}
	})
}

// Whatever a foreign program sends, a consumer gets a value or an error for it,
// and the message after it.
func FuzzEnvelope(f *testing.F) {
	f.Add("1", "k", "application/json", []byte(`{"ID":"o"}`), "a", "b")
	f.Add("", "", "", []byte(nil), "", "")
	f.Add("1", "\xff", "application/json; version=-1", []byte(`{"ID":`), "a b", "\x00")
	f.Add("1", "", "text/plain; version=2; version=3", []byte("x"), "a", "b")
	f.Fuzz(func(t *testing.T, id, key, typ string, data []byte, name, value string) {
		mem := memstream.New()
		bus := newBus(t, echo.WithTransport(mem))
		c := subscribe(t, bus, orders)
		foreign := transport.Message{ID: id, Key: key, Type: typ, Data: data, Time: time.Now(), Header: map[string]string{name: value}}
		if _, err := mem.Send(t.Context(), "orders", []transport.Message{foreign}); err != nil {
			t.Skip()
		}
		publish(t, bus, orders, anOrder)
		n := 0
		for m, err := range c.Messages(t.Context()) {
			if n++; n == 1 {
				if err == nil && m.ID != id {
					t.Fatalf("got ID %q, want %q", m.ID, id)
				}
				continue
			}
			if err != nil || m.Value != anOrder {
				t.Fatalf("the message after it: got %v, %v", m.Value, err)
			}
			break
		}
	})
}
