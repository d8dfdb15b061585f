package redisstream

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/transport"
)

// reader is a connection of a subscription's own for reads that block. One
// goroutine at a time reads; wake may be called beside it.
//
// Neither a context nor go-redis ends a read that blocks, so another
// connection asks the server to, by CLIENT UNBLOCK, and the reply is awaited:
// it may carry entries that are this consumer's from then on.
type reader struct {
	t     *Transport
	key   string
	reply sink // to be used again

	mu   sync.Mutex // guards the rest
	node *redis.Client
	conn *redis.Conn
	id   int64 // of conn, for the server
	busy bool  // a read is under way
	over bool  // no more reads will come
}

// read runs one command that may block, and returns its reply, which is good
// until the next read.
func (r *reader) read(args []any) (reply []byte, err error) {
	conn, err := r.connect()
	if err != nil {
		return nil, err
	}
	if cap(r.reply.b) > largeReply {
		r.reply.b = nil
	}
	r.reply.b = r.reply.b[:0]
	err = raw(r.t.ctx, conn, &r.reply, 0, args)
	r.mu.Lock()
	if r.busy = false; r.over && r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
	r.mu.Unlock()
	switch f := faultOf(err); {
	case err == nil:
		r.t.answered()
	case f == moved:
		relocate(r.t.ctx, r.t.clients.read)
		r.drop()
	case f == ambiguous, f == refused:
		r.drop()
	}
	return r.reply.b, err
}

// The memory of a reply larger than this is not used again.
const largeReply = 1 << 20

// connect returns the connection, a new one if need be, and marks it busy.
func (r *reader) connect() (*redis.Conn, error) {
	r.mu.Lock()
	conn := r.conn
	r.busy = conn != nil
	r.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(r.t.ctx, blockMost+readMargin)
	defer cancel()
	n, err := node(ctx, r.t.clients.read, r.key)
	if err != nil {
		return nil, err
	}
	conn = n.Conn()
	var reply sink
	err = raw(ctx, conn, &reply, 0, []any{"CLIENT", "ID"})
	if err != nil {
		quit(conn)
		return nil, err
	}
	c := cursor{reply.b}
	id, err := c.integer()
	if err != nil {
		quit(conn)
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node, r.conn, r.id, r.busy = n, conn, id, true
	return conn, nil
}

// drop gives the connection up. Only the reader itself may: go-redis does not
// bear a connection to be closed while it is in use.
func (r *reader) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		quit(r.conn)
		r.conn = nil
		r.t.count.reconnects.Add(1)
	}
}

// quit closes a connection for good. Close alone would let another read have
// it, which may be of no use if the server refuses.
func quit(c *redis.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	c.Process(ctx, redis.NewRawWriteToCmd(ctx, new(sink), "QUIT"))
	c.Close()
}

// close closes the connection, after the read that may be under way.
func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over = true; r.conn != nil && !r.busy {
		r.conn.Close()
		r.conn = nil
	}
}

// wake asks the server to end the read that is under way, if one is. It may
// come too early, before the server blocks, and is then to be repeated.
func (r *reader) wake(ctx context.Context) {
	r.mu.Lock()
	busy, n, id := r.busy, r.node, r.id
	r.mu.Unlock()
	if busy {
		raw(ctx, n, new(sink), 0, []any{"CLIENT", "UNBLOCK", id})
	}
}

// wakeUntil wakes the reader until done is closed, for at most grace, and
// reports whether it was.
func (r *reader) wakeUntil(done <-chan struct{}, grace time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var waking sync.WaitGroup
	defer waking.Wait() // no longer than ctx
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		waking.Wait()
		waking.Go(func() { r.wake(ctx) })
		t := time.NewTimer(pause)
		select {
		case <-done:
			t.Stop()
			return true
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
}

// messages turns entries into messages, which share nothing with the reply.
// Entries that cannot be understood, and those deleted meanwhile, are told to
// bad.
func (t *Transport) messages(c *cursor, n int, dst []transport.Message, bad func(*entry, error)) (int, error) {
	var e entry
	k, size := 0, 0
	defer func() {
		data := make([]byte, 0, size)
		for i := range dst[:k] {
			m := &dst[i]
			from := len(data)
			data = append(data, m.Data...)
			m.Data = data[from:len(data):len(data)]
		}
	}()
	for range n {
		if err := c.entry(&e); err != nil {
			return k, err
		}
		if e.deleted {
			bad(&e, errDeleted)
			continue
		}
		if k == len(dst) {
			return k, c.fail("no more entries than were asked for")
		}
		m := &dst[k]
		if err := t.cfg.format.message(&e, m); err != nil {
			bad(&e, err)
			continue
		}
		m.Position = e.id
		size += len(m.Data)
		k++
	}
	return k, nil
}
