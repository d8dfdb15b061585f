package echo_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo"
)

type Greeting struct{ Text string }

var greetings = echo.NewTopic[Greeting]("greetings")

func Example() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)

	consumer, err := echo.Subscribe(ctx, bus, greetings, echo.WithGroup("readers"))
	if err != nil {
		panic(err)
	}
	producer := echo.NewProducer(bus, greetings)
	if err := producer.Publish(ctx, Greeting{"hello"}); err != nil {
		panic(err)
	}
	err = consumer.Run(ctx, func(ctx context.Context, m echo.Message[Greeting]) error {
		fmt.Println(m.Value.Text)
		return consumer.Close() // one is enough for an example
	})
	fmt.Println(err)
	// Output:
	// hello
	// <nil>
}

func ExampleProducer_PublishBatch() {
	ctx := context.Background()
	bus := echo.New(echo.WithLimits(echo.Limits{Payload: 30}))
	defer bus.Close(ctx)
	producer := echo.NewProducer(bus, greetings)
	err := producer.PublishBatch(ctx, []Greeting{{"hello"}, {"a greeting that is too long"}})
	fmt.Println(errors.Is(err, echo.ErrNotPublished), errors.Is(err, echo.ErrTooLarge))
	fmt.Println(err)
	// Output:
	// true true
	// echo: publish greetings: 0 of 2 accepted: not published: value 1: too large: payload of 38 bytes, the limit is 30
}

func ExampleConsumer_Messages() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	consumer, _ := echo.Subscribe(ctx, bus, greetings)
	echo.NewProducer(bus, greetings).Publish(ctx, Greeting{"hello"})
	for m, err := range consumer.Messages(ctx) {
		if err != nil {
			break
		}
		if m.Attempt == 1 {
			fmt.Println("not now:", m.Value.Text)
			m.Nack(ctx, time.Millisecond)
			continue
		}
		fmt.Println("at attempt", m.Attempt)
		m.Ack(ctx)
		break
	}
	// Output:
	// not now: hello
	// at attempt 2
}

func ExampleConsumer_Batches() {
	ctx := context.Background()
	bus := echo.New()
	defer bus.Close(ctx)
	consumer, _ := echo.Subscribe(ctx, bus, greetings)
	echo.NewProducer(bus, greetings).PublishBatch(ctx, []Greeting{{"a"}, {"b"}, {"c"}})
	for batch, err := range consumer.Batches(ctx, 10, time.Millisecond) {
		if err != nil {
			break
		}
		fmt.Println(len(batch), batch.Ack(ctx))
		break
	}
	// Output: 3 <nil>
}

func ExampleBus_Run() {
	numbers := echo.NewTopic[int]("numbers")
	bus := echo.New()
	ctx, stop := context.WithCancel(context.Background())
	echo.NewProducer(bus, numbers).Publish(ctx, 7)
	err := bus.Run(ctx,
		echo.Handle(greetings, func(ctx context.Context, m echo.Message[Greeting]) error {
			fmt.Println(m.Value.Text)
			return nil
		}),
		echo.Handle(numbers, func(ctx context.Context, m echo.Message[int]) error {
			fmt.Println(m.Value)
			stop()
			return nil
		}, echo.WithGroup("counters")),
	)
	fmt.Println(err)
	fmt.Println(bus.Close(context.Background()))
	// Output:
	// 7
	// <nil>
	// {0 0 0 0} <nil>
}

func ExampleWithMiddleware() {
	timing := func(next echo.Handler[any]) echo.Handler[any] {
		return func(ctx context.Context, m echo.Message[any]) error {
			err := next(ctx, m)
			fmt.Println("handled a message of", m.Topic, "with", err)
			return err
		}
	}
	ctx := context.Background()
	bus := echo.New(echo.WithMiddleware(timing))
	defer bus.Close(ctx)
	consumer, _ := echo.Subscribe(ctx, bus, greetings)
	echo.NewProducer(bus, greetings).Publish(ctx, Greeting{"hello"})
	consumer.Run(ctx, func(context.Context, echo.Message[Greeting]) error { return consumer.Close() })
	// Output: handled a message of greetings with <nil>
}
