package redisstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/transport"
)

// fault is what an error says of a command.
type fault uint8

const (
	none      fault = iota
	refused         // not done; may succeed later
	rejected        // not done; will not succeed
	ambiguous       // whether it was done is unknown
	lostGroup       // not done; the group or the stream is gone
	moved           // not done; another node of the cluster has the stream
)

// faults tell server errors by how they begin, the first match counts. What
// begins with none of them is rejected.
var faults = []struct {
	prefix string
	fault  fault
}{
	{"NOGROUP", lostGroup},
	{"UNBLOCKED the stream key no longer exists", lostGroup},
	{"UNBLOCKED", refused},
	{"LOADING", refused},
	{"READONLY", refused},
	{"NOREPLICAS", refused},
	{"MASTERDOWN", refused},
	{"CLUSTERDOWN", refused},
	{"TRYAGAIN", refused},
	{"BUSY ", refused}, // a script runs
	{"OOM", refused},
	{"MISCONF", refused},
	{"NOSCRIPT", refused},
	{"ERR max number of clients", refused},
	{"MOVED", moved},
	{"ASK", moved},
}

// faultOf classifies the error of a command.
func faultOf(err error) fault {
	var reply redis.Error
	var dial *net.OpError
	switch {
	case err == nil, errors.Is(err, redis.Nil):
		return none
	case errors.As(err, &reply):
		// Redis before 7.0 hides the code of an error within a script.
		text := reply.Error()
		if i := strings.Index(text, "@user_script: "); i >= 0 && strings.HasPrefix(text, "ERR Error running script") {
			_, text, _ = strings.Cut(text[i:], " -")
		}
		for _, f := range faults {
			if strings.HasPrefix(text, f.prefix) {
				return f.fault
			}
		}
		return rejected
	case errors.As(err, &dial) && dial.Op == "dial", errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted),
		errors.Is(err, redis.ErrClosed): // by renew; Close is seen elsewhere
		return refused
	case errors.Is(err, errMalformed):
		return rejected
	}
	return ambiguous
}

var errMalformed = errors.New("malformed reply")

// backoff is how long to wait between attempts: it doubles, with jitter.
type backoff struct{ d time.Duration }

const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// next returns the next pause.
func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, firstPause), lastPause)
	return b.d/2 + rand.N(b.d/2)
}

// wait waits for the next pause to pass, or until ctx ends or stop is closed.
func (b *backoff) wait(ctx context.Context, stop <-chan struct{}) error {
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-stop:
		return transport.ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ended says of what was not done before ctx ended both why it ended and what
// last stood in the way.
func ended(ctx context.Context, err error) error {
	end := context.Cause(ctx)
	if d, ok := ctx.Deadline(); ok && end == nil && !time.Now().Before(d) {
		end = context.DeadlineExceeded // the connection, which has the same deadline, was first to see it
	}
	if end != nil && !errors.Is(err, end) {
		return fmt.Errorf("%w; last: %w", end, err)
	}
	return err
}

// describe says which command failed with which key.
func describe(command, key string, err error) error {
	return fmt.Errorf("redisstream: %s %s: %w", command, key, err)
}
