package echo_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
)

var anOrder = order{"o-1", 3, 12.5, "alice"}

func valueBus(b testing.TB) *echo.Bus {
	return newBus(b, echo.WithTransport(memstream.New(memstream.WithValues())))
}

func BenchmarkPublish(b *testing.B) {
	for mode, bus := range map[string]*echo.Bus{"json": newBus(b), "value": valueBus(b)} {
		b.Run(mode, func(b *testing.B) {
			ctx, p := context.Background(), echo.NewProducer(bus, orders)
			b.ReportAllocs()
			for b.Loop() {
				p.Publish(ctx, anOrder)
			}
		})
	}
}

// BenchmarkDeliver measures what a consumer costs by itself.
func BenchmarkDeliver(b *testing.B) {
	const n = 60_000
	for mode, bus := range map[string]*echo.Bus{"json": newBus(b), "value": valueBus(b)} {
		b.Run(mode, func(b *testing.B) {
			ctx, p := context.Background(), echo.NewProducer(bus, orders)
			for range n {
				p.Publish(ctx, anOrder)
			}
			b.ReportAllocs()
			for b.Loop() {
				c := subscribe(b, bus, orders, echo.FromOldest())
				got := 0
				c.Run(ctx, func(context.Context, echo.Message[order]) error {
					if got++; got == n {
						c.Close()
					}
					return nil
				})
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/message")
		})
	}
}

// BenchmarkPublishToHandler measures both sides at once.
func BenchmarkPublishToHandler(b *testing.B) {
	for _, c := range []struct {
		name  string
		bus   func(testing.TB) *echo.Bus
		subs  int
		group []echo.SubscribeOption
	}{
		{"json/1x1", func(b testing.TB) *echo.Bus { return newBus(b) }, 1, nil},
		{"json/1x8", func(b testing.TB) *echo.Bus { return newBus(b) }, 8, nil},
		{"value/1x1", valueBus, 1, nil},
		{"value/1x8", valueBus, 8, nil},
		{"value/group4", valueBus, 4, []echo.SubscribeOption{echo.WithGroup("g")}},
	} {
		b.Run(c.name, func(b *testing.B) {
			bus := c.bus(b)
			counts := make([]struct {
				atomic.Int64
				_ [56]byte // a cache line each
			}, c.subs)
			for i := range counts {
				running(b, subscribe(b, bus, orders, c.group...), func(context.Context, echo.Message[order]) error {
					counts[i].Add(1)
					return nil
				})
			}
			ctx, p := context.Background(), echo.NewProducer(bus, orders)
			b.ReportAllocs()
			for b.Loop() {
				p.Publish(ctx, anOrder)
			}
			want := int64(b.N * c.subs)
			if c.group != nil {
				want = int64(b.N)
			}
			for got := int64(0); got < want; time.Sleep(20 * time.Microsecond) {
				got = 0
				for i := range counts {
					got += counts[i].Load()
				}
			}
		})
	}
}

func BenchmarkConcurrentPublish(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ctx, p := context.Background(), echo.NewProducer(valueBus(b), orders)
			b.SetParallelism(n)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					p.Publish(ctx, anOrder)
				}
			})
		})
	}
}
