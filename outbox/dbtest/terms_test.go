package dbtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func TestTermsGoAlong(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		msgs := messages("m", 4)
		due := time.Now().Add(time.Hour)
		msgs[0].Terms = &transport.Terms{Due: due}
		msgs[1].Terms = &transport.Terms{Once: "a\"b", Window: time.Minute}
		msgs[2].Terms = &transport.Terms{Once: "a\"b", Window: time.Minute}
		db.publish(t, ob, "t", msgs...)
		mem := memstream.New()
		defer mem.Close()
		s := subscribe(t, mem, "t")
		relaying(t, ob, mem)
		got := receive(t, s, 2)
		assert.Equal(t, []string{msgs[1].ID, msgs[3].ID}, ids(got))
		i, err := mem.Inspect(t.Context(), "t")
		require.NoError(t, err)
		assert.EqualValues(t, 1, i.Delayed)
		assert.EqualValues(t, 1, i.Duplicates)
	})
}
