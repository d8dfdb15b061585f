// Command workqueue shows a group that shares jobs. One worker crashes with
// jobs in its hands, one handler panics, and still every job is done.
package main

import (
	"context"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/echobus/echo"
)

type Job struct{ N int }

const total = 200

var jobs = echo.NewTopic[Job]("jobs")

func main() {
	ctx := context.Background()
	bus := echo.New()
	producer := echo.NewProducer(bus, jobs)
	for i := range total {
		if err := producer.Publish(ctx, Job{i}); err != nil {
			log.Fatal(err)
		}
	}
	crashed := crash(ctx, bus)
	fmt.Printf("a worker crashed with %d jobs in its hands\n", crashed)

	var (
		mu     sync.Mutex
		done   = map[int]bool{}
		again  int // jobs done at a second attempt
		finish = make(chan struct{})
	)
	for range 3 {
		worker := join(ctx, bus)
		go worker.Run(ctx, func(ctx context.Context, m echo.Message[Job]) error {
			if m.Value.N == 150 && m.Attempt == 1 {
				panic("job 150 is a hard one")
			}
			mu.Lock()
			defer mu.Unlock()
			if m.Attempt > 1 {
				again++
			}
			if done[m.Value.N] = true; len(done) == total {
				close(finish)
			}
			return nil
		})
	}
	<-finish
	bus.Close(ctx)
	fmt.Printf("%d of %d jobs done, %d of them at a second attempt\n", len(done), total, again)
}

func join(ctx context.Context, bus *echo.Bus) *echo.Consumer[Job] {
	worker, err := echo.Subscribe(ctx, bus, jobs, echo.WithGroup("workers"), echo.WithRetry(echo.Retry{Min: time.Millisecond, Max: time.Second}))
	if err != nil {
		log.Fatal(err)
	}
	return worker
}

// crash is a worker that takes jobs and dies before it finishes any: what it
// held goes back to the group.
func crash(ctx context.Context, bus *echo.Bus) (held int) {
	worker := join(ctx, bus)
	defer worker.Close()
	for _, err := range worker.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if held++; held == 10 {
			break
		}
	}
	return held
}
