// Command manytomany shows several producers, two types of message, and
// several consumers: two members of a group share the work, each serving both
// types, and an audit gets everything.
package main

import (
	"context"
	"fmt"
	"log"
	"sync"

	"github.com/echobus/echo"
)

type World struct{ Name string }
type Marco struct{ From string }

var (
	worlds = echo.NewTopic[World]("worlds")
	marcos = echo.NewTopic[Marco]("marcos")
)

const producers, each = 4, 25

func main() {
	bus := echo.New()
	ctx, stop := context.WithCancel(context.Background())
	var pending sync.WaitGroup
	pending.Add(2 * 2 * producers * each) // two types, to the group and to the audit

	var programs sync.WaitGroup
	counts := make([]struct{ worlds, marcos int }, 3)
	for i, opts := range [][]echo.SubscribeOption{
		{echo.WithGroup("greeters")},
		{echo.WithGroup("greeters")},
		{echo.FromOldest()}, // the audit, a broadcast that misses nothing
	} {
		programs.Go(func() {
			err := bus.Run(ctx,
				echo.Handle(worlds, func(ctx context.Context, m echo.Message[World]) error {
					defer pending.Done()
					counts[i].worlds++
					return nil
				}, opts...),
				echo.Handle(marcos, func(ctx context.Context, m echo.Message[Marco]) error {
					defer pending.Done()
					counts[i].marcos++
					return nil
				}, opts...),
			)
			if err != nil {
				log.Fatal(err)
			}
		})
	}
	for p := range producers {
		go publish(ctx, bus, fmt.Sprintf("producer-%d", p))
	}
	pending.Wait()
	stop()
	programs.Wait()
	bus.Close(context.Background())

	group := counts[0].worlds + counts[1].worlds
	fmt.Printf("the greeters shared %d worlds and %d marcos\n", group, counts[0].marcos+counts[1].marcos)
	fmt.Printf("the audit saw %d worlds and %d marcos\n", counts[2].worlds, counts[2].marcos)
}

func publish(ctx context.Context, bus *echo.Bus, name string) {
	w, m := echo.NewProducer(bus, worlds), echo.NewProducer(bus, marcos)
	for range each {
		if err := w.Publish(ctx, World{name}); err != nil {
			log.Fatal(err)
		}
		if err := m.Publish(ctx, Marco{name}); err != nil {
			log.Fatal(err)
		}
	}
}
