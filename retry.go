package echo

import (
	"math/rand/v2"
	"time"
)

// backoff returns how long to wait after an attempt failed, 1 being the first:
// exponential with full jitter, that is evenly distributed up to
// min(limit, base·2^(attempt-1)). See Brooker, "Exponential Backoff And
// Jitter", AWS Architecture Blog, 2015.
func backoff(attempt int, base, limit time.Duration) time.Duration {
	d := base
	for i := 1; i < attempt && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	if d <= 0 {
		return 0
	}
	return 1 + rand.N(d)
}
