package policytest

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

type (
	priceV0 string
	priceV1 struct{ Cents int }
	price   struct {
		Cents    int
		Currency string
	}
)

var prices = echo.NewTopic[price]("prices", echo.WithVersion(2),
	echo.Upcast(1, func(p priceV1) (price, error) {
		if p.Cents < 0 {
			return price{}, errors.New("no price is negative")
		}
		if p.Cents == 13 {
			panic("thirteen")
		}
		return price{p.Cents, "EUR"}, nil
	}),
	echo.Upcast(0, func(s priceV0) (priceV1, error) {
		n, err := strconv.Atoi(string(s))
		return priceV1{n}, err
	}))

// schemas: what becomes of messages of earlier versions.
var schemas = []promise{
	{"messages of earlier versions arrive as the present type", func(b *bench) {
		v0 := echo.NewTopic[priceV0]("prices", echo.WithCodec(echo.JSON))
		v1 := echo.NewTopic[priceV1]("prices", echo.WithVersion(1))
		require.NoError(b, echo.NewProducer(b.bus, v0).Publish(b.Context(), "100"))
		require.NoError(b, echo.NewProducer(b.bus, v1).Publish(b.Context(), priceV1{200}))
		require.NoError(b, echo.NewProducer(b.bus, prices).Publish(b.Context(), price{300, "CHF"}))
		c := subscribe(b, prices, echo.WithGroup("g"))
		defer c.Close()
		for i, m := range take(b, c, 3) {
			assert.Equal(b, []price{{100, "EUR"}, {200, "EUR"}, {300, "CHF"}}[i], m.Value)
			assert.Equal(b, i, m.Version)
		}
	}},
	{"a message that an upcast fails for is a dead letter with that reason", func(b *bench) {
		v0 := echo.NewTopic[priceV0]("prices", echo.WithCodec(echo.JSON))
		v1 := echo.NewTopic[priceV1]("prices", echo.WithVersion(1))
		require.NoError(b, echo.NewProducer(b.bus, v0).Publish(b.Context(), "a lot"))
		require.NoError(b, echo.NewProducer(b.bus, v1).PublishBatch(b.Context(), []priceV1{{-1}, {13}}))
		running(b, subscribe(b, prices, echo.WithGroup("g")), func(_ context.Context, m echo.Message[price]) error {
			return fmt.Errorf("got %+v", m.Value)
		})
		c := subscribe(b, echo.DeadLetters(prices), echo.WithGroup("look"))
		defer c.Close()
		for i, m := range take(b, c, 3) {
			assert.Equal(b, echo.ReasonUpcast, m.Value.Reason)
			assert.Contains(b, m.Value.Error, []string{"upcast from version 0", "no price is negative", "thirteen"}[i])
			assert.Error(b, m.Value.Err)
		}
	}},
}
