package echotest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

var names = echo.NewTopic[string]("names")

// example runs a test as go test would, and prints what it logs.
func example(test func(t testing.TB)) {
	if text := try(test).text(); text != "" {
		fmt.Println(text)
	}
}

func Example() {
	example(func(t testing.TB) { // func TestX(t *testing.T)
		bus := echotest.New(t)
		StartBilling(t.Context(), bus.Bus) // the code under test

		echo.NewProducer(bus.Bus, purchases).Publish(t.Context(), Order{"o-1", 12.5})
		bus.WaitIdle(t.Context())

		echotest.Expect(bus, invoices, Invoice{"o-1", 10})
	})
	// Output:
	// echotest: topic invoices: got 1 values, want 1
	// 	value 0: got  {Order:o-1 Amount:12.5}
	// 	value 0: want {Order:o-1 Amount:10}
}

func ExampleNew() {
	example(func(t testing.TB) {
		bus := echotest.New(t, echotest.WithMemory(memstream.WithMaxMessages(10)))
		c, _ := echo.Subscribe(t.Context(), bus.Bus, names)
		echo.NewProducer(bus.Bus, names).Publish(t.Context(), "Ada")
		for m := range c.Messages(t.Context()) {
			fmt.Println("got", m.Value, "and did not settle it")
			break
		}
	})
	// Output:
	// got Ada and did not settle it
	// echotest: close: got {Completed:0 Acknowledged:0 GivenBack:0 Abandoned:1} and error <nil>, want nothing abandoned and no error
}

func ExampleBus_WaitIdle() {
	example(func(t testing.TB) {
		bus := echotest.New(t, echotest.WithPatience(50*time.Millisecond))
		c, _ := echo.Subscribe(t.Context(), bus.Bus, names, echo.WithGroup("greeters"))
		c.Close() // the group stays
		m := echo.NewProducer(bus.Bus, names)
		bus.WaitIdle(t.Context())
		fmt.Println("nothing to do")

		m.Publish(t.Context(), "Ada")
		bus.WaitIdle(t.Context())
		fmt.Println("not reached")
	})
	// Output:
	// nothing to do
	// echotest: wait: not idle after 50ms
	// 	topic names, group greeters: lag 1, pending 0, members 0
}

func ExamplePublished() {
	example(func(t testing.TB) {
		bus := echotest.New(t)
		p := echo.NewProducer(bus.Bus, names)
		p.Publish(t.Context(), "Ada", echo.WithKey("a"))
		p.Publish(t.Context(), "Bob", echo.WithHeader("tenant", "x"), echo.WithDelay(time.Hour))
		for _, m := range echotest.Published(bus, names) {
			fmt.Println(m.Value, m.Key, m.Headers)
		}
	})
	// Output:
	// Ada a map[]
	// Bob  map[tenant:x]
}

func ExampleExpect() {
	example(func(t testing.TB) {
		bus := echotest.New(t)
		echo.NewProducer(bus.Bus, names).PublishBatch(t.Context(), []string{"Ada", "Bob"})
		echotest.Expect(bus, names, "Ada", "Bob", "Cid")
	})
	// Output:
	// echotest: topic names: got 2 values, want 3
	// 	value 2: got  nothing
	// 	value 2: want Cid
}

func ExampleDeadLetters() {
	example(func(t testing.TB) {
		bus := echotest.New(t)
		c, _ := echo.Subscribe(t.Context(), bus.Bus, names, echo.WithGroup("greeters"))
		go c.Run(t.Context(), func(_ context.Context, m echo.Message[string]) error {
			return echo.Reject(errors.New("nobody I know"))
		})
		echo.NewProducer(bus.Bus, names).Publish(t.Context(), "Ada")
		bus.WaitIdle(t.Context())
		for _, m := range echotest.DeadLetters(bus, names) {
			fmt.Println(m.Value.Value, m.Value.Group, m.Value.Reason, m.Value.Error)
		}
	})
	// Output: Ada greeters rejected nobody I know
}

func ExampleWithFaults() {
	example(func(t testing.TB) {
		bus := echotest.New(t, echotest.WithFaults(1, echotest.Faults{Duplicate: 1}))
		c, _ := echo.Subscribe(t.Context(), bus.Bus, names, echo.WithGroup("greeters"))
		go c.Run(t.Context(), func(_ context.Context, m echo.Message[string]) error {
			fmt.Println("hello", m.Value, "at attempt", m.Attempt)
			return nil
		})
		echo.NewProducer(bus.Bus, names).Publish(t.Context(), "Ada")
		bus.WaitIdle(t.Context())
		fmt.Println(bus.Faults().Duplicates, "duplicate")
		echotest.Expect(bus, names, "Bob")
	})
	// Output:
	// hello Ada at attempt 1
	// hello Ada at attempt 2
	// 1 duplicate
	// echotest: topic names: got 1 values, want 1
	// 	value 0: got  Ada
	// 	value 0: want Bob
	// echotest: seed 1 made the faults {Refused:0 Unknown:0 Stored:0 Delayed:0 LostLeases:0 LostAcks:0 Duplicates:1}; ECHOTEST_SEED=1 makes them again
}

func ExampleBus_Faults() {
	example(func(t testing.TB) {
		bus := echotest.New(t, echotest.WithFaults(1, echotest.Faults{RefusePublish: 1}))
		err := echo.NewProducer(bus.Bus, names).Publish(t.Context(), "Ada")
		fmt.Println(errors.Is(err, echo.ErrNotPublished), bus.Faults().Refused)
	})
	// Output: true 1
}

func ExampleWithTransport() {
	example(func(t testing.TB) {
		shared := memstream.New() // or one over Redis
		t.Cleanup(func() { shared.Close() })
		here := echotest.New(t, echotest.WithTransport(transport.KeepOpen(shared)))
		there := echotest.New(t, echotest.WithTransport(transport.KeepOpen(shared)))
		c, _ := echo.Subscribe(t.Context(), there.Bus, names, echo.WithGroup("greeters"))
		go c.Run(t.Context(), func(_ context.Context, m echo.Message[string]) error {
			fmt.Println("hello", m.Value)
			return nil
		})
		echo.NewProducer(here.Bus, names).Publish(t.Context(), "Ada")
		here.WaitIdle(t.Context()) // for the group, wherever its members are
	})
	// Output: hello Ada
}

func ExampleWithBus() {
	example(func(t testing.TB) {
		bus := echotest.New(t, echotest.WithBus(echo.WithCodec(echo.Text)))
		err := echo.NewProducer(bus.Bus, echo.NewTopic[int]("numbers")).Publish(t.Context(), 1)
		fmt.Println(err)
	})
	// Output: echo: publish numbers: not published: topic numbers: codec Text carries strings, not int
}
