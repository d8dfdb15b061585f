// Server is what the tests of the JavaScript client talk to: a handler over a
// transport in memory, behind a proxy that breaks links. It is told what to do
// by JSON objects on its standard input, one a line, and answers each with one
// on its standard output. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/echobus/echo/internal/faultproxy"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

// server is what commands act on.
type server struct {
	mem   *memstream.Transport
	opts  []wsstream.HandlerOption
	proxy *faultproxy.Proxy

	mu      sync.Mutex // guards the rest
	handler *wsstream.Handler
	tokens  map[string]grant // nil if none is needed
}

// grant is what a token is good for.
type grant struct {
	Subject string `json:"subject"`
	TTL     int    `json:"ttl"`  // in milliseconds, 0 for ever
	Deny    string `json:"deny"` // a topic that it is not good for
}

// command is a line of input.
type command struct {
	Do      string           `json:"do"`
	On      bool             `json:"on"`
	Within  int              `json:"within"`
	Least   int              `json:"least"`
	Most    int              `json:"most"`
	Seed    uint64           `json:"seed"`
	Subject string           `json:"subject"`
	Tokens  map[string]grant `json:"tokens"`
	Topic   string           `json:"topic"`
	Msgs    []message        `json:"msgs"`
}

// message is a message as it is stored.
type message struct {
	ID     string            `json:"id"`
	Key    string            `json:"key"`
	Type   string            `json:"type"`
	Header map[string]string `json:"header"`
	Data   []byte            `json:"data"`
}

func run() error {
	ping := flag.Duration("ping", 25*time.Second, "heartbeat")
	pong := flag.Duration("pong", 10*time.Second, "heartbeat")
	hold := flag.Duration("hold", 10*time.Second, "how long sessions are held")
	maxMessage := flag.Int("max-message", 2<<20, "bytes of a batch")
	lease := flag.Duration("lease", 30*time.Second, "of groups that ask for none")
	keep := flag.Int("keep", 1<<16, "messages that a topic keeps")
	ring := flag.Int("ring", 1<<16, "messages kept for readers")
	drop := flag.Bool("drop", false, "drop the oldest message of a full topic")
	pages := flag.String("pages", "", "a folder to serve to browsers")
	flag.Parse()

	memory := []memstream.Option{memstream.WithLease(*lease), memstream.WithMaxMessages(*keep)}
	if *drop {
		memory = append(memory, memstream.WithFull(memstream.DropOldest))
	}
	s := &server{mem: memstream.New(memory...)}
	s.opts = []wsstream.HandlerOption{
		wsstream.WithInsecureAnyOrigin(), // pages come through the proxy, or another one
		wsstream.WithHeartbeat(*ping, *pong), wsstream.WithHold(*hold), wsstream.WithMaxMessage(*maxMessage),
		wsstream.WithRing(*ring, 4<<20), wsstream.WithAuthorizer(s.authorize),
	}
	s.handler = wsstream.NewHandler(s.mem, s.opts...)
	if err := s.handler.Err(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { s.current().ServeHTTP(w, r) })
	if *pages != "" {
		mux.Handle("/", http.FileServer(http.Dir(*pages)))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(l, mux)
	if s.proxy, err = faultproxy.New(l.Addr().String()); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.Encode(map[string]string{"proxy": s.proxy.Addr(), "direct": l.Addr().String()})
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		answer, err := s.do(&c)
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		} else if answer == nil {
			answer = struct{}{}
		}
		out.Encode(answer)
	}
	return in.Err()
}

func (s *server) current() *wsstream.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handler
}

// replace puts another handler over the same transport in place, which knows
// nothing of what the former one knew.
func (s *server) replace() *wsstream.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.handler
	s.handler = wsstream.NewHandler(s.mem, s.opts...)
	return old
}

func (s *server) authorize(_ context.Context, _ *http.Request, token string) (*wsstream.Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		return wsstream.Everything(""), nil
	}
	if token == "" {
		return nil, wsstream.ErrNoToken
	}
	t, ok := s.tokens[token]
	if !ok {
		return nil, errors.New("no such token")
	}
	g := wsstream.Everything(t.Subject)
	if t.TTL > 0 {
		g.Expires = time.Now().Add(time.Duration(t.TTL) * time.Millisecond)
	}
	if t.Deny != "" {
		g.Publish = func(topic string) bool { return topic != t.Deny }
		g.Subscribe = func(topic, _ string) bool { return topic != t.Deny }
	}
	return g, nil
}

func (s *server) do(c *command) (any, error) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	switch c.Do {
	case "cut":
		s.proxy.Cut()
	case "refuse":
		s.proxy.Refuse(c.On)
	case "mute": // what the server says does not arrive
		s.proxy.BlackholeReplies(c.On)
	case "storm":
		s.proxy.Storm(ms(c.Least), ms(c.Most), c.Seed)
	case "links":
		return map[string]int{"accepted": s.proxy.Accepted(), "open": s.proxy.Conns()}, nil
	case "restart":
		old := s.replace()
		s.proxy.Cut()
		return nil, old.Close()
	case "drain":
		old := s.replace()
		go func() {
			old.Drain(context.Background(), ms(c.Within))
			old.Close()
		}()
	case "kick":
		return map[string]int{"kicked": s.current().Kick(func(subject string) bool { return subject == c.Subject })}, nil
	case "tokens":
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tokens = c.Tokens
	case "stats":
		return s.current().Stats(), nil
	case "publish":
		msgs := make([]transport.Message, len(c.Msgs))
		for i, m := range c.Msgs {
			msgs[i] = transport.Message{ID: m.ID, Key: m.Key, Time: time.Now(), Type: m.Type, Header: m.Header, Data: m.Data}
		}
		n, err := s.mem.Send(context.Background(), c.Topic, msgs)
		return map[string]int{"published": n}, err
	case "read":
		return s.read(c.Topic)
	default:
		return nil, fmt.Errorf("no command %q", c.Do)
	}
	return nil, nil
}

// read returns what a topic keeps.
func (s *server) read(topic string) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	end, err := s.mem.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Newest}})
	if err != nil {
		return nil, err
	}
	defer end.Close()
	last, _ := transport.As[transport.Positioner](end)
	sub, err := s.mem.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Oldest}})
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	at, _ := transport.As[transport.Positioner](sub)
	msgs := []message{}
	dst := make([]transport.Message, 256)
	for at.Position().Compare(last.Position()) < 0 {
		n, err := sub.Receive(ctx, dst)
		if err != nil {
			return nil, err
		}
		for _, m := range dst[:n] {
			msgs = append(msgs, message{m.ID, m.Key, m.Type, m.Header, m.Data})
		}
	}
	return msgs, nil
}
