package outbox

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

// stuck is a transport whose Send waits for its context.
type stuck struct{ transport.Transport }

func (stuck) Send(ctx context.Context, _ string, _ []transport.Message) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func TestASendThatDoesNotEndIsEndedAndUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := memstream.New()
		defer mem.Close()
		r := &relay{o: New(nil, SQLite), to: stuck{mem}, unsure: make(map[int64]struct{})}
		rows := []row{{id: 7, topic: "t"}}
		start := time.Now()
		n, err := r.send(t.Context(), rows, make([]transport.Message, 1))
		require.Zero(t, n)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, sendTimeout, time.Since(start))
		require.Contains(t, r.unsure, int64(7))
		require.Empty(t, r.done)
	})
}

// A transport that breaks the contract must not break the relay.
func TestASendThatCountsWronglyIsBelievedAsFarAsPossible(t *testing.T) {
	mem := memstream.New()
	defer mem.Close()
	for name, c := range map[string]struct {
		n    int
		err  error
		want int
		ok   bool
	}{
		"more than there was":      {n: 9, want: 3, ok: true},
		"less than nothing":        {n: -1, err: transport.ErrNotPublished},
		"all, and an error":        {n: 3, err: errors.New("why"), want: 3, ok: true},
		"less, and no error":       {n: 2, want: 2},
		"nothing and not an error": {},
	} {
		t.Run(name, func(t *testing.T) {
			r := &relay{o: New(nil, SQLite), to: counting{mem, c.n, c.err}, unsure: make(map[int64]struct{})}
			n, err := r.send(t.Context(), []row{{id: 1}, {id: 2}, {id: 3}}, make([]transport.Message, 3))
			require.Equal(t, c.want, n)
			require.Equal(t, c.ok, err == nil, "got %v", err)
			require.Len(t, r.done, n)
		})
	}
}

type counting struct {
	transport.Transport
	n   int
	err error
}

func (c counting) Send(context.Context, string, []transport.Message) (int, error) { return c.n, c.err }

func TestPausesDoubleUpToTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b backoff
		for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
			b.fail()
			got, most := time.Until(b.until), want*time.Millisecond
			require.GreaterOrEqual(t, got, most/2)
			require.Less(t, got, most)
		}
	})
}

func TestChunksAreBoundedAndNeverEmpty(t *testing.T) {
	sizes := func(ns ...int) (msgs []transport.Message) {
		for _, n := range ns {
			msgs = append(msgs, transport.Message{Data: make([]byte, n)})
		}
		return msgs
	}
	require.Equal(t, 0, chunk(nil, 10, 100))
	require.Equal(t, 1, chunk(sizes(1000, 1), 10, 100))
	require.Equal(t, 2, chunk(sizes(50, 50, 1), 10, 100))
	require.Equal(t, 3, chunk(sizes(0, 0, 0, 0), 3, 100))
}

func TestListsHaveFewLengths(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 300} {
		vs := slices.Repeat([]int64{1}, n)
		vs[n-1] = 2
		args := padded(vs)
		require.GreaterOrEqual(t, len(args), n)
		require.Zero(t, len(args)&(len(args)-1))
		for _, extra := range args[n-1:] {
			require.Equal(t, any(int64(2)), extra)
		}
	}
}

func TestRowsOfTopicsKeepTheirOrder(t *testing.T) {
	got := byTopic([]row{{id: 1, topic: "a"}, {id: 2, topic: "b"}, {id: 3, topic: "a"}, {id: 4, topic: "c"}, {id: 5, topic: "b"}})
	require.Equal(t, [][]row{{{id: 1, topic: "a"}, {id: 3, topic: "a"}}, {{id: 2, topic: "b"}, {id: 5, topic: "b"}}, {{id: 4, topic: "c"}}}, got)
}
