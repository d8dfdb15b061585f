package wsstream

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A batch, which is one WebSocket message, has about this many bytes at most;
// a larger frame goes alone.
const batchBytes = 64 << 10

// headroom is left before a batch for the header of a WebSocket frame.
const headroom = 10

// controlMost bounds the frames that wait to be written besides messages, in
// bytes. A peer that lets them grow so far does not read.
const controlMost = 4 << 20

// source has messages to write.
type source interface {
	// fill appends frames to batch, until that has batchBytes or so, and
	// reports whether there are more. One goroutine at a time calls it.
	fill(batch []byte) (b []byte, more bool)
	// queue returns where the outlet notes that the source is in its queue.
	queue() *bool
}

// outlet writes to one link: requests and replies first, then what sources
// have, by turns. It has a goroutine only while there is something to write,
// and what comes meanwhile goes together.
type outlet struct {
	codec codec
	write func(batch []byte) error // the bytes after headroom, as one message
	fail  func(error)              // the link is to be given up
	run   func()                   // flush, made once

	mu      sync.Mutex // guards the rest
	control []byte
	ends    []int // of its frames
	most    int   // bytes that may wait in control
	bytes   int   // of a batch, but for a larger frame
	frames  int   // of a batch
	ready   []source
	spare   []source
	busy    bool
	slow    bool // the last write was held up
	closed  bool
	flushed *sync.Cond // busy became false
}

func newOutlet(c codec, write func([]byte) error, fail func(error)) *outlet {
	o := &outlet{codec: c, write: write, fail: fail, most: controlMost, bytes: batchBytes, frames: math.MaxInt}
	o.run = o.flush
	o.flushed = sync.NewCond(&o.mu)
	return o
}

// send writes frames, in order, before messages that wait.
func (o *outlet) send(fs ...frame) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	for i := range fs {
		o.control = o.codec.append(o.control, &fs[i])
		o.ends = append(o.ends, len(o.control))
	}
	full := len(o.control) > o.most
	o.start()
	o.mu.Unlock()
	if full {
		o.fail(errSlow)
	}
}

// wake notes that a source has something to write.
func (o *outlet) wake(s source) {
	if o.note(s) {
		go o.run()
	}
}

// note is wake, but if it returns true the caller has to see to it that flush
// runs, soon.
func (o *outlet) note(s source) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	queued := s.queue()
	if *queued || o.closed {
		return false
	}
	*queued = true
	o.ready = append(o.ready, s)
	if o.busy {
		return false
	}
	o.busy = true
	if o.slow {
		go o.run()
		return false
	}
	return true
}

// flushAll makes flush run for outlets that were noted. A goroutine for each
// would cost about a third of writing to them; so a few see to all, one after
// another, and who is held up by a peer that does not read is replaced.
func flushAll(outlets []*outlet) {
	workers := 2 * runtime.GOMAXPROCS(0)
	if len(outlets) <= 4*workers {
		for _, o := range outlets {
			go o.run()
		}
		return
	}
	r := &round{outlets: outlets}
	for range workers {
		go r.work()
	}
}

// round is outlets that are to be flushed.
type round struct {
	outlets []*outlet
	next    atomic.Int64
}

// heldUp is how long a write takes at most that nobody minds.
const heldUp = time.Millisecond

func (r *round) work() {
	held := time.AfterFunc(heldUp, r.work)
	defer held.Stop()
	for {
		i := int(r.next.Add(1) - 1)
		if i >= len(r.outlets) {
			return
		}
		held.Reset(heldUp)
		r.outlets[i].run()
	}
}

// queue puts sources before those that came meanwhile, and others behind them.
func (o *outlet) queue(first, last []source) {
	if len(first)+len(last) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	came := o.ready
	o.ready = nil
	o.append(first)
	o.ready = append(o.ready, came...)
	o.append(last)
}

// append queues sources that are not. The caller holds mu.
func (o *outlet) append(sources []source) {
	for _, s := range sources {
		if queued := s.queue(); !*queued {
			*queued = true
			o.ready = append(o.ready, s)
		}
	}
}

// start makes flush run. The caller holds mu.
func (o *outlet) start() {
	if !o.busy {
		o.busy = true
		go o.run()
	}
}

var batches = sync.Pool{New: func() any {
	b := make([]byte, headroom, 4096)
	return &b
}}

// flush writes until nothing is left.
func (o *outlet) flush() {
	buf := batches.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 4*batchBytes {
			batches.Put(buf)
		}
	}()
	for {
		b := (*buf)[:headroom]
		o.mu.Lock()
		if o.closed || len(o.control) == 0 && len(o.ready) == 0 {
			o.busy = false
			o.flushed.Broadcast()
			o.mu.Unlock()
			return
		}
		b = o.takeControl(b)
		var sources []source
		if len(o.control) == 0 {
			sources = o.ready
			o.ready, o.spare = o.spare[:0], sources
			for _, s := range sources {
				*s.queue() = false
			}
		}
		o.mu.Unlock()
		full := len(sources) // those from here on got no room
		var more []source    // and these have more
		for i, s := range sources {
			if len(b) >= batchBytes {
				full = i
				break
			}
			again := false
			if b, again = s.fill(b); again {
				more = append(more, s)
			}
		}
		o.queue(sources[full:], more)
		clear(sources)
		*buf = b
		if len(b) == headroom {
			continue
		}
		began := time.Now()
		if err := o.write(b); err != nil {
			o.close()
			o.fail(err)
		}
		if slow := time.Since(began) > heldUp; slow != o.slow { // nobody else writes it
			o.mu.Lock()
			o.slow = slow
			o.mu.Unlock()
		}
	}
}

// takeControl moves as many frames to a batch as it may have. The caller holds mu.
func (o *outlet) takeControl(b []byte) []byte {
	n := min(len(o.ends), o.frames)
	for n > 1 && o.ends[n-1] > o.bytes {
		n--
	}
	if n == 0 {
		return b
	}
	end := o.ends[n-1]
	b = append(b, o.control[:end]...)
	if n < len(o.ends) {
		o.control, o.ends = o.control[end:], o.ends[n:]
		for i := range o.ends {
			o.ends[i] -= end
		}
		return b
	}
	if o.control, o.ends = o.control[:0], o.ends[:0]; cap(o.control) > 4096 {
		o.control, o.ends = nil, nil
	}
	return b
}

// limit sets what the peer takes in a batch, and how much may wait for it.
func (o *outlet) limit(bytes, frames, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes, o.frames, o.most = min(bytes, batchBytes), frames, most
}

// close drops what was not written.
func (o *outlet) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.control, o.ends, o.ready = nil, nil, nil
	o.flushed.Broadcast()
}

// stop is close, and waits until nothing is being written any more.
func (o *outlet) stop() {
	o.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy {
		o.flushed.Wait()
	}
}

// drain waits until everything is written, or the outlet is closed.
func (o *outlet) drain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy && !o.closed {
		o.flushed.Wait()
	}
}
