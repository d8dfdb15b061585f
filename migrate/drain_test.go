package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
)

func drainover(t testing.TB, old, new transport.Transport, opts ...migrate.DrainOption) *migrate.Draining {
	return opened(t, migrate.Drainover(old, new, append([]migrate.DrainOption{migrate.WithQuiet(quiet)}, opts...)...))
}

// overEach runs a test over pairs of transports.
func overEach(t *testing.T, test func(t *testing.T, old, new transport.Transport)) {
	for name, pair := range map[string][2]func() transport.Transport{
		"in memory":            {inMemory, inMemory},
		"from memory to Redis": {inMemory, inRedis},
		"from Redis to memory": {inRedis, inMemory},
	} {
		t.Run(name, func(t *testing.T) { test(t, opened(t, pair[0]()), opened(t, pair[1]())) })
	}
}

func TestGroupFinishesTheOldTransportAndGoesOnWithTheNew(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		send(t, old, "t", "old-1", "old-2")
		d := drainover(t, old, new)
		s := group(t, d, "t")
		send(t, d, "t", "new-1", "new-2")
		assert.Equal(t, 2, kept(t, old), "publishing goes to the new one")
		assert.Equal(t, []string{"old-1", "old-2", "new-1", "new-2"}, take(t, s, 4))
		nothing(t, s, 3*quiet)
		assert.Equal(t, migrate.DrainStats{Old: 2, New: 2, Switched: 1}, d.Stats())
	})
}

func TestNothingIsDeliveredFromTheNewTransportWhileTheOldHasSomethingToSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, new := memstream.New(), memstream.New()
		send(t, old, "t", "old-1", "old-2")
		d := drainover(t, old, new, migrate.WithQuiet(time.Second))
		s, peer := group(t, d, "t"), group(t, d, "t")
		send(t, d, "t", "new-1")
		held := receive(t, s, 2)
		nothing(t, peer, 20*time.Second) // a member waits for what another one holds
		require.NoError(t, s.(transport.Nacker).Nack(t.Context(), receipts(held[1:]), 5*time.Second))
		ack(t, s, held[0])
		begin := time.Now()
		again := receive(t, peer, 1)
		assert.Equal(t, "old-2", again[0].ID)
		assert.Equal(t, 2, again[0].Attempt)
		assert.Equal(t, 5*time.Second, time.Since(begin).Round(time.Second))
		ack(t, peer, again...)
		begin = time.Now()
		assert.Equal(t, []string{"new-1"}, take(t, peer, 1))
		assert.GreaterOrEqual(t, time.Since(begin), time.Second, "the quiet period")
	})
}

func TestDeliveriesAreSettledWhereTheyCameFrom(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		send(t, old, "t", numbered("old", 6)...)
		d := drainover(t, old, new)
		s := group(t, d, "t")
		send(t, d, "t", numbered("new", 6)...)
		for _, from := range []transport.Transport{old, new} {
			msgs := receive(t, s, 6)
			require.NoError(t, s.(transport.Extender).Extend(t.Context(), receipts(msgs), time.Hour))
			require.NoError(t, s.(transport.Releaser).Release(t.Context(), receipts(msgs[:1])))
			require.NoError(t, s.(transport.Nacker).Nack(t.Context(), receipts(msgs[1:2]), 0))
			again := receive(t, s, 2)
			assert.Equal(t, []int{1, 2}, []int{again[0].Attempt, again[1].Attempt})
			require.NoError(t, s.(transport.Mover).Move(t.Context(), "t.dead", msgs[2], msgs[2].Receipt()))
			ack(t, s, append(again, msgs[3:]...)...)
			err := s.(transport.Acker).Ack(t.Context(), receipts(msgs[:1]))
			late, ok := errors.AsType[*transport.LeaseError](err)
			require.True(t, ok, err)
			assert.Equal(t, receipts(msgs[:1]), late.Lost, "as it was delivered")
			err = s.(transport.Mover).Move(t.Context(), "t.dead", msgs[2], msgs[2].Receipt())
			late, ok = errors.AsType[*transport.LeaseError](err)
			require.True(t, ok, err)
			assert.Equal(t, receipts(msgs[2:3]), late.Lost)
			i := inspect(t, from, "t")
			assert.Zero(t, i.Group("g").Pending)
			assert.EqualValues(t, 1, inspect(t, from, "t.dead").Messages)
		}
	})
}

func TestMessageThatIsOnBothIsDeliveredOnce(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		tee := migrate.Tee(old, new)
		send(t, old, "t", "before")
		send(t, tee, "t", numbered("both", 10)...)
		// A member without Drainover handles some of them, as in another process.
		other := group(t, old, "t")
		assert.Equal(t, []string{"before", "both-0", "both-1", "both-2"}, take(t, other, 4))
		require.NoError(t, other.Close())

		d := drainover(t, old, new)
		s := group(t, d, "t")
		send(t, d, "t", "after")
		assert.Equal(t, append(numbered("both", 10)[3:], "after"), take(t, s, 8))
		nothing(t, s, 3*quiet)
		assert.EqualValues(t, 10, d.Stats().Repeated)
		repetitions := inspect(t, new, "t")
		assert.Zero(t, repetitions.Group("g").Pending, "repetitions are acknowledged")
	})
}

func TestDeadLetterThatComesHomeOnTheNewTransportIsDelivered(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	send(t, migrate.Tee(old, new), "t", "m-1", "m-2")
	d := drainover(t, old, new)
	s := group(t, d, "t")
	assert.Equal(t, []string{"m-1", "m-2"}, take(t, s, 2))
	home := message("m-1")
	home.Header = map[string]string{"echo-redrives": "1"}
	_, err := new.Send(t.Context(), "t", []transport.Message{home})
	require.NoError(t, err)
	assert.Equal(t, []string{"m-1"}, take(t, s, 1))
	nothing(t, s, 3*quiet)
}

func TestIDsThatAreTooManyToRememberAreCountedAndTheirMessagesRepeated(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	send(t, migrate.Tee(old, new), "t", numbered("m", 10)...)
	d := drainover(t, old, new, migrate.WithRemembered(4))
	s := group(t, d, "t")
	take(t, s, 10)
	assert.Equal(t, numbered("m", 6), take(t, s, 6), "the first six were forgotten")
	nothing(t, s, 3*quiet)
	assert.NotZero(t, d.Stats().Forgotten)
}

func TestWhatComesToTheOldTransportLateIsDeliveredAndCounted(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	d := drainover(t, old, new)
	s := group(t, d, "t")
	send(t, d, "t", "new-1")
	assert.Equal(t, []string{"new-1"}, take(t, s, 1))
	send(t, old, "t", "late-1", "late-2")
	send(t, d, "t", "new-2")
	assert.ElementsMatch(t, []string{"new-2", "late-1", "late-2"}, take(t, s, 3))
	send(t, migrate.Tee(old, new), "t", "both") // by a publisher that was forgotten
	assert.Equal(t, []string{"both"}, take(t, s, 1))
	nothing(t, s, 5*quiet)
	assert.EqualValues(t, 2, d.Stats().Late)
}

func TestWhatOldStillOwesIsDeliveredAfterTheChange(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		delayed := message("delayed")
		delayed.Terms = &transport.Terms{Due: time.Now().Add(500 * time.Millisecond)}
		_, err := old.Send(t.Context(), "t", []transport.Message{message("letter"), delayed})
		require.NoError(t, err)
		d := drainover(t, old, new)
		s := group(t, d, "t")
		m := receive(t, s, 1)[0]
		require.NoError(t, s.(transport.Mover).Move(t.Context(), "t.dead", m, m.Receipt()))
		send(t, d, "t", "new-1")
		assert.Equal(t, []string{"new-1"}, take(t, s, 1), "which does not wait for what is delayed")

		bus := echo.New(echo.WithTransport(transport.KeepOpen(d)))
		done, err := echo.Redrive(t.Context(), bus, echo.NewTopic[string]("t", echo.WithCodec(echo.Text)), nil, 0)
		require.NoError(t, err)
		assert.Equal(t, 1, done.Sent)
		assert.ElementsMatch(t, []string{"letter", "delayed"}, take(t, s, 2))
		assert.EqualValues(t, 2, d.Stats().Late)
		_, err = bus.Close(t.Context())
		require.NoError(t, err)
	})
}

func TestGroupThatIsNewBeginsWhereItIsToldOnBoth(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		hour := time.Now().UTC().Add(-time.Hour).Truncate(time.Millisecond)
		d := drainover(t, old, new)
		var sent [2][]transport.Message
		for i, to := range []transport.Transport{old, d} {
			sent[i] = messages(numbered(fmt.Sprint(i), 4)...)
			for k := range sent[i] {
				sent[i][k].Time = hour.Add(time.Duration(4*i+k) * time.Minute)
			}
			_, err := to.Send(t.Context(), "t", sent[i])
			require.NoError(t, err)
		}
		all := append(ids(sent[0]), ids(sent[1])...)
		for name, c := range map[string]struct {
			start transport.Start
			first int
		}{
			"oldest":                                  {transport.Start{From: transport.Oldest}, 0},
			"newest":                                  {transport.Start{From: transport.Newest}, 8},
			"at a time of the old transport":          {transport.Start{From: transport.AtTime, Time: sent[0][2].Time}, 2},
			"at a time of the new transport":          {transport.Start{From: transport.AtTime, Time: sent[1][1].Time}, 5},
			"after an ID of the old transport":        {transport.Start{From: transport.AfterID, ID: sent[0][1].ID}, 2},
			"after an ID of the new transport":        {transport.Start{From: transport.AfterID, ID: sent[1][1].ID}, 6},
			"after a position of the old transport":   {transport.Start{From: transport.AfterPosition, Position: sent[0][2].Position}, 3},
			"after a position of the new transport":   {transport.Start{From: transport.AfterPosition, Position: sent[1][2].Position}, 7},
			"after the last one of the old transport": {transport.Start{From: transport.AfterPosition, Position: sent[0][3].Position}, 4},
			"after no position":                       {transport.Start{From: transport.AfterPosition}, 0},
		} {
			for _, group := range []string{"", "some"} {
				t.Run(name+" "+group, func(t *testing.T) {
					if group != "" {
						group = fmt.Sprintf("g%d-%d", c.first, c.start.From)
					}
					s := subscribe(t, d, "t", transport.Options{Group: group, Start: c.start})
					assert.Equal(t, all[c.first:], append([]string{}, take(t, s, 8-c.first)...))
					nothing(t, s, 3*quiet)
				})
			}
		}
	})
}

func TestBroadcastThatBeginsNowReadsTheNewTransportAlone(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	d := drainover(t, old, new)
	s := subscribe(t, d, "t", transport.Options{})
	send(t, old, "t", "old-1")
	send(t, d, "t", "new-1")
	assert.Equal(t, []string{"new-1"}, take(t, s, 1))
	nothing(t, s, 3*quiet)
}

func TestBroadcastFromTheOldestReadsBothOnce(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		send(t, old, "t", "old-1", "old-2")
		send(t, migrate.Tee(old, new), "t", "both-1", "both-2")
		d := drainover(t, old, new)
		send(t, d, "t", "new-1")
		s := subscribe(t, d, "t", transport.Options{Start: transport.Start{From: transport.Oldest}})
		msgs := receive(t, s, 4)
		nothing(t, s, 3*quiet) // as those of the old are not settled
		require.NoError(t, s.(transport.Nacker).Nack(t.Context(), receipts(msgs[:1]), 0))
		ack(t, s, msgs[1:]...)
		again := receive(t, s, 1)
		assert.Equal(t, "old-1", again[0].ID)
		ack(t, s, again...)
		assert.Equal(t, []string{"new-1"}, take(t, s, 1))
		nothing(t, s, 3*quiet)
	})
}

func TestBroadcastGoesOnFromAPositionOfEitherTransport(t *testing.T) {
	overEach(t, func(t *testing.T, old, new transport.Transport) {
		send(t, old, "t", numbered("old", 3)...)
		send(t, migrate.Tee(old, new), "t", numbered("both", 3)...)
		d := drainover(t, old, new)
		send(t, d, "t", numbered("new", 3)...)
		all := append(append(numbered("old", 3), numbered("both", 3)...), numbered("new", 3)...)
		start := transport.Start{From: transport.Oldest}
		for i, id := range all { // a subscription for each message
			s := subscribe(t, d, "t", transport.Options{Start: start})
			require.Equal(t, []string{id}, take(t, s, 1))
			p := s.(transport.Positioner).Position()
			if i > 0 {
				require.Equal(t, 1, p.Compare(start.Position), "positions ascend from the old to the new")
			}
			start = transport.Start{From: transport.AfterPosition, Position: p}
			require.NoError(t, s.Close())
		}
	})
}

func TestPositionsThatCannotBeToldApartEndTheSubscription(t *testing.T) {
	inner := drainover(t, memstream.New(), memstream.New())
	outer := drainover(t, memstream.New(), inner)
	s := group(t, outer, "t")
	send(t, outer, "t", "m-1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := s.Receive(ctx, make([]transport.Message, 1))
	require.ErrorContains(t, err, "tells the transports of a drainover apart")
}

// forgetful is a transport that does not know what its groups have yet to get.
type forgetful struct{ *memstream.Transport }

func (f forgetful) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	i, err := f.Transport.Inspect(ctx, topic)
	for k := range i.Groups {
		i.Groups[k].Lag = transport.Unknown
	}
	return i, err
}

func TestSubscribingWhereTheOldTransportCannotTellIsUnsupported(t *testing.T) {
	unknown := forgetful{memstream.New()}
	group(t, unknown, "t")
	for name, c := range map[string]struct {
		old   transport.Transport
		group string
	}{
		"no Inspector":                 {bare{memstream.New()}, "g"},
		"an Inspector that knows not":  {unknown, "g"},
		"a subscription without verbs": {mute{memstream.New()}, "g"},
		"a broadcast without them":     {mute{memstream.New()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := drainover(t, c.old, memstream.New())
			_, err := d.Subscribe(t.Context(), "t", transport.Options{Group: c.group, Start: transport.Start{From: transport.Oldest}})
			require.ErrorIs(t, err, errors.ErrUnsupported)
		})
	}
}

// mute is a transport whose subscriptions can only receive.
type mute struct{ *memstream.Transport }

func (m mute) Subscribe(ctx context.Context, topic string, o transport.Options) (transport.Subscription, error) {
	s, err := m.Transport.Subscribe(ctx, topic, o)
	return struct{ transport.Subscription }{s}, err
}

func TestDrainoverTellsTheSumOfBoth(t *testing.T) {
	old, new := memstream.New(), memstream.New()
	send(t, old, "t", numbered("old", 3)...)
	d := drainover(t, old, new)
	s := group(t, d, "t")
	send(t, d, "t", numbered("new", 2)...)
	receive(t, s, 1)
	i := inspect(t, d, "t")
	g := i.Group("g")
	assert.EqualValues(t, []int64{5, 4, 1}, []int64{i.Messages, g.Lag, g.Pending})
	assert.Len(t, i.Groups, 1)
}

func TestDrainoverWithWrongOptionsSaysSoOnEveryCall(t *testing.T) {
	for name, o := range map[string]migrate.DrainOption{
		"no quiet":  migrate.WithQuiet(0),
		"no memory": migrate.WithRemembered(0),
		"no logger": migrate.WithLogger(nil),
	} {
		t.Run(name, func(t *testing.T) {
			d := opened(t, migrate.Drainover(memstream.New(), memstream.New(), o))
			require.Error(t, d.Err())
			_, err := d.Send(t.Context(), "t", messages("m-1"))
			assert.ErrorIs(t, err, transport.ErrNotPublished)
			_, err = d.Subscribe(t.Context(), "t", transport.Options{})
			assert.Equal(t, d.Err(), err)
		})
	}
}
