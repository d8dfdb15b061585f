package redisstream_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/transport"
)

// Each read that ends without a message replies with an array that is nil, and
// a consumer that is idle for a minute has many in a row.
func TestSubscriptionOutlivesAnyNumberOfReadsWithoutAMessage(t *testing.T) {
	tr := fresh(shared.Options())
	defer tr.Close()
	for _, group := range []string{"", "g"} {
		topic := "t" + group
		s := subscribe(t, tr, topic, transport.Options{Group: group})
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			_, err := s.Receive(ctx, make([]transport.Message, 1))
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		send(t, tr, topic, "a")
		receive(t, s, 1)
	}
}
