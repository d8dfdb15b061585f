package echo_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo"
)

type Payment struct{ ID string }

var payments = echo.NewTopic[Payment]("payments")

// paying returns a bus on which p-1 was published, and a consumer of a group.
func paying(opts ...echo.SubscribeOption) (context.Context, *echo.Bus, *echo.Consumer[Payment]) {
	ctx := context.Background()
	bus := echo.New()
	consumer, err := echo.Subscribe(ctx, bus, payments, append(opts, echo.WithGroup("bank"))...)
	if err != nil {
		panic(err)
	}
	if err := echo.NewProducer(bus, payments).Publish(ctx, Payment{"p-1"}); err != nil {
		panic(err)
	}
	return ctx, bus, consumer
}

// first returns the first message that comes, and acknowledges it.
func first[M any](ctx context.Context, bus *echo.Bus, topic *echo.Topic[M]) echo.Message[M] {
	consumer, err := echo.Subscribe(ctx, bus, topic, echo.WithGroup("first"))
	if err != nil {
		panic(err)
	}
	defer consumer.Close()
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			panic(err)
		}
		m.Ack(ctx)
		return m
	}
	panic("no message came")
}

func ExampleWithRetry() {
	ctx, bus, consumer := paying(echo.WithRetry(echo.Retry{
		Attempts: 3,
		Table:    []time.Duration{time.Millisecond, 5 * time.Millisecond},
	}))
	defer bus.Close(ctx)
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		fmt.Println("attempt", m.Attempt)
		if m.Attempt < 3 {
			return errors.New("the bank is busy")
		}
		return consumer.Close()
	})
	// Output:
	// attempt 1
	// attempt 2
	// attempt 3
}

func ExampleReject() {
	ctx, bus, consumer := paying()
	defer bus.Close(ctx)
	go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		return echo.Reject(errors.New("no such account"))
	})
	letter := first(ctx, bus, echo.DeadLetters(payments)).Value
	fmt.Println(letter.Reason, "after attempt", letter.Attempts)
	fmt.Println(letter.Error)
	// Output:
	// rejected after attempt 1
	// no such account
}

func ExampleRetryAfter() {
	ctx, bus, consumer := paying()
	defer bus.Close(ctx)
	var failed time.Time
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		if m.Attempt == 1 {
			failed = time.Now()
			return echo.RetryAfter(30*time.Millisecond, errors.New("the bank is closed"))
		}
		fmt.Println("attempt", m.Attempt, "not before it is open:", time.Since(failed) >= 30*time.Millisecond)
		return consumer.Close()
	})
	// Output: attempt 2 not before it is open: true
}

func ExampleDeadLetters() {
	ctx, bus, consumer := paying(echo.WithRetry(echo.Retry{Attempts: 1}))
	defer bus.Close(ctx)
	go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		return errors.New("card declined")
	})
	support, err := echo.Subscribe(ctx, bus, echo.DeadLetters(payments), echo.WithGroup("support"))
	if err != nil {
		panic(err)
	}
	support.Run(ctx, func(ctx context.Context, m echo.Message[echo.DeadLetter[Payment]]) error {
		fmt.Println(m.Topic, m.Value.Value.ID, m.Value.Group, m.Value.Reason, m.Value.Error)
		return support.Close()
	})
	// Output: payments.dead p-1 bank attempts card declined
}

func ExampleRedrive() {
	ctx, bus, consumer := paying(echo.WithRetry(echo.Retry{Attempts: 1}))
	defer bus.Close(ctx)
	mended := false // guarded by the order of things: first fails, then is sent home
	paid := make(chan struct{})
	go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		if !mended {
			return errors.New("card declined")
		}
		close(paid)
		return nil
	})
	letter := first(ctx, bus, echo.DeadLetters(payments))
	mended = true
	done, err := echo.Redrive(ctx, bus, payments, func(m echo.Message[echo.DeadLetter[Payment]]) bool {
		return m.ID == letter.ID
	}, 0)
	<-paid
	fmt.Println(done.Sent, "sent home,", done.Kept, "kept", err)
	// Output: 1 sent home, 0 kept <nil>
}

func ExampleMessage_Reject() {
	ctx, bus, consumer := paying()
	defer bus.Close(ctx)
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			panic(err)
		}
		fmt.Println(m.Reject(ctx, errors.New("no such account")))
		break
	}
	fmt.Println(first(ctx, bus, echo.DeadLetters(payments)).Value.Error)
	// Output:
	// <nil>
	// no such account
}

func ExampleConsumer_Stats() {
	ctx, bus, consumer := paying(echo.WithRetry(echo.Retry{Attempts: 3, Table: []time.Duration{time.Millisecond}}))
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		if m.Attempt == 1 {
			return errors.New("the bank is busy")
		}
		return consumer.Close()
	})
	bus.Close(ctx)
	s := consumer.Stats()
	fmt.Println(s.Failed, "failed,", s.Handled, "handled,", s.Dead, "dead")
	// Output: 1 failed, 1 handled, 0 dead
}

func ExampleWithDelay() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	producer := echo.NewProducer(bus, payments)
	producer.Publish(ctx, Payment{"later"}, echo.WithDelay(20*time.Millisecond))
	producer.Publish(ctx, Payment{"now"})
	consumer, _ := echo.Subscribe(ctx, bus, payments, echo.WithGroup("bank"))
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		fmt.Println(m.Value.ID)
		if m.Value.ID == "later" {
			return consumer.Close()
		}
		return nil
	})
	// Output:
	// now
	// later
}

func ExampleWithTTL() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	producer := echo.NewProducer(bus, payments)
	producer.Publish(ctx, Payment{"too late"}, echo.WithTTL(time.Millisecond))
	producer.Publish(ctx, Payment{"in time"}, echo.WithTTL(time.Hour))
	time.Sleep(5 * time.Millisecond) // nobody consumes yet
	consumer, _ := echo.Subscribe(ctx, bus, payments, echo.WithGroup("bank"))
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		fmt.Println(m.Value.ID)
		return consumer.Close()
	})
	fmt.Println(consumer.Stats().Expired, "expired")
	// Output:
	// in time
	// 1 expired
}

func ExampleWithDedup() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	once := echo.NewTopic[Payment]("payments", echo.WithDedup(time.Hour))
	producer := echo.NewProducer(bus, once)
	for range 3 { // as after ErrPublishUnknown
		fmt.Println(producer.Publish(ctx, Payment{"p-1"}, echo.WithIdempotencyKey("invoice-7")))
	}
	producer.Publish(ctx, Payment{"p-2"})
	consumer, _ := echo.Subscribe(ctx, bus, once, echo.WithGroup("bank"))
	consumer.Run(ctx, func(ctx context.Context, m echo.Message[Payment]) error {
		fmt.Println(m.Value.ID)
		if m.Value.ID == "p-2" {
			return consumer.Close()
		}
		return nil
	})
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// p-1
	// p-2
}

func ExampleUpcast() {
	type celsius struct{ Degrees float64 }
	type kelvin struct{ Degrees float64 }
	readings := echo.NewTopic[kelvin]("readings", echo.WithVersion(1),
		echo.Upcast(0, func(c celsius) (kelvin, error) { return kelvin{c.Degrees + 273.15}, nil }))
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	echo.NewProducer(bus, echo.NewTopic[celsius]("readings")).Publish(ctx, celsius{20}) // by an old program
	m := first(ctx, bus, readings)
	fmt.Println("version", m.Version, "is", m.Value.Degrees)

	// In a test, with what such a program wrote:
	v, err := readings.Decode("application/json", []byte(`{"Degrees":20}`))
	fmt.Println(v.Degrees, err)
	// Output:
	// version 0 is 293.15
	// 293.15 <nil>
}

func ExampleCall() {
	type question struct{ N int }
	type answer struct{ Square int }
	squares := echo.NewService[question, answer]("squares")
	bus := echo.New()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan error)
	go func() {
		done <- echo.Respond(ctx, bus, squares, func(ctx context.Context, m echo.Message[question]) (answer, error) {
			if m.Value.N > 1000 {
				return answer{}, &echo.CallError{Code: "too_large", Text: "I know numbers up to 1000"}
			}
			return answer{m.Value.N * m.Value.N}, nil
		})
	}()
	a, err := echo.Call(ctx, bus, squares, question{7})
	fmt.Println(a.Square, err)
	_, err = echo.Call(ctx, bus, squares, question{7000})
	if e, ok := errors.AsType[*echo.CallError](err); ok {
		fmt.Println(e.Code)
	}
	stop()
	fmt.Println(<-done)
	bus.Close(context.Background())
	// Output:
	// 49 <nil>
	// too_large
	// <nil>
}

// The caller's deadline is the responder's, too.
func ExampleRespond() {
	hours := echo.NewService[string, string]("hours")
	bus := echo.New()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go echo.Respond(ctx, bus, hours, func(ctx context.Context, m echo.Message[string]) (string, error) {
		<-ctx.Done() // takes too long
		close(ended)
		return "", ctx.Err()
	})
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := echo.Call(short, bus, hours, "when do you open?")
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	<-ended
	stop()
	bus.Close(context.Background())
	// Output: true
}

func ExampleOpen() {
	ctx := context.Background()
	url := "mem://?messages=1000&full=reject" // from the configuration, most likely
	bus, err := echo.Open(ctx, url)
	if err != nil {
		panic(err)
	}
	defer bus.Close(ctx)
	fmt.Println(echo.NewProducer(bus, payments).Publish(ctx, Payment{"p-1"}))

	_, err = echo.Open(ctx, "mem://?message=1000")
	fmt.Println(err)
	// Output:
	// <nil>
	// echo: transport: open mem://…: the URL has a parameter "message"; there are age, bytes, full, lease, messages
}
