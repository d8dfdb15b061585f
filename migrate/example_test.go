package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
)

var greetings = echo.NewTopic[string]("greetings")

// Each message is published on both; subscriptions are on the first.
func ExampleTee() {
	ctx := context.Background()
	old, new := memstream.New(), memstream.New()
	bus := echo.New(echo.WithTransport(migrate.Tee(old, new)))
	defer bus.Close(ctx)
	if err := echo.NewProducer(bus, greetings).Publish(ctx, "hello"); err != nil {
		fmt.Println(err)
	}
	fmt.Println("old has", old.Stats("greetings").Messages, "and new has", new.Stats("greetings").Messages)
	// Output: old has 1 and new has 1
}

// When the second transport refuses, the first has the message nevertheless.
func ExampleTeeError() {
	ctx := context.Background()
	first, second := memstream.New(), memstream.New(memstream.WithMaxBytes(4))
	bus := echo.New(echo.WithTransport(migrate.Tee(first, second)))
	defer bus.Close(ctx)
	err := echo.NewProducer(bus, greetings).Publish(ctx, "hello")
	fmt.Println(errors.Is(err, echo.ErrPublishUnknown), errors.Is(err, echo.ErrNotPublished), errors.Is(err, transport.ErrTooLarge))
	fmt.Println("first has", first.Stats("greetings").Messages)
	// Output:
	// true false true
	// first has 1
}

// What is on the old transport comes first.
func ExampleDrainover() {
	ctx := context.Background()
	old, new := memstream.New(), memstream.New()
	before := echo.New(echo.WithTransport(transport.KeepOpen(old)))
	echo.NewProducer(before, greetings).Publish(ctx, "from the old")
	before.Close(ctx)

	bus := echo.New(echo.WithTransport(migrate.Drainover(old, new, migrate.WithQuiet(50*time.Millisecond))))
	defer bus.Close(ctx)
	echo.NewProducer(bus, greetings).Publish(ctx, "from the new")
	consumer, err := echo.Subscribe(ctx, bus, greetings, echo.WithGroup("readers"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for m, err := range consumer.Messages(ctx) {
		fmt.Println(m.Value, err)
		m.Ack(ctx)
		if m.Value == "from the new" {
			break
		}
	}
	// Output:
	// from the old <nil>
	// from the new <nil>
}

// Two bridges in opposite directions copy each message once.
func ExampleBridge() {
	here, there := memstream.New(), memstream.New()
	defer here.Close()
	defer there.Close()
	ctx, cancel := context.WithCancel(context.Background())
	topics := []string{"greetings"}
	ended := make(chan error)
	go func() { ended <- migrate.Bridge(ctx, here, there, topics, migrate.WithSites("here", "there")) }()
	go func() { ended <- migrate.Bridge(ctx, there, here, topics, migrate.WithSites("there", "here")) }()

	bus := echo.New(echo.WithTransport(transport.KeepOpen(here)))
	echo.NewProducer(bus, greetings).Publish(ctx, "hello")
	bus.Close(ctx)
	sub, _ := there.Subscribe(ctx, "greetings", transport.Options{Group: "readers"})
	var msgs [1]transport.Message
	sub.Receive(ctx, msgs[:])
	fmt.Printf("%s, from %s\n", msgs[0].Data, msgs[0].Header["echo-bridge"])

	cancel()
	fmt.Println(<-ended, <-ended)
	// Output:
	// "hello", from here
	// <nil> <nil>
}

// A meter tells what bridges do.
func ExampleBridgeMeter() {
	from, to := memstream.New(), memstream.New()
	defer from.Close()
	defer to.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var meter migrate.BridgeMeter
	ended := make(chan error)
	go func() { ended <- migrate.Bridge(ctx, from, to, []string{"greetings"}, migrate.WithMeter(&meter)) }()
	from.Send(ctx, "greetings", []transport.Message{{ID: "g-1"}, {ID: "g-2"}})

	sub, _ := to.Subscribe(ctx, "greetings", transport.Options{Group: "readers"})
	for range 2 {
		sub.Receive(ctx, make([]transport.Message, 1))
	}
	cancel()
	<-ended // so that all is counted
	fmt.Println("copied:", meter.Stats().Copied)
	// Output: copied: 2
}
