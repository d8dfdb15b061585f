package echo_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
)

type Order struct {
	ID       string
	Quantity int
	Total    float64
	Customer string
}

func BenchmarkRun(b *testing.B) {
	for _, mode := range []string{"json", "value"} {
		for _, subs := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/1x%d", mode, subs), func(b *testing.B) {
				opts := []memstream.Option{memstream.WithMaxMessages(maxN())}
				if mode == "value" {
					opts = append(opts, memstream.WithValues())
				}
				ctx := context.Background()
				bus := echo.New(echo.WithTransport(memstream.New(opts...)))
				topic := echo.NewTopic[Order]("orders")
				p := echo.NewProducer(bus, topic)
				done := make(chan struct{}, subs)
				for range subs {
					c, err := echo.Subscribe(ctx, bus, topic, echo.WithPrefetch(pre(), 0))
					if err != nil {
						b.Fatal(err)
					}
					n := 0
					go func() {
						if err := c.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
							if n++; n == b.N {
								done <- struct{}{}
							}
							return nil
						}); err != nil {
							panic(err)
						}
					}()
				}
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					if err := p.Publish(ctx, Order{"o-1", 3, 12.5, "alice"}); err != nil {
						b.Fatal(err)
					}
				}
				for range subs {
					<-done
				}
				b.StopTimer()
				bus.Close(ctx)
			})
		}
	}
}

func TestSmoke(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	bus := echo.New()
	topic := echo.NewTopic[Order]("orders")
	c, err := echo.Subscribe(ctx, bus, topic, echo.WithGroup("g"))
	if err != nil {
		t.Fatal(err)
	}
	p := echo.NewProducer(bus, topic)
	if err := p.Publish(ctx, Order{ID: "o-1"}); err != nil {
		t.Fatal(err)
	}
	for m, err := range c.Messages(ctx) {
		fmt.Println(m.ID, m.Value, m.Attempt, err, m.Ack(ctx), m.Ack(ctx))
		break
	}
	fmt.Println(bus.Close(ctx))
}

func BenchmarkGroup4(b *testing.B) {
	ctx := context.Background()
	bus := echo.New(echo.WithTransport(memstream.New(memstream.WithValues(), memstream.WithMaxMessages(maxN()))))
	topic := echo.NewTopic[Order]("orders")
	p := echo.NewProducer(bus, topic)
	var n [4]struct {
		atomic.Int64
		_ [56]byte
	}
	for i := range 4 {
		c, err := echo.Subscribe(ctx, bus, topic, echo.WithGroup("g"), echo.WithPrefetch(pre(), 0))
		if err != nil {
			b.Fatal(err)
		}
		go c.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
			n[i].Add(1)
			return nil
		})
	}
	for b.Loop() {
		p.Publish(ctx, Order{"o-1", 3, 12.5, "alice"})
	}
	for n[0].Load()+n[1].Load()+n[2].Load()+n[3].Load() < int64(b.N) {
		time.Sleep(20 * time.Microsecond)
	}
	b.Logf("%d %d %d %d", n[0].Load(), n[1].Load(), n[2].Load(), n[3].Load())
	bus.Close(ctx)
}

func maxN() int {
	n := 1 << 16
	fmt.Sscan(os.Getenv("MAXN"), &n)
	return n
}

func BenchmarkDeliver(b *testing.B) {
	ctx := context.Background()
	bus := echo.New(echo.WithTransport(memstream.New(memstream.WithValues())))
	topic := echo.NewTopic[Order]("orders")
	p := echo.NewProducer(bus, topic)
	for range 60000 {
		p.Publish(ctx, Order{"o-1", 3, 12.5, "alice"})
	}
	b.ReportAllocs()
	for b.Loop() {
		c, err := echo.Subscribe(ctx, bus, topic, echo.FromOldest())
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		c.Run(ctx, func(ctx context.Context, m echo.Message[Order]) error {
			if n++; n == 60000 {
				c.Close()
			}
			return nil
		})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/60000, "ns/delivery")
}

func BenchmarkPublish(b *testing.B) {
	ctx := context.Background()
	bus := echo.New(echo.WithTransport(memstream.New(memstream.WithValues(), memstream.WithMaxMessages(maxN()))))
	topic := echo.NewTopic[Order]("orders")
	p := echo.NewProducer(bus, topic)
	b.ReportAllocs()
	for b.Loop() {
		p.Publish(ctx, Order{"o-1", 3, 12.5, "alice"})
	}
}

func pre() int {
	n := 1024
	fmt.Sscan(os.Getenv("PRE"), &n)
	return n
}
