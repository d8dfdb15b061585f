package echotel

import (
	"context"
	"math"
	"math/rand/v2"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"
)

// sampler chooses by chance what one producer or consumer looks at. It draws how
// many to pass by until the next one, which costs less than to draw for each.
type sampler struct {
	ratio float64
	left  atomic.Int64
}

func newSampler(ratio float64) *sampler {
	s := &sampler{ratio: ratio}
	s.left.Store(s.gap())
	return s
}

// looks reports whether something is to be traced and timed that no message
// says to be part of a trace.
func (s *sampler) looks(ctx context.Context) bool {
	if s.ratio >= 1 {
		return true
	}
	if s.left.Add(-1) < 0 {
		s.left.Store(s.gap())
		return true
	}
	return trace.SpanContextFromContext(ctx).IsSampled()
}

// gap is how many are passed by between two that are looked at: it has the
// geometric distribution, so that each is looked at with the same probability.
func (s *sampler) gap() int64 {
	if s.ratio <= 0 {
		return math.MaxInt64
	}
	return int64(math.Min(math.Log1p(-rand.Float64())/math.Log1p(-min(s.ratio, 1-1e-9)), 1<<62))
}
