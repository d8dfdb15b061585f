package memstream

import (
	"context"
	"fmt"
	"testing"

	"github.com/echobus/echo/transport"
)

func BenchmarkSendReceiveAck(b *testing.B) {
	for _, batch := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			t := New()
			ctx := context.Background()
			sub, _ := t.Subscribe(ctx, "t", transport.Options{Group: "g"})
			msgs := make([]transport.Message, batch)
			for i := range msgs {
				msgs[i] = transport.Message{ID: "1", Data: []byte("x"), Time: start}
			}
			dst := make([]transport.Message, batch)
			rs := make([]transport.Receipt, batch)
			b.ReportAllocs()
			for n := 0; n < b.N; n += batch {
				if _, err := t.Send(ctx, "t", msgs); err != nil {
					b.Fatal(err)
				}
				k, err := sub.Receive(ctx, dst)
				if k != batch || err != nil {
					b.Fatal(k, err)
				}
				for i := range dst[:k] {
					rs[i] = dst[i].Receipt()
				}
				if err := sub.(transport.Acker).Ack(ctx, rs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
