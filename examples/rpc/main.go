// Command rpc shows request and reply: a service that two responders share,
// an error with a code, and a call whose deadline passes.
//
//	go run ./examples/rpc
//	ECHO_URL=redis://localhost:6379 go run ./examples/rpc
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo"
	_ "github.com/echobus/echo/redisstream"
	_ "github.com/echobus/echo/wsstream"
)

type Question struct{ Article string }

type Answer struct {
	Cents int
	By    string // which responder
}

// The contract between those who ask and those who answer.
var prices = echo.NewService[Question, Answer]("rpc.prices")

var cents = map[string]int{"pear": 40, "plum": 15, "melon": 350}

// desk is a responder. The first two requests that it and the other one get
// wait for each other, to show that both are at work.
func desk(name string, meet chan struct{}) func(context.Context, echo.Message[Question]) (Answer, error) {
	first := true
	return func(ctx context.Context, m echo.Message[Question]) (Answer, error) {
		if first {
			first = false
			select {
			case meet <- struct{}{}:
			case <-meet:
			case <-ctx.Done(): // has the caller's deadline
				return Answer{}, ctx.Err()
			}
		}
		if m.Value.Article == "truffle" {
			<-ctx.Done() // takes longer than anybody waits
			return Answer{}, ctx.Err()
		}
		price, ok := cents[m.Value.Article]
		if !ok {
			return Answer{}, &echo.CallError{Code: "not_found", Text: "we have no " + m.Value.Article}
		}
		return Answer{price, name}, nil
	}
}

func main() {
	ctx, stop := context.WithCancel(context.Background())
	bus, err := echo.Open(ctx, cmp.Or(os.Getenv("ECHO_URL"), "mem://"))
	check(err)
	var desks sync.WaitGroup
	meet := make(chan struct{})
	for _, name := range []string{"desk 1", "desk 2"} {
		desks.Go(func() { check(echo.Respond(ctx, bus, prices, desk(name, meet), echo.WithPrefetch(1, 0))) })
	}
	ask := func(article string, within time.Duration) (Answer, error) {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return echo.Call(ctx, bus, prices, Question{article})
	}

	// Two calls at once, and each gets its own reply.
	articles := []string{"pear", "plum"}
	answers := make([]Answer, len(articles))
	var calls sync.WaitGroup
	for i, article := range articles {
		calls.Go(func() {
			var err error
			answers[i], err = ask(article, 10*time.Second)
			check(err)
		})
	}
	calls.Wait()
	by := []string{answers[0].By, answers[1].By}
	slices.Sort(by)
	fmt.Printf("a pear is %d, a plum is %d, said %q\n", answers[0].Cents, answers[1].Cents, by)

	_, err = ask("mango", 10*time.Second)
	if e, ok := errors.AsType[*echo.CallError](err); ok {
		fmt.Printf("code %s: %s\n", e.Code, e.Text)
	}
	_, err = ask("truffle", 200*time.Millisecond)
	fmt.Println("truffle: too late:", errors.Is(err, context.DeadlineExceeded))
	melon, err := ask("melon", 10*time.Second)
	check(err)
	fmt.Printf("a melon is %d\n", melon.Cents)

	stop() // the responders end
	desks.Wait()
	_, err = bus.Close(context.Background())
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
