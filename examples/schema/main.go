// Command schema shows a topic whose type changed twice while messages of the
// earlier versions are still there: each arrives as the present type. What
// every version wrote is kept in golden files, and decoded at every start.
//
//	go run ./examples/schema
//	ECHO_URL=redis://localhost:6379 go run ./examples/schema
package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"log"
	"math"
	"os"

	"github.com/echobus/echo"
	_ "github.com/echobus/echo/redisstream"
	_ "github.com/echobus/echo/wsstream"
)

type (
	// PriceV0 is what the first program published, before there were versions.
	PriceV0 string
	// PriceV1 is of version 1: a number, always in euros.
	PriceV1 struct{ Price int }
	// Price is what the program knows.
	Price struct {
		Cents    int
		Currency string
	}
)

// Each step leads to the next version, and only there.
var prices = echo.NewTopic[Price]("schema.prices", echo.WithVersion(2),
	echo.Upcast(0, func(old PriceV0) (PriceV1, error) {
		var euros float64
		if _, err := fmt.Sscanf(string(old), "%f EUR", &euros); err != nil {
			return PriceV1{}, errors.New("that is no price")
		}
		return PriceV1{int(math.Round(euros * 100))}, nil
	}),
	echo.Upcast(1, func(old PriceV1) (Price, error) { return Price{old.Price, "EUR"}, nil }),
)

// What each version wrote, byte for byte.
//
//go:embed golden
var golden embed.FS

var written = []struct{ file, contentType string }{
	{"golden/v0.json", "application/json"},
	{"golden/v1.json", "application/json; version=1"},
	{"golden/v2.json", "application/json; version=2"},
}

func main() {
	// No transport is needed to see whether old messages can still be read.
	for _, w := range written {
		data, err := golden.ReadFile(w.file)
		check(err)
		price, err := prices.Decode(w.contentType, data)
		check(err)
		fmt.Printf("%s is %+v\n", w.file, price)
	}

	ctx := context.Background()
	bus, err := echo.Open(ctx, cmp.Or(os.Getenv("ECHO_URL"), "mem://"))
	check(err)
	// Programs of three ages publish to one topic.
	v0 := echo.NewProducer(bus, echo.NewTopic[PriceV0](prices.Name()))
	v1 := echo.NewProducer(bus, echo.NewTopic[PriceV1](prices.Name(), echo.WithVersion(1)))
	check(v0.Publish(ctx, "2.50 EUR"))
	check(v1.Publish(ctx, PriceV1{375}))
	check(echo.NewProducer(bus, prices).Publish(ctx, Price{500, "CHF"}))
	check(v0.Publish(ctx, "a lot"))

	shop, err := echo.Subscribe(ctx, bus, prices, echo.WithGroup("shop"))
	check(err)
	go shop.Run(ctx, func(ctx context.Context, m echo.Message[Price]) error {
		fmt.Printf("version %d, now %+v\n", m.Version, m.Value)
		return nil
	})
	// What no step understands is a dead letter, which has the data.
	letters, err := echo.Subscribe(ctx, bus, echo.DeadLetters(prices), echo.WithGroup("support"))
	check(err)
	for m, err := range letters.Messages(ctx) {
		check(err)
		if e, ok := errors.AsType[*echo.DecodeError](m.Value.Err); ok {
			fmt.Printf("dead, %s: %s: %v\n", m.Value.Reason, e.Data, e.Err)
		}
		check(m.Ack(ctx))
		break
	}
	_, err = bus.Close(ctx)
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
