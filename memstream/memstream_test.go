package memstream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func msgs(from, to int) []transport.Message {
	var ms []transport.Message
	for i := from; i < to; i++ {
		ms = append(ms, transport.Message{ID: fmt.Sprint(i), Data: make([]byte, 10)})
	}
	return ms
}

func send(t testing.TB, tr *memstream.Transport, from, to int) {
	t.Helper()
	n, err := tr.Send(context.Background(), "t", msgs(from, to))
	require.NoError(t, err)
	require.Equal(t, to-from, n)
}

func open(t testing.TB, tr *memstream.Transport, o transport.Options) transport.Subscription {
	t.Helper()
	s, err := tr.Subscribe(context.Background(), "t", o)
	require.NoError(t, err)
	return s
}

// ready receives what is there.
func ready(t testing.TB, s transport.Subscription) []transport.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	dst := make([]transport.Message, 1000)
	n, err := s.Receive(ctx, dst)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		require.NoError(t, err)
	}
	return dst[:n]
}

func ids(ms []transport.Message) (ids []string) {
	for _, m := range ms {
		ids = append(ids, m.ID)
	}
	return ids
}

func ack(t testing.TB, s transport.Subscription, ms ...transport.Message) {
	t.Helper()
	var rs []transport.Receipt
	for _, m := range ms {
		rs = append(rs, m.Receipt())
	}
	require.NoError(t, s.(transport.Acker).Ack(context.Background(), rs))
}

func TestAFullTopicBlocksRejectsOrDrops(t *testing.T) {
	t.Run("blocks until somebody takes, or the context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tr := memstream.New(memstream.WithMaxMessages(3))
			defer tr.Close()
			s := open(t, tr, transport.Options{})
			send(t, tr, 0, 3)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			n, err := tr.Send(ctx, "t", msgs(3, 5))
			assert.Zero(t, n)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.ErrorIs(t, err, transport.ErrNotPublished)
			go func() {
				time.Sleep(time.Minute)
				ack(t, s, ready(t, s)...)
			}()
			begin := time.Now()
			send(t, tr, 5, 7)
			assert.Equal(t, time.Minute, time.Since(begin))
			assert.Equal(t, []string{"5", "6"}, ids(ready(t, s)))
			go func() {
				time.Sleep(time.Minute)
				tr.Close()
			}()
			n, err = tr.Send(t.Context(), "t", msgs(7, 20))
			assert.Equal(t, 3, n)
			assert.ErrorIs(t, err, transport.ErrClosed)
		})
	})
	t.Run("rejects", func(t *testing.T) {
		tr := memstream.New(memstream.WithMaxMessages(3), memstream.WithFull(memstream.Reject))
		defer tr.Close()
		open(t, tr, transport.Options{})
		n, err := tr.Send(t.Context(), "t", msgs(0, 5))
		assert.Equal(t, 3, n)
		assert.ErrorIs(t, err, transport.ErrFull)
		assert.ErrorIs(t, err, transport.ErrNotPublished)
		assert.ErrorContains(t, err, "topic t holds 3 messages, 30 bytes")
		assert.Equal(t, uint64(2), tr.Stats("t").Rejected)
	})
	t.Run("drops the oldest and tells who lost it", func(t *testing.T) {
		tr := memstream.New(memstream.WithMaxMessages(3), memstream.WithFull(memstream.DropOldest))
		defer tr.Close()
		slow, fast := open(t, tr, transport.Options{Group: "slow"}), open(t, tr, transport.Options{})
		for i := range 10 {
			send(t, tr, i, i+1)
			ack(t, fast, ready(t, fast)...)
		}
		_, err := slow.Receive(t.Context(), make([]transport.Message, 9))
		lost, ok := errors.AsType[*transport.LostError](err)
		require.True(t, ok, "got %v", err)
		assert.Equal(t, uint64(7), lost.Count)
		assert.Equal(t, "slow", lost.Group)
		assert.Equal(t, []string{"7", "8", "9"}, ids(ready(t, slow)))
		assert.Equal(t, uint64(7), tr.Stats("t").Lost)
	})
}

func TestWhatEverybodyHasMayGo(t *testing.T) {
	tr := memstream.New(memstream.WithMaxMessages(3))
	defer tr.Close()
	send(t, tr, 0, 10) // nobody is there to wait for
	assert.Equal(t, []string{"7", "8", "9"}, ids(ready(t, open(t, tr, transport.Options{Group: "g"}))), "what is kept")
	assert.Equal(t, 3, tr.Stats("t").Messages)
}

func TestAStuckMessageDoesNotStopTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := memstream.New(memstream.WithMaxMessages(5), memstream.WithLease(time.Hour))
		defer tr.Close()
		s := open(t, tr, transport.Options{Group: "g"})
		send(t, tr, 0, 1)
		stuck := ready(t, s)[0]
		for i := 1; i < 100; i++ {
			send(t, tr, i, i+1)
			ack(t, s, ready(t, s)...)
		}
		require.NoError(t, s.(transport.Nacker).Nack(t.Context(), []transport.Receipt{stuck.Receipt()}, 0))
		again := ready(t, s)
		require.Len(t, again, 1)
		assert.Equal(t, "0", again[0].ID)
		assert.Equal(t, 2, again[0].Attempt)
	})
}

func TestBytesAreBoundedToo(t *testing.T) {
	tr := memstream.New(memstream.WithMaxBytes(100), memstream.WithFull(memstream.Reject))
	defer tr.Close()
	open(t, tr, transport.Options{})
	n, err := tr.Send(t.Context(), "t", msgs(0, 20))
	assert.Equal(t, 10, n)
	assert.ErrorIs(t, err, transport.ErrFull)
	_, err = tr.Send(t.Context(), "t", []transport.Message{{ID: "x", Data: make([]byte, 101)}})
	assert.ErrorIs(t, err, transport.ErrTooLarge)
}

func TestOldMessagesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := memstream.New(memstream.WithMaxAge(time.Minute))
		defer tr.Close()
		behind, holding := open(t, tr, transport.Options{Group: "behind"}), open(t, tr, transport.Options{Group: "holding", Lease: time.Hour})
		send(t, tr, 0, 2)
		held := ready(t, holding)
		time.Sleep(30 * time.Second)
		send(t, tr, 2, 3)
		time.Sleep(31 * time.Second)
		assert.Equal(t, 1, tr.Stats("t").Messages)
		_, err := behind.Receive(t.Context(), make([]transport.Message, 1))
		var lost *transport.LostError
		require.ErrorAs(t, err, &lost)
		assert.Equal(t, uint64(2), lost.Count)
		assert.Equal(t, []string{"2"}, ids(ready(t, behind)))
		ack(t, holding, held...) // what was given stays its holder's
		time.Sleep(time.Minute)
		assert.Zero(t, tr.Stats("t").Messages)
	})
}

func TestResumingAfterAPositionTellsWhatIsGone(t *testing.T) {
	tr := memstream.New(memstream.WithMaxMessages(5))
	defer tr.Close()
	sent := msgs(0, 10)
	_, err := tr.Send(t.Context(), "t", sent)
	require.NoError(t, err)
	s := open(t, tr, transport.Options{Start: transport.Start{From: transport.AfterPosition, Position: sent[2].Position}})
	_, err = s.Receive(t.Context(), make([]transport.Message, 1))
	var lost *transport.LostError
	require.ErrorAs(t, err, &lost)
	assert.Equal(t, uint64(2), lost.Count)
	assert.Equal(t, []string{"5", "6", "7", "8", "9"}, ids(ready(t, s)))
}

func TestValuesNeedWithValues(t *testing.T) {
	tr := memstream.New()
	defer tr.Close()
	_, err := tr.Send(t.Context(), "t", []transport.Message{{ID: "1", Value: new(int)}})
	assert.ErrorIs(t, err, errors.ErrUnsupported)
	assert.ErrorContains(t, err, "WithValues")
}

// The model: a topic, one group, two members. Against it runs every sequence
// of operations that rapid thinks of, in a bubble whose time is free.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) { model(t, rt) })
	})
}

func model(t *testing.T, rt *rapid.T) {
	const lease = time.Minute
	tr := memstream.New(memstream.WithLease(lease), memstream.WithMaxMessages(rapid.IntRange(8, 200).Draw(rt, "bound")), memstream.WithFull(memstream.Reject))
	defer tr.Close()
	type held struct {
		m     transport.Message
		until time.Time
	}
	var members [2]transport.Subscription
	var holds [2]map[string]held
	join := func(i int) {
		members[i] = open(t, tr, transport.Options{Group: "g"})
		holds[i] = map[string]held{}
	}
	join(0)
	join(1)
	defer func() { members[0].Close(); members[1].Close() }()
	attempts, done, sent := map[string]int{}, map[string]bool{}, 0
	receive := func(i, n int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		defer cancel()
		dst := make([]transport.Message, n)
		k, _ := members[i].Receive(ctx, dst)
		for _, m := range dst[:k] {
			if attempts[m.ID]++; attempts[m.ID] != m.Attempt || done[m.ID] {
				rt.Fatalf("message %s came with attempt %d, want %d; it is done: %v", m.ID, m.Attempt, attempts[m.ID], done[m.ID])
			}
			for j := range holds {
				if h, ok := holds[j][m.ID]; ok && time.Now().Before(h.until) {
					rt.Fatalf("message %s is held by member %d", m.ID, j)
				}
				delete(holds[j], m.ID)
			}
			holds[i][m.ID] = held{m, time.Now().Add(lease)}
		}
	}
	settle := func(i int, do func(r []transport.Receipt) error, after func(id string)) {
		keys := slices.Sorted(func(yield func(string) bool) {
			for id := range holds[i] {
				if !yield(id) {
					return
				}
			}
		})
		if len(keys) == 0 {
			return
		}
		id := rapid.SampledFrom(keys).Draw(rt, "id")
		h := holds[i][id]
		err := do([]transport.Receipt{h.m.Receipt()})
		if valid := time.Now().Before(h.until); valid != (err == nil) || err != nil && !errors.Is(err, transport.ErrLeaseLost) {
			rt.Fatalf("settling %s: got %v, its lease is valid: %v", id, err, valid)
		}
		if delete(holds[i], id); err == nil {
			after(id)
		}
	}
	nothing := func(string) {}
	who := rapid.IntRange(0, 1)
	for range rapid.IntRange(1, 60).Draw(rt, "steps") {
		i := who.Draw(rt, "member")
		switch rapid.IntRange(0, 7).Draw(rt, "op") {
		case 0, 1:
			n := rapid.IntRange(1, 20).Draw(rt, "n")
			k, _ := tr.Send(t.Context(), "t", msgs(sent, sent+n))
			sent += k
		case 2, 3:
			receive(i, rapid.IntRange(1, 30).Draw(rt, "n"))
		case 4:
			settle(i, func(r []transport.Receipt) error { return members[i].(transport.Acker).Ack(t.Context(), r) }, func(id string) { done[id] = true })
		case 5:
			delay := time.Duration(rapid.IntRange(0, 90).Draw(rt, "delay")) * time.Second
			settle(i, func(r []transport.Receipt) error { return members[i].(transport.Nacker).Nack(t.Context(), r, delay) }, nothing)
		case 6:
			time.Sleep(time.Duration(rapid.IntRange(1, 90).Draw(rt, "sleep")) * time.Second)
		case 7:
			members[i].Close()
			join(i)
		}
	}
	members[0].Close() // and everything comes to the other one
	clear(holds[0])
	for range 1000 {
		if len(done) == sent {
			return
		}
		receive(1, 100)
		for id, h := range holds[1] {
			if members[1].(transport.Acker).Ack(t.Context(), []transport.Receipt{h.m.Receipt()}) == nil {
				done[id] = true
			}
			delete(holds[1], id)
		}
		time.Sleep(time.Second)
	}
	rt.Fatalf("%d of %d messages were handled", len(done), sent)
}

func TestPositionOfAnotherLogIsALossOfUnknownSize(t *testing.T) {
	old := memstream.New()
	defer old.Close()
	send(t, old, 0, 5)
	s := open(t, old, transport.Options{Start: transport.Start{From: transport.Oldest}})
	ready(t, s)
	at := s.(transport.Positioner).Position()

	time.Sleep(time.Millisecond)
	tr := memstream.New()
	defer tr.Close()
	send(t, tr, 10, 20)
	for _, group := range []string{"", "g"} {
		s := open(t, tr, transport.Options{Group: group, Start: transport.Start{From: transport.AfterPosition, Position: at}})
		_, err := s.Receive(t.Context(), make([]transport.Message, 1))
		lost, ok := errors.AsType[*transport.LostError](err)
		require.True(t, ok, "got %v", err)
		require.Zero(t, lost.Count)
		require.ErrorContains(t, err, "an unknown number of messages")
		require.Len(t, ready(t, s), 10)
	}
}
