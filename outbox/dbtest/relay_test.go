package dbtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

// sender is a transport with another Send.
type sender struct {
	transport.Transport
	send func(ctx context.Context, topic string, msgs []transport.Message) (int, error)
}

func (s sender) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	return s.send(ctx, topic, msgs)
}

func (s sender) Unwrap() transport.Transport { return s.Transport }

func TestATargetThatRefusesForAWhileGetsAllInOrder(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t, outbox.WithBatch(7))
		mem := memstream.New(memstream.WithMaxMessages(10), memstream.WithFull(memstream.Reject))
		defer mem.Close()
		full, free := subscribe(t, mem, "full"), subscribe(t, mem, "free")
		want := messages("m", 60)
		db.publish(t, ob, "full", want...)
		relaying(t, ob, mem)
		eventually(t, ob, "the topic is full", func(s outbox.Stats) bool { return s.Waiting == 50 })
		others := messages("o", 5)
		db.publish(t, ob, "free", others...)
		require.Equal(t, ids(others), ids(receive(t, free, 5)), "another topic goes on")
		require.Equal(t, ids(want), ids(receive(t, full, 60)))
		s := eventually(t, ob, "all is deleted", drained)
		require.Equal(t, uint64(65), s.Sent)
		require.Zero(t, s.Repeated)
		require.Zero(t, s.Parked)
	})
}

func TestAMessageThatIsRefusedForItselfIsParked(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		logged := make(lines, 100)
		ob := db.outbox(t, outbox.WithLogger(logger(logged)))
		small := memstream.New(memstream.WithMaxBytes(1000))
		defer small.Close()
		s := subscribe(t, small, "t")
		want := messages("m", 9)
		large := []string{"m-0", "m-4", "m-8"}
		for _, i := range []int{0, 4, 8} {
			want[i].Data = make([]byte, 2000)
			want[i].Header = map[string]string{"a": "b"}
		}
		db.publish(t, ob, "t", want...)
		stop := relaying(t, ob, small)
		require.Equal(t, []string{"m-1", "m-2", "m-3", "m-5", "m-6", "m-7"}, ids(receive(t, s, 6)))
		stats := eventually(t, ob, "the large ones are parked", func(s outbox.Stats) bool { return s.Waiting == 0 })
		require.Equal(t, int64(3), stats.Parked)
		stop()
		require.Contains(t, <-logged, "id=m-0")

		parked, err := ob.Parked(t.Context(), 2)
		require.NoError(t, err)
		require.Len(t, parked, 2)
		for i, p := range parked {
			require.Equal(t, "t", p.Topic)
			require.Equal(t, large[i], p.Message.ID)
			require.Equal(t, want[0].Header, p.Message.Header)
			require.Len(t, p.Message.Data, 2000)
			require.Contains(t, p.Reason, "too large")
			require.WithinDuration(t, time.Now(), p.Created, time.Hour)
		}
		n, err := ob.Retry(t.Context(), parked[1].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = ob.Retry(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, n)
		wide := memstream.New()
		defer wide.Close()
		s = subscribe(t, wide, "t")
		relaying(t, ob, wide)
		require.Equal(t, large, ids(receive(t, s, 3)))
	})
}

// lines hands out what is logged.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func logger(l lines) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestABatchThatIsTooLargeIsNoMessageThatIs(t *testing.T) {
	db := sqlite(t)
	ob := db.outbox(t)
	mem := memstream.New()
	defer mem.Close()
	one := sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
		if len(msgs) > 1 {
			return 0, errors.Join(transport.ErrNotPublished, transport.ErrTooLarge)
		}
		return mem.Send(ctx, topic, msgs)
	}}
	want := messages("m", 5)
	db.publish(t, ob, "t", want...)
	s := subscribe(t, mem, "t")
	relaying(t, ob, one)
	require.Equal(t, ids(want), ids(receive(t, s, 5)))
	require.Zero(t, eventually(t, ob, "all is deleted", drained).Parked)
}

func TestWhatATargetCannotDoIsParked(t *testing.T) {
	db := sqlite(t)
	ob := db.outbox(t)
	mem := memstream.New()
	defer mem.Close()
	db.publish(t, ob, "t", messages("m", 3)...)
	s := subscribe(t, mem, "t")
	relaying(t, ob, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
		for i, m := range msgs {
			if m.ID == "m-1" {
				n, err := mem.Send(ctx, topic, msgs[:i])
				return n, errors.Join(transport.ErrNotPublished, errors.ErrUnsupported, err)
			}
		}
		return mem.Send(ctx, topic, msgs)
	}})
	require.Equal(t, []string{"m-0", "m-2"}, ids(receive(t, s, 2)))
	require.Equal(t, int64(1), eventually(t, ob, "nothing waits", drained).Parked)
}

func TestWhatCountsAsPermanentCanBeSaid(t *testing.T) {
	db := sqlite(t)
	forbidden := errors.New("forbidden")
	ob := db.outbox(t, outbox.WithPermanent(func(err error) bool { return errors.Is(err, forbidden) }))
	mem := memstream.New()
	defer mem.Close()
	db.publish(t, ob, "secret", messages("s", 2)...)
	db.publish(t, ob, "t", messages("m", 1)...)
	relaying(t, ob, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
		if topic == "secret" {
			return 0, errors.Join(transport.ErrNotPublished, forbidden)
		}
		return mem.Send(ctx, topic, msgs)
	}})
	s := eventually(t, ob, "nothing waits", drained)
	require.Equal(t, int64(2), s.Parked)
	require.Equal(t, uint64(1), s.Sent)
}

func TestARowThatCannotBeReadIsParked(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		db.publish(t, ob, "t", messages("m", 4)...)
		for id, change := range map[string]string{"m-1": "header = '{broken'", "m-2": "time = 'yesterday'"} {
			_, err := db.Exec("UPDATE echo_outbox SET " + change + " WHERE message = '" + id + "'")
			require.NoError(t, err)
		}
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		require.Equal(t, []string{"m-0", "m-3"}, ids(receive(t, s, 2)))
		require.Equal(t, int64(2), eventually(t, ob, "nothing waits", drained).Parked)
	})
}

func TestAnUnknownOutcomeIsRepeatedUnderTheSameID(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		mem := memstream.New()
		defer mem.Close()
		want := messages("m", 5)
		db.publish(t, ob, "t", want...)
		var calls atomic.Int32
		s := subscribe(t, mem, "t")
		relaying(t, ob, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			n, err := mem.Send(ctx, topic, msgs)
			if calls.Add(1) == 1 && err == nil {
				return 2, errors.New("the reply was lost")
			}
			return n, err
		}})
		got := ids(receive(t, s, 8))
		require.Equal(t, append(ids(want), ids(want[2:])...), got)
		stats := eventually(t, ob, "all is deleted", drained)
		require.Equal(t, uint64(5), stats.Sent)
		require.Equal(t, uint64(3), stats.Repeated)
	})
}

func TestWakeSparesThePoll(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t, outbox.WithPoll(time.Hour))
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		for range 20 {
			db.publish(t, ob, "t", messages("m", 1)...)
			ob.Wake()
			receive(t, s, 1)
		}
	})
}

func TestOneRelayIsActiveAndAnotherTakesOverAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		mem := memstream.New()
		defer mem.Close()
		var boxes [3]*outbox.Outbox
		var stops [3]func()
		for i := range boxes {
			boxes[i] = db.outbox(t, outbox.WithLease(time.Hour))
			stops[i] = relaying(t, boxes[i], mem)
		}
		active := func() []int {
			var is []int
			for i, ob := range boxes {
				if s, err := ob.Stats(t.Context()); err == nil && s.Active {
					is = append(is, i)
				}
			}
			return is
		}
		for left := len(boxes); left > 0; left-- {
			var is []int
			require.Eventually(t, func() bool { is = active(); return len(is) > 0 }, patience, time.Millisecond)
			for range 20 {
				is = active()
				require.Len(t, is, 1)
			}
			stops[is[0]]()
		}
		require.Empty(t, active())
	})
}

func TestALeaseThatIsNotRenewedEnds(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		_, err := db.Exec("INSERT INTO echo_outbox_relay (id, holder, expires) VALUES (1, 'somebody who died', " + map[string]string{
			"SQLite":     "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + 300",
			"PostgreSQL": "extract(epoch FROM clock_timestamp()) * 1000 + 300",
		}[db.kind] + ")")
		require.NoError(t, err)
		db.publish(t, ob, "t", messages("m", 1)...)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		start := time.Now()
		relaying(t, ob, mem)
		receive(t, s, 1)
		require.Greater(t, time.Since(start), 200*time.Millisecond)
	})
}

func TestALongSendKeepsTheLease(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		mem := memstream.New()
		defer mem.Close()
		one, two := db.outbox(t, outbox.WithLease(600*time.Millisecond)), db.outbox(t)
		db.publish(t, one, "t", messages("m", 1)...)
		begun, goOn := make(chan struct{}), make(chan struct{})
		stop := relaying(t, one, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			close(begun)
			<-goOn
			return mem.Send(ctx, topic, msgs)
		}})
		release := sync.OnceFunc(func() { close(goOn) })
		t.Cleanup(release)
		<-begun
		relaying(t, two, mem)
		<-time.After(1500 * time.Millisecond) // what is claimed is that nothing happens meanwhile
		s, err := two.Stats(t.Context())
		require.NoError(t, err)
		require.False(t, s.Active)
		release()
		eventually(t, one, "all is deleted", drained)
		stop()
		require.Zero(t, eventually(t, two, "the other takes over", func(s outbox.Stats) bool { return s.Active }).Sent)
	})
}

func TestCancellingARelayDeletesWhatItSent(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		mem := memstream.New()
		defer mem.Close()
		db.publish(t, ob, "t", messages("m", 3)...)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := ob.Relay(ctx, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
			defer cancel()
			return mem.Send(ctx, topic, msgs)
		}})
		require.NoError(t, err)
		s, err := ob.Stats(t.Context())
		require.NoError(t, err)
		require.Equal(t, outbox.Stats{Sent: 3}, s)
	})
}

func TestARelayNeedsNoMoreThanOneConnection(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		db.SetMaxOpenConns(1)
		ob := db.outbox(t)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		for range 20 {
			db.publish(t, ob, "t", messages("m", 10)...)
			receive(t, s, 10)
		}
	})
}

func TestADatabaseOfSerializableTransactionsWillDo(t *testing.T) {
	db := postgres(t)
	_, err := db.Exec("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$")
	require.NoError(t, err)
	db = open(t, db.kind, db.dsn) // new connections, which know it
	ob := db.outbox(t)
	mem := memstream.New()
	defer mem.Close()
	s := subscribe(t, mem, "t")
	relaying(t, ob, mem)
	relaying(t, db.outbox(t), mem)
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			for i := range 50 {
				m := messages(fmt.Sprintf("m-%d-%d", p, i), 1)
				for db.within(t.Context(), func(ctx context.Context, _ *sql.Tx) error {
					_, err := ob.Send(ctx, "t", m)
					return err
				}) != nil && t.Context().Err() == nil {
				}
			}
		})
	}
	wg.Wait()
	eventually(t, ob, "all is relayed", drained)
	seen := make(map[string]bool)
	for len(seen) < 200 {
		seen[receive(t, s, 1)[0].ID] = true
	}
}
