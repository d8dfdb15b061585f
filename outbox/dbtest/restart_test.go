package dbtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

func TestARelayOutlivesARestartOfTheDatabase(t *testing.T) {
	s, err := newServer()
	require.NoError(t, err)
	defer s.close()
	db := s.database(t)
	logged := make(lines, 1000)
	ob := db.outbox(t, outbox.WithLogger(logger(logged)))
	mem := memstream.New()
	defer mem.Close()
	got := subscribe(t, mem, "t")
	stop := relaying(t, ob, mem)
	db.publish(t, ob, "t", messages("before", 10)...)
	receive(t, got, 10)
	eventually(t, ob, "all is deleted", drained)

	stop()

	crash, crashed := true, make(chan struct{})
	db.publish(t, ob, "t", messages("while", 10)...)
	stop = relaying(t, ob, sender{mem, func(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
		n, err := mem.Send(ctx, topic, msgs)
		if crash { // what was stored cannot be deleted
			crash = false
			s.stop()
			close(crashed)
		}
		return n, err
	}})
	<-crashed
	require.Error(t, db.within(t.Context(), func(ctx context.Context, _ *sql.Tx) error {
		_, err := ob.Send(ctx, "t", messages("down", 1))
		return err
	}))
	require.Contains(t, <-logged, "the database failed")
	require.NoError(t, s.start())
	db.publish(t, ob, "t", messages("after", 10)...)
	want := append(ids(messages("while", 10)), ids(messages("after", 10))...)
	require.Equal(t, want, ids(receive(t, got, 20)))
	require.Zero(t, eventually(t, ob, "all is deleted", drained).Repeated)
	stop()
}
