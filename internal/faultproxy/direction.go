package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// direction is one direction of a connection. One goroutine reads, another one
// delivers what was read when the settings say so.
type direction struct {
	conn    *conn
	from    *net.TCPConn
	forward func([]byte) bool // reports whether more may follow
	replies bool
	chunks  chan chunk
	rand    *rand.Rand
	free    time.Time // when the bandwidth allows more
}

// chunk is what one read returned: some bytes, or an error.
type chunk struct {
	data   []byte
	err    error
	at     time.Time
	jitter float64 // its part of the jitter, below 1
}

func newDirection(c *conn, from *net.TCPConn, forward func([]byte) bool) *direction {
	return &direction{
		conn:    c,
		from:    from,
		forward: forward,
		chunks:  make(chan chunk, 64),
		rand:    rand.New(rand.NewPCG(uint64(c.number), 0)),
	}
}

func (d *direction) read() {
	buf := make([]byte, 16<<10)
	for {
		n, err := d.from.Read(buf)
		if n > 0 && !d.queue(chunk{data: bytes.Clone(buf[:n])}) {
			return
		}
		if err != nil {
			d.queue(chunk{err: err})
			return
		}
	}
}

// queue reports whether the connection has not ended.
func (d *direction) queue(c chunk) bool {
	c.at, c.jitter = time.Now(), d.rand.Float64()
	select {
	case d.chunks <- c:
		return true
	case <-d.conn.ctx.Done():
		return false
	}
}

func (d *direction) write() {
	for {
		select {
		case c := <-d.chunks:
			if !d.deliver(c) {
				return
			}
		case <-d.conn.ctx.Done():
			return
		}
	}
}

// deliver reports whether more may follow.
func (d *direction) deliver(c chunk) bool {
	for {
		s := d.await(c)
		switch {
		case s == nil:
			return false
		case c.err != nil:
			d.hangUp(c.err)
			return false
		}
		n := len(c.data)
		if s.chunk > 0 {
			n = min(n, s.chunk)
		}
		if s.bandwidth > 0 {
			n = min(n, max(1, s.bandwidth/50))
			d.free = time.Now().Add(time.Duration(n) * time.Second / time.Duration(s.bandwidth))
		}
		if !d.forward(c.data[:n]) {
			return false
		}
		if c.data = c.data[n:]; len(c.data) == 0 {
			return true
		}
	}
}

// await waits until some of c may be delivered and returns the settings then,
// or nil if the connection ended first.
func (d *direction) await(c chunk) *settings {
	for {
		s := d.conn.proxy.set.Load()
		var due <-chan time.Time
		if !s.blackhole && !(s.blackholeReplies && d.replies) {
			wait := time.Until(c.at.Add(s.delay + time.Duration(c.jitter*float64(s.jitter))))
			if s.bandwidth > 0 {
				wait = max(wait, time.Until(d.free))
			}
			if wait <= 0 {
				return s
			}
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-s.changed:
		case <-d.conn.ctx.Done():
			return nil
		}
	}
}

// hangUp tells the other side that this one is gone.
func (d *direction) hangUp(err error) {
	switch {
	case !errors.Is(err, io.EOF):
		d.conn.end(true)
	case d.replies:
		d.conn.end(false)
	default:
		d.conn.server.CloseWrite()
	}
}
