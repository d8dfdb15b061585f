// Command ticker is one to many: prices that go to as many links as you say, and
// a page that plots how many arrive and how long they take.
//
//	go run ./examples/ticker -links 1000              # then open http://127.0.0.1:8091
//	go run ./examples/ticker -redis redis://127.0.0.1:6379    # two nodes, half the links at each
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo"
	js "github.com/echobus/echo/clients/js"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// Tick is a price at a moment.
type Tick struct {
	Price float64   `json:"price"`
	At    time.Time `json:"at"`
}

// Report is what all links together saw in a second.
type Report struct {
	Links      int     `json:"links"`
	Deliveries int     `json:"deliveries"`
	P50        float64 `json:"p50"` // milliseconds
	P99        float64 `json:"p99"`
}

var (
	ticks   = echo.NewTopic[Tick]("ticks")
	reports = echo.NewTopic[Report]("reports")
)

//go:embed page
var page embed.FS

func main() {
	addr := flag.String("addr", "127.0.0.1:8091", "where to listen; with -redis a second node has the next port")
	redis := flag.String("redis", "", "the `URL` of a Redis server, to which each node connects")
	links := flag.Int("links", 500, "links to open")
	rate := flag.Int("rate", 20, "ticks a second")
	last := flag.Duration("for", 0, "end after so long; 0: when interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *last > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *last)
		defer cancel()
	}
	if err := run(ctx, *addr, *redis, *links, *rate); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr, redis string, links, rate int) error {
	nodes := []transport.Transport{memstream.New(memstream.WithMaxMessages(1000), memstream.WithFull(memstream.DropOldest))}
	if redis != "" {
		nodes = nil
		for range 2 {
			t, err := redisstream.Open(ctx, redis)
			if err != nil {
				return err
			}
			nodes = append(nodes, t)
		}
	}
	var urls []string
	for i, t := range nodes {
		url, stop, err := serve(t, addr, i)
		if err != nil {
			return err
		}
		defer t.Close()
		defer stop()
		urls = append(urls, url)
		fmt.Printf("see it at http%s\n", url[2:len(url)-len("/echo")])
	}
	bus := echo.New(echo.WithTransport(transport.KeepOpen(nodes[0])))
	var working sync.WaitGroup
	defer working.Wait()
	var seen meter
	for i := range links {
		link, err := wsstream.Dial(ctx, urls[i%len(urls)])
		if err != nil {
			return err
		}
		working.Go(func() { watch(ctx, link, &seen) })
	}
	fmt.Printf("%d links are open\n", links)
	working.Go(func() { tell(ctx, echo.NewProducer(bus, reports), links, &seen) })
	p := echo.NewProducer(bus, ticks)
	clock := time.NewTicker(time.Second / time.Duration(rate))
	defer clock.Stop()
	for price := 100.0; ; price *= 1 + rand.NormFloat64()/200 {
		select {
		case <-clock.C:
		case <-ctx.Done():
			return nil
		}
		if err := p.Publish(ctx, Tick{price, time.Now()}); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// serve starts a node, the i-th, and returns where its links lead.
func serve(t transport.Transport, addr string, i int) (url string, stop func(), err error) {
	at, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", nil, err
	}
	if at.Port != 0 {
		at.Port += i
	}
	l, err := net.ListenTCP("tcp", at)
	if err != nil {
		return "", nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return "", nil, err
	}
	h := wsstream.NewHandler(t) // to read only, by anybody
	mux := http.NewServeMux()
	mux.Handle("/echo", h)
	mux.Handle("/echo.js", http.FileServerFS(js.Files))
	mux.Handle("/", http.FileServerFS(files))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go s.Serve(l)
	return "ws://" + l.Addr().String() + "/echo", func() {
		h.Close()
		s.Close()
	}, nil
}

// meter collects how long deliveries took.
type meter struct {
	mu   sync.Mutex
	took []time.Duration
}

func (m *meter) add(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.took = append(m.took, d)
}

// watch reads ticks on a link until ctx ends.
func watch(ctx context.Context, link transport.Transport, m *meter) {
	bus := echo.New(echo.WithTransport(link))
	defer bus.Close(context.WithoutCancel(ctx))
	c, err := echo.Subscribe(ctx, bus, ticks)
	if err != nil {
		return
	}
	c.Run(ctx, func(_ context.Context, t echo.Message[Tick]) error {
		m.add(time.Since(t.Value.At))
		return nil
	})
}

// tell reports, once a second, what was seen.
func tell(ctx context.Context, p *echo.Producer[Report], links int, m *meter) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-second.C:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		took := m.took
		m.took = nil
		m.mu.Unlock()
		if len(took) == 0 {
			continue
		}
		slices.Sort(took)
		ms := func(percent int) float64 { return float64(took[(len(took)-1)*percent/100].Microseconds()) / 1000 }
		r := Report{links, len(took), ms(50), ms(99)}
		fmt.Printf("%6d deliveries  p50 %6.2f ms  p99 %6.2f ms\n", r.Deliveries, r.P50, r.P99)
		p.Publish(ctx, r)
	}
}
