package flow

import (
	"sync"
	"time"
)

// Report calls f with what happened in the flow so far, again and again with a
// pause between, for a progress bar, say, until stop is called: then once more,
// and never after that. f is called by one goroutine at a time, and must not call
// stop, which waits for it.
func (f *Flow[In, Out]) Report(pause time.Duration, report func(Sight)) (stop func()) {
	return f.root.report(pause, report)
}

// Report calls f with what happened in the pipeline so far; see [Flow.Report].
func (p *Pipeline) Report(pause time.Duration, report func(Sight)) (stop func()) {
	return p.root.report(pause, report)
}

func (p *place) report(pause time.Duration, report func(Sight)) (stop func()) {
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer func() { report(p.sight()) }()
		for {
			t := time.NewTimer(pause)
			select {
			case <-t.C:
				report(p.sight())
			case <-over:
				t.Stop()
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(over)
		<-done
	})
}

// Find returns the place with a path, such as "import/write/sqlite", and whether
// there is one.
func (s Sight) Find(path string) (Sight, bool) {
	if s.Path == path && s.Kind != SequenceKind {
		return s, true
	}
	for _, c := range s.Children {
		if found, ok := c.Find(path); ok {
			return found, true
		}
	}
	return Sight{}, false
}
