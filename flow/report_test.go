package flow_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/flow"
)

func TestReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := make1(t, flow.Each("each", 2, wait("work", time.Second)))
		var mu sync.Mutex
		var done []int64
		stop := f.Report(time.Second+time.Millisecond, func(s flow.Sight) {
			mu.Lock()
			defer mu.Unlock()
			work, ok := s.Find("f/each/work")
			require.True(t, ok)
			assert.EqualValues(t, 6, work.Counts.Given)
			done = append(done, work.Counts.Done())
		})
		_, err := f.Run(context.Background(), make([]int, 6))
		require.NoError(t, err)
		stop()
		stop()
		assert.Equal(t, []int64{2, 4, 6}, done)
		_, ok := f.Sight().Find("f/nothing")
		assert.False(t, ok)
	})
}
