// Command chat is rooms to talk in: many to many, with what was said before you
// came, in browsers and in programs at once.
//
//	go run ./examples/chat                          # then open http://127.0.0.1:8090 in two tabs
//	go run ./examples/chat -join ws://127.0.0.1:8090/echo -name gopher
//	go run ./examples/chat -redis redis://127.0.0.1:6379    # two nodes, which share the rooms
package main

import (
	"bufio"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/echobus/echo"
	js "github.com/echobus/echo/clients/js"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// Line is something somebody said.
type Line struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// room is the topic of a room.
func room(name string) *echo.Topic[Line] { return echo.NewTopic[Line]("chat." + name) }

//go:embed page
var page embed.FS

func main() {
	addr := flag.String("addr", "127.0.0.1:8090", "where to listen; with -redis a second node has the next port")
	redis := flag.String("redis", "", "the `URL` of a Redis server to keep the rooms in")
	join := flag.String("join", "", "the `URL` of a chat to take part in from here")
	name := flag.String("name", os.Getenv("USER"), "who you are, with -join")
	in := flag.String("room", "lobby", "the room to go to, with -join")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case *join != "":
		err = talk(ctx, *join, *in, *name)
	case *redis != "":
		err = serve(ctx, *addr, 2, func() (transport.Transport, error) { return redisstream.Open(ctx, *redis) })
	default:
		err = serve(ctx, *addr, 1, func() (transport.Transport, error) {
			return memstream.New(memstream.WithMaxMessages(1000), memstream.WithFull(memstream.DropOldest)), nil
		})
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve runs nodes on ports one after the other until ctx ends.
func serve(ctx context.Context, addr string, nodes int, open func() (transport.Transport, error)) error {
	first, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return err
	}
	for i := range nodes {
		t, err := open()
		if err != nil {
			return err
		}
		defer t.Close()
		h := wsstream.NewHandler(t, wsstream.WithAnonymous(guest))
		defer h.Close()
		at := *first
		if at.Port != 0 {
			at.Port += i
		}
		l, err := net.ListenTCP("tcp", &at)
		if err != nil {
			return err
		}
		files, err := fs.Sub(page, "page")
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("/echo", h)
		mux.Handle("/echo.js", http.FileServerFS(js.Files))
		mux.Handle("/", http.FileServerFS(files))
		s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		defer s.Close()
		go s.Serve(l)
		fmt.Printf("talk at http://%s\n", l.Addr())
	}
	<-ctx.Done()
	return nil
}

// guest is what everybody may: read and write in all rooms.
var guest = &wsstream.Grant{
	Subscribe: func(topic, group string) bool { return group == "" && strings.HasPrefix(topic, "chat.") },
	Publish:   func(topic string) bool { return strings.HasPrefix(topic, "chat.") },
}

// talk takes part from a terminal.
func talk(ctx context.Context, url, in, name string) error {
	link, err := wsstream.Dial(ctx, url, wsstream.WithState(func(s wsstream.State) {
		if !s.Up {
			fmt.Println("-- the link is down, wait")
		}
	}))
	if err != nil {
		return err
	}
	bus := echo.New(echo.WithTransport(link))
	defer bus.Close(context.WithoutCancel(ctx))
	consumer, err := echo.Subscribe(ctx, bus, room(in), echo.FromOldest())
	if err != nil {
		return err
	}
	said := make(chan error, 1)
	go func() { said <- say(ctx, echo.NewProducer(bus, room(in)), name) }()
	heard := make(chan error, 1)
	go func() {
		heard <- consumer.Run(ctx, func(_ context.Context, m echo.Message[Line]) error {
			fmt.Printf("%s  %s: %s\n", m.Time.Local().Format(time.TimeOnly), m.Value.Name, m.Value.Text)
			return nil
		})
	}()
	select {
	case err = <-said:
		time.Sleep(200 * time.Millisecond) // to hear oneself
	case err = <-heard:
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// say publishes what is typed.
func say(ctx context.Context, p *echo.Producer[Line], name string) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if text := strings.TrimSpace(lines.Text()); text != "" {
			if err := p.Publish(ctx, Line{name, text}); err != nil {
				return err
			}
		}
	}
	return nil
}
