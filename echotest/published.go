package echotest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

// Published returns what was published to a topic through b so far, in the
// order of the topic, decoded as for a consumer; Attempt is 1. Delayed messages
// stand where they were published, also before they are due. What the transport
// refused or had already is not there, nor what it says that it may have.
//
// It fails the test if a message cannot be decoded.
func Published[M any](b *Bus, topic *echo.Topic[M]) []echo.Message[M] {
	b.t.Helper()
	msgs, err := decoded(b, topic)
	if err != nil {
		b.t.Fatalf("echotest: published: %v", err)
	}
	return msgs
}

// DeadLetters returns what became a dead letter of a topic so far, in the order
// in which it did, also what was sent home since.
func DeadLetters[M any](b *Bus, topic *echo.Topic[M]) []echo.Message[echo.DeadLetter[M]] {
	b.t.Helper()
	return Published(b, echo.DeadLetters(topic))
}

// Expect fails the test unless the values published to a topic through b so far
// are these, in this order. They are compared by [reflect.DeepEqual] as they
// arrive, so a time has lost its monotonic clock reading.
func Expect[M any](b *Bus, topic *echo.Topic[M], want ...M) {
	b.t.Helper()
	msgs, err := decoded(b, topic)
	if err != nil {
		b.t.Fatalf("echotest: expect: %v", err)
	}
	if diff := differences(msgs, want); len(diff) > 0 {
		b.t.Errorf("echotest: topic %s: got %d values, want %d%s", topic.Name(), len(msgs), len(want), lines(diff))
	}
}

// differences lists where got and want differ, the first ten places.
func differences[M any](got []echo.Message[M], want []M) (diff []string) {
	const most = 10
	differ := 0
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		switch {
		case i >= len(want):
			g = fmt.Sprintf("%+v", got[i].Value)
		case i >= len(got):
			w = fmt.Sprintf("%+v", want[i])
		case reflect.DeepEqual(got[i].Value, want[i]):
			continue
		default:
			if g, w = fmt.Sprintf("%+v", got[i].Value), fmt.Sprintf("%+v", want[i]); g == w {
				g, w = fmt.Sprintf("%#v", got[i].Value), fmt.Sprintf("%#v", want[i])
			}
		}
		if differ++; differ <= most {
			diff = append(diff, fmt.Sprintf("value %d: got  %s", i, g), fmt.Sprintf("value %d: want %s", i, w))
		}
	}
	if differ > most {
		diff = append(diff, fmt.Sprintf("and %d more", differ-most))
	}
	return diff
}

// decoded returns what was published to a topic. A consumer decodes it, on a
// bus with the same options, so that it arrives as it would.
func decoded[M any](b *Bus, topic *echo.Topic[M]) ([]echo.Message[M], error) {
	if topic == nil {
		return nil, errors.New("topic is nil")
	}
	ctx := context.Background()
	tape := &tape{msgs: b.watch.stored(topic.Name()), carries: b.carries}
	opts := append(slices.Clone(b.cfg.bus), echo.WithTransport(tape), echo.WithLogger(slog.New(slog.DiscardHandler)))
	bus := echo.New(opts...)
	defer bus.Close(ctx)
	c, err := echo.Subscribe(ctx, bus, topic)
	if err != nil || len(tape.msgs) == 0 {
		return nil, err
	}
	msgs := make([]echo.Message[M], 0, len(tape.msgs))
	for m, err := range c.Messages(ctx) {
		if err != nil {
			return nil, err
		}
		if err := m.Ack(ctx); err != nil {
			return nil, err
		}
		if msgs = append(msgs, m); len(msgs) == cap(msgs) {
			break
		}
	}
	return msgs, nil
}

// tape is a transport that has messages for one subscription.
type tape struct {
	msgs    []transport.Message
	carries bool
}

func (t *tape) CarriesValues() bool { return t.carries }
func (t *tape) Close() error        { return nil }

func (t *tape) Send(context.Context, string, []transport.Message) (int, error) {
	return 0, fmt.Errorf("%w: %w", transport.ErrNotPublished, errors.ErrUnsupported)
}

func (t *tape) Subscribe(context.Context, string, transport.Options) (transport.Subscription, error) {
	return &playing{rest: t.msgs}, nil
}

// playing is the subscription to a tape.
type playing struct{ rest []transport.Message }

// expires is the header of a time to live. Consumers do not yield a message
// whose time is over.
const expires = "echo-expires"

func (p *playing) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(p.rest) == 0 {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	n := copy(dst, p.rest)
	p.rest = p.rest[n:]
	for i := range dst[:n] {
		m := &dst[i]
		m.Attempt = 1
		if _, ok := m.Header[expires]; ok {
			m.Header = maps.Clone(m.Header)
			delete(m.Header, expires)
		}
	}
	return n, nil
}

func (p *playing) Ack(context.Context, []transport.Receipt) error { return nil }

func (p *playing) Nack(context.Context, []transport.Receipt, time.Duration) error { return nil }

func (p *playing) Close() error { return nil }
