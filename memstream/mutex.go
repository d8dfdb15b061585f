package memstream

import "sync"

// mutex is a sync.Mutex that spins for about a microsecond before it parks the
// goroutine. sync.Mutex does not spin while the processor has other goroutines
// to run, which is the rule here; but a topic's lock is held for some tens of
// nanoseconds, so waiting is far cheaper than parking.
type mutex struct{ sync.Mutex }

func (m *mutex) Lock() {
	for range 64 {
		if m.TryLock() {
			return
		}
		for range 16 {
			pause()
		}
	}
	m.Mutex.Lock()
}

//go:noinline
func pause() {}
