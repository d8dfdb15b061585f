package policytest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

type (
	question struct{ N int }
	reply    struct{ Square int }
)

var squares = echo.NewService[question, reply]("squares")

// responding answers until the end of the test.
func responding(b *bench, f func(ctx context.Context, m echo.Message[question]) (reply, error), opts ...echo.SubscribeOption) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- echo.Respond(ctx, b.bus, squares, f, opts...) }()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(b, <-done)
	})
	b.Cleanup(stop)
	return stop
}

func square(_ context.Context, m echo.Message[question]) (reply, error) {
	return reply{m.Value.N * m.Value.N}, nil
}

func ask(b *bench, n int) (reply, error) {
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	return echo.Call(ctx, b.bus, squares, question{n})
}

// calls: requests and replies.
var calls = []promise{
	{"a call returns the reply to its own request, however many are under way", func(b *bench) {
		for range 2 {
			responding(b, square, echo.WithConcurrency(4))
		}
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				r, err := ask(b, i)
				assert.NoError(b, err)
				assert.Equal(b, i*i, r.Square)
			})
		}
		wg.Wait()
	}},
	{"those who respond share the requests", func(b *bench) {
		var one, two atomic.Int32
		meet := make(chan struct{})
		for _, n := range []*atomic.Int32{&one, &two} {
			responding(b, func(ctx context.Context, m echo.Message[question]) (reply, error) {
				n.Add(1)
				select { // both are busy at a time
				case meet <- struct{}{}:
				case <-meet:
				case <-ctx.Done():
				}
				return square(ctx, m)
			}, echo.WithPrefetch(1, 0))
		}
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				_, err := ask(b, i)
				assert.NoError(b, err)
			})
		}
		wg.Wait()
		assert.EqualValues(b, 1, one.Load())
		assert.EqualValues(b, 1, two.Load())
	}},
	{"errors travel with their code", func(b *bench) {
		responding(b, func(_ context.Context, m echo.Message[question]) (reply, error) {
			switch m.Value.N {
			case 1:
				return reply{}, fmt.Errorf("wrapped: %w", &echo.CallError{Code: "not_found", Text: "no such number"})
			case 2:
				return reply{}, errBad
			case 3:
				panic("oops")
			}
			return square(context.Background(), m)
		})
		for n, want := range map[int]echo.CallError{
			1: {Code: "not_found", Text: "no such number"},
			2: {Code: "unknown", Text: errBad.Error()},
			3: {Code: "internal", Text: "the responder panicked"},
		} {
			_, err := ask(b, n)
			e, ok := errors.AsType[*echo.CallError](err)
			require.True(b, ok, "%v", err)
			assert.Equal(b, want, *e)
			assert.ErrorContains(b, err, "echo: call squares: "+want.Code)
		}
		r, err := ask(b, 4)
		require.NoError(b, err)
		assert.Equal(b, 16, r.Square)
	}},
	{"the caller's deadline goes along, and ends the call", func(b *bench) {
		deadlines := make(chan time.Time, 10)
		ended := make(chan struct{}, 10)
		stop := responding(b, func(ctx context.Context, m echo.Message[question]) (reply, error) {
			d, _ := ctx.Deadline()
			deadlines <- d
			<-ctx.Done()
			ended <- struct{}{}
			return reply{}, ctx.Err()
		})
		ctx, cancel := context.WithTimeout(b.Context(), 300*time.Millisecond)
		defer cancel()
		want, _ := ctx.Deadline()
		begin := time.Now()
		_, err := echo.Call(ctx, b.bus, squares, question{1})
		assert.ErrorIs(b, err, context.DeadlineExceeded)
		assert.Less(b, time.Since(begin), 2*time.Second)
		assert.WithinDuration(b, want, <-deadlines, 2*time.Millisecond)
		<-ended
		stop()

		// A request that nobody took in time is not handled later.
		short, cancel := context.WithTimeout(b.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = echo.Call(short, b.bus, squares, question{2})
		assert.ErrorIs(b, err, context.DeadlineExceeded)
		time.Sleep(5 * time.Millisecond) // deadlines travel in milliseconds
		handled := make(chan int, 10)
		responding(b, func(_ context.Context, m echo.Message[question]) (reply, error) {
			handled <- m.Value.N
			return reply{}, nil
		})
		_, err = ask(b, 3)
		require.NoError(b, err)
		assert.Equal(b, 3, <-handled)
	}},
	{"a late reply is nobody else's", func(b *bench) {
		release := make(chan struct{})
		responding(b, func(ctx context.Context, m echo.Message[question]) (reply, error) {
			if m.Value.N == 1 {
				<-release
			}
			return square(ctx, m)
		}, echo.WithConcurrency(2))
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() {
			_, err := echo.Call(ctx, b.bus, squares, question{1})
			done <- err
		}()
		time.Sleep(30 * time.Millisecond)
		cancel()
		assert.ErrorIs(b, <-done, context.Canceled)
		close(release)
		for n := range 20 {
			r, err := ask(b, n+2)
			require.NoError(b, err)
			assert.Equal(b, (n+2)*(n+2), r.Square)
		}
	}},
	{"a responder that asks for it gets a request again, and answers once", func(b *bench) {
		var n atomic.Int32
		responding(b, func(ctx context.Context, m echo.Message[question]) (reply, error) {
			if n.Add(1) < 3 {
				return reply{}, echo.RetryAfter(10*time.Millisecond, errBad)
			}
			return square(ctx, m)
		})
		r, err := ask(b, 5)
		require.NoError(b, err)
		assert.Equal(b, 25, r.Square)
		assert.EqualValues(b, 3, n.Load())
	}},
	{"a request that cannot be decoded is answered, and a dead letter", func(b *bench) {
		responding(b, square)
		wrong := echo.NewService[string, reply]("squares")
		ctx, cancel := context.WithTimeout(b.Context(), patience)
		defer cancel()
		_, err := echo.Call(ctx, b.bus, wrong, "four")
		e, ok := errors.AsType[*echo.CallError](err)
		require.True(b, ok, "%v", err)
		assert.Equal(b, "bad_request", e.Code)
		c := subscribe(b, echo.DeadLetters(echo.NewTopic[question]("squares")), echo.WithGroup("look"))
		defer c.Close()
		assert.Equal(b, echo.ReasonUndecodable, take(b, c, 1)[0].Value.Reason)
	}},
	{"a request without a caller is handled", func(b *bench) {
		handled := make(chan int, 1)
		responding(b, func(_ context.Context, m echo.Message[question]) (reply, error) {
			handled <- m.Value.N
			return reply{}, nil
		})
		require.NoError(b, echo.NewProducer(b.bus, echo.NewTopic[question]("squares")).Publish(b.Context(), question{7}))
		assert.Equal(b, 7, <-handled)
	}},
}
