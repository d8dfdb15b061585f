package migrate_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

func kept(t testing.TB, tr transport.Transport) int { return int(inspect(t, tr, "t").Messages) }

func TestTeeStoresTheSameMessageOnBoth(t *testing.T) {
	a, b := memstream.New(), memstream.New()
	tee := opened(t, migrate.Tee(a, b))
	m := message("m-1")
	m.Key, m.Header = "k", map[string]string{"h": "v"}
	msgs := []transport.Message{m}
	_, err := tee.Send(t.Context(), "t", msgs)
	require.NoError(t, err)
	first, second := receive(t, group(t, a, "t"), 1)[0], receive(t, group(t, b, "t"), 1)[0]
	assert.Equal(t, first.Position, msgs[0].Position, "the position is the first one's")
	second.Position, second.Token = first.Position, first.Token
	assert.Equal(t, first, second)
	assert.Equal(t, migrate.TeeStats{Both: 1}, tee.Stats())
}

func TestTeePassesTermsToBoth(t *testing.T) {
	a, b := memstream.New(), memstream.New()
	tee := opened(t, migrate.Tee(a, b))
	m := message("m-1")
	m.Terms = &transport.Terms{Once: "x", Window: time.Minute}
	for range 2 {
		_, err := tee.Send(t.Context(), "t", []transport.Message{m})
		require.NoError(t, err)
	}
	m.Terms = &transport.Terms{Due: time.Now().Add(time.Hour)}
	_, err := tee.Send(t.Context(), "t", []transport.Message{m})
	require.NoError(t, err)
	for _, tr := range []transport.Transport{a, b} {
		i := inspect(t, tr, "t")
		assert.EqualValues(t, []int64{1, 1, 1}, []int64{i.Messages, i.Duplicates, i.Delayed})
	}
}

// Each row is a Send of four messages.
func TestOutcomesOfATee(t *testing.T) {
	refusal := errors.Join(transport.ErrNotPublished, transport.ErrFull)
	unknown := errors.New("connection reset")
	for name, c := range map[string]struct {
		first, second func(transport.Transport) transport.Transport
		n             int
		onBoth        [2]int
		is, isNot     []error
	}{
		"what the first refused is not sent to the second": {
			first: func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 0, refusal) },
			is:    []error{transport.ErrNotPublished, transport.ErrFull}, isNot: []error{transport.ErrPublishUnknown},
		},
		"what the first stored of a batch is sent to the second, and the error is the first's": {
			first: func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 3, refusal) },
			n:     3, onBoth: [2]int{3, 3},
			is: []error{transport.ErrNotPublished, transport.ErrFull}, isNot: []error{transport.ErrPublishUnknown},
		},
		"an unknown outcome of the first stays unknown": {
			first: func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 1, unknown) },
			n:     1, onBoth: [2]int{1, 1}, is: []error{unknown}, isNot: []error{transport.ErrNotPublished},
		},
		"a refusal of the second is an unknown outcome, as the first has the messages": {
			second: func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 1, refusal) },
			n:      1, onBoth: [2]int{4, 1},
			is: []error{transport.ErrPublishUnknown, transport.ErrFull}, isNot: []error{transport.ErrNotPublished},
		},
		"so is a failure of both": {
			first:  func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 3, refusal) },
			second: func(tr transport.Transport) transport.Transport { return transporttest.FailAfter(tr, 2, unknown) },
			n:      2, onBoth: [2]int{3, 2},
			is: []error{transport.ErrPublishUnknown, unknown, transport.ErrFull}, isNot: []error{transport.ErrNotPublished},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := memstream.New(), memstream.New()
			first, second := transport.Transport(a), transport.Transport(b)
			if c.first != nil {
				first = c.first(a)
			}
			if c.second != nil {
				second = c.second(b)
			}
			tee := opened(t, migrate.Tee(first, second))
			n, err := tee.Send(t.Context(), "t", messages(numbered("m", 4)...))
			require.Error(t, err)
			assert.Equal(t, c.n, n)
			assert.Equal(t, c.onBoth, [2]int{kept(t, a), kept(t, b)})
			for _, target := range c.is {
				assert.ErrorIs(t, err, target)
			}
			for _, target := range c.isNot {
				assert.NotErrorIs(t, err, target)
			}
			if e, ok := errors.AsType[*migrate.TeeError](err); ok {
				assert.Equal(t, c.onBoth, [2]int{e.First, e.Both})
				assert.Contains(t, err.Error(), "topic t: the first transport of a tee stored")
			}
		})
	}
}

func TestPublishingAgainUnderTheSameIDCompletesATee(t *testing.T) {
	a, b := memstream.New(), memstream.New()
	refusal := errors.Join(transport.ErrNotPublished, transport.ErrFull)
	failing := migrate.Tee(a, transporttest.FailAfter(b, 0, refusal))
	_, err := failing.Send(t.Context(), "t", messages("m-1"))
	require.ErrorIs(t, err, transport.ErrPublishUnknown)
	tee := opened(t, migrate.Tee(a, b))
	send(t, tee, "t", "m-1")
	assert.Equal(t, []string{"m-1", "m-1"}, ids(receive(t, group(t, a, "t"), 2)))
	assert.Equal(t, []string{"m-1"}, ids(receive(t, group(t, b, "t"), 1)))
}

func TestSecondTransportAtBestEffortIsCountedAndLogged(t *testing.T) {
	var log strings.Builder
	a, b := memstream.New(), memstream.New(memstream.WithMaxMessages(3))
	tee := opened(t, migrate.Tee(a, b, migrate.WithBestEffort(10*time.Millisecond), migrate.WithLogger(slog.New(slog.NewTextHandler(&log, nil)))))
	group(t, b, "t") // which blocks b when that is full
	send(t, tee, "t", numbered("m", 5)...)
	assert.Equal(t, migrate.TeeStats{Both: 3, Missed: 2}, tee.Stats())
	assert.Contains(t, log.String(), "first=m-3")
}

func TestTeeCanDoForSendingWhatBothCan(t *testing.T) {
	values, plain := memstream.New(memstream.WithValues()), memstream.New()
	limited := bare{memstream.New()}
	for name, c := range map[string]struct {
		tee                               transport.Transport
		values, delays, dedups, immediate bool
	}{
		"two that can do all":       {migrate.Tee(values, memstream.New(memstream.WithValues())), true, true, true, true},
		"values on one only":        {migrate.Tee(values, plain), false, true, true, true},
		"a second that can nothing": {migrate.Tee(values, limited), false, false, false, false},
		"a first that can nothing":  {migrate.Tee(limited, values), false, false, false, false},
		"a wrapper of the second":   {migrate.Tee(plain, transporttest.OneAtATime(plain)), false, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			v, _ := transport.As[transport.ValueCarrier](c.tee)
			d, _ := transport.As[transport.Delayer](c.tee)
			u, _ := transport.As[transport.Deduplicator](c.tee)
			assert.Equal(t, []bool{c.values, c.delays, c.dedups, c.immediate},
				[]bool{v.CarriesValues(), d.DelaysMessages(), u.DeduplicatesMessages(), c.tee.(transport.Immediate).SendsImmediately()})
			r, _ := transport.As[transport.Retainer](c.tee)
			assert.True(t, r.RetainsMessages(), "one of them does")
			_, opener := transport.As[transport.Opener](c.tee)
			assert.False(t, opener, "its Send would be passed by")
		})
	}
}

// bare is a transport without any capability.
type bare struct{ transport.Transport }

func TestTeeIsInspectedAsItsFirstTransport(t *testing.T) {
	a, b := memstream.New(), memstream.New()
	tee := opened(t, migrate.Tee(a, b))
	send(t, b, "t", "only-on-b")
	send(t, tee, "t", "m-1", "m-2")
	assert.EqualValues(t, 2, inspect(t, tee, "t").Messages)
	_, ok := transport.As[transport.Inspector](migrate.Tee(bare{a}, b))
	assert.False(t, ok, "a first that cannot tell")
}

func TestWhatUnwrapLeadsToSendsToBoth(t *testing.T) {
	a, b := memstream.New(), memstream.New()
	tee := opened(t, migrate.Tee(a, b))
	send(t, tee.Unwrap(), "t", "m-1")
	assert.Equal(t, []int{1, 1}, []int{kept(t, a), kept(t, b)})
}

func TestTeeWithWrongOptionsSaysSoOnEveryCall(t *testing.T) {
	for name, tee := range map[string]*migrate.Teed{
		"no second":             migrate.Tee(memstream.New(), nil),
		"a first that is wrong": migrate.Tee(memstream.New(memstream.WithMaxMessages(-1)), memstream.New()),
		"no time":               migrate.Tee(memstream.New(), memstream.New(), migrate.WithBestEffort(0)),
		"no logger":             migrate.Tee(memstream.New(), memstream.New(), migrate.WithLogger(nil)),
	} {
		t.Run(name, func(t *testing.T) {
			require.Error(t, tee.Err())
			_, err := tee.Send(t.Context(), "t", messages("m-1"))
			assert.ErrorIs(t, err, transport.ErrNotPublished)
			assert.ErrorContains(t, err, tee.Err().Error())
			_, err = tee.Subscribe(context.Background(), "t", transport.Options{})
			assert.Equal(t, tee.Err(), err)
			assert.NoError(t, tee.Close())
		})
	}
}
