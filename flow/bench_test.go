package flow_test

import (
	"context"
	"testing"

	"github.com/echobus/echo/flow"
)

// BenchmarkSequence is a sequence of ten functions that do next to nothing.
func BenchmarkSequence(b *testing.B) {
	step := flow.Func("f", func(_ context.Context, i int) (int, error) { return i + 1, nil })
	f := flow.Must("f", flow.Then(flow.Then4(step, step, step, step), flow.Then3(flow.Then3(step, step, step), step, flow.Then(step, step))))
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if n, err := f.Run(ctx, 1); n != 11 || err != nil {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10, "ns/step")
}

func BenchmarkGroup8(b *testing.B) {
	steps := make([]flow.Step[int, int], 8)
	for i := range steps {
		steps[i] = flow.Func("f", func(_ context.Context, i int) (int, error) { return i + 1, nil })
	}
	f := flow.Must("f", flow.All("g", steps...))
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		f.Run(ctx, 1)
	}
}
