package echo

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/echobus/echo/transport"
)

// ahead decodes the messages of a fetch from the back while its only handler
// works from the front. Decoding is most of the work of a busy consumer, and
// the order in which messages are handled does not depend on it.
type ahead[M any] struct {
	decode func(*transport.Message) (*M, int, error)
	f      *fetch
	values []decoded[M]
	helper sync.WaitGroup
}

type decoded[M any] struct {
	claimed atomic.Bool
	value   *M
	version int
	err     error
}

// A fetch smaller than this is not worth a helper.
const minAhead = 16

// begin starts decoding a fetch, when there is a processor to do it.
func (a *ahead[M]) begin(f *fetch) {
	if len(f.msgs) < minAhead || f.msgs[0].Value != nil || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	if len(a.values) < len(f.msgs) {
		a.values = make([]decoded[M], len(f.msgs))
	}
	clear(a.values[:len(f.msgs)])
	a.f = f
	a.helper.Go(a.run)
}

// end waits until nobody looks at the fetch any more.
func (a *ahead[M]) end() {
	a.helper.Wait()
	a.f = nil
}

// run decodes from the back until it meets the handler's side.
func (a *ahead[M]) run() {
	for i := len(a.f.msgs) - 1; i >= 0; i-- {
		d := &a.values[i]
		if d.claimed.Swap(true) {
			return
		}
		d.value, d.version, d.err = a.decode(&a.f.msgs[i])
	}
}

// value returns message i decoded, by whichever side.
func (a *ahead[M]) value(f *fetch, i int) (*M, int, error) {
	if a.f != f {
		return a.decode(&f.msgs[i])
	}
	d := &a.values[i]
	if !d.claimed.Swap(true) {
		return a.decode(&f.msgs[i])
	}
	a.helper.Wait() // it has just met us, if it is still at work
	if d.value == nil && d.err == nil {
		return a.decode(&f.msgs[i]) // it is tried again, with a value of its own
	}
	v, version, err := d.value, d.version, d.err
	d.value, d.err = nil, nil
	return v, version, err
}
