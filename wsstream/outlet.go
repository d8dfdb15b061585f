package wsstream

import (
	"sync"
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
	ready   []source
	spare   []source
	busy    bool
	closed  bool
	flushed *sync.Cond // busy became false
}

func newOutlet(c codec, write func([]byte) error, fail func(error)) *outlet {
	o := &outlet{codec: c, write: write, fail: fail}
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
	}
	full := len(o.control) > controlMost
	o.start()
	o.mu.Unlock()
	if full {
		o.fail(errSlow)
	}
}

// wake notes that a source has something to write.
func (o *outlet) wake(s source) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if queued := s.queue(); !*queued && !o.closed {
		*queued = true
		o.ready = append(o.ready, s)
		o.start()
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
		b = append(b, o.control...)
		if o.control = o.control[:0]; cap(o.control) > 4096 {
			o.control = nil
		}
		sources := o.ready
		o.ready, o.spare = o.spare[:0], sources
		for _, s := range sources {
			*s.queue() = false
		}
		o.mu.Unlock()
		for i, s := range sources {
			more := true
			if len(b) < batchBytes {
				b, more = s.fill(b)
			}
			if more {
				o.wake(s)
			}
			sources[i] = nil
		}
		*buf = b
		if len(b) == headroom {
			continue
		}
		if err := o.write(b); err != nil {
			o.close()
			o.fail(err)
		}
	}
}

// close drops what was not written.
func (o *outlet) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.control, o.ready = nil, nil
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
