package echo

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// A memory knows what it was told within its window, and counts what it forgot.
func TestAMemoryKeepsItsWindowAndItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(time.Minute)
		tell := func(from, to int) {
			for i := from; i < to; i++ {
				h := m.hash(fmt.Sprint(i))
				handled, _ := m.begin(h, clock(), false)
				assert.False(t, handled, "%d", i)
				m.end(h, clock(), true)
			}
		}
		knows := func(from, to int) (n int) {
			for i := from; i < to; i++ {
				if m.knows(m.hash(fmt.Sprint(i))) {
					n++
				}
			}
			return n
		}
		tell(0, 1000)
		time.Sleep(40 * time.Second)
		tell(1000, 3000)
		assert.Equal(t, 3000, knows(0, 3000))
		time.Sleep(40 * time.Second)
		assert.Zero(t, knows(0, 1000), "their window is over")
		assert.Equal(t, 2000, knows(1000, 3000))
		time.Sleep(time.Hour)
		assert.Zero(t, knows(0, 3000))
		assert.Zero(t, m.lost)

		const half = maxRemembered / 2
		tell(10_000, 10_000+3*half)
		assert.Equal(t, half, knows(10_000+2*half, 10_000+3*half), "the last ones")
		assert.Zero(t, knows(10_000, 10_000+half), "the first ones")
		assert.EqualValues(t, 2*half, m.lost, "as looking made room")
	})
}
