package redisstream

import (
	"context"
	"io"
	"slices"
	"strings"
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
}

// read runs one command that may block, and returns its reply, which is good
// until the next read.
func (r *reader) read(args []any) (reply []byte, err error) {
	conn, err := r.connect()
	if err != nil {
		return nil, err
	}
	if cap(r.reply) > largeReply {
		r.reply = nil
	}
	r.reply = r.reply[:0]
	err = raw(r.t.ctx, conn, &r.reply, args)
	r.mu.Lock()
	r.busy = false
	r.mu.Unlock()
	switch f := faultOf(err); {
	case err == nil:
		r.t.answered()
	case f == moved:
		relocate(r.t.ctx, r.t.clients.read)
		r.drop()
	case cut(err), f == refused:
		r.drop()
	}
	return r.reply, err
}

// The memory of a reply larger than this is not used again.
const largeReply = 1 << 20

// raw runs a command and appends its reply to reply.
func raw(ctx context.Context, c interface {
	Process(context.Context, redis.Cmder) error
}, reply *sink, args []any) error {
	from := len(*reply)
	cmd := redis.NewRawWriteToCmd(ctx, reply, args...)
	if name := args[0]; name == "EVALSHA" || name == "EVAL" {
		cmd.SetFirstKeyPos(3)
	}
	if err := c.Process(ctx, cmd); err != nil {
		return err
	}
	if text := (*reply)[from:]; len(text) > 0 && text[0] == '-' {
		line, _, _ := strings.Cut(string(text[1:]), "\r")
		*reply = (*reply)[:from]
		return replyError(line)
	}
	return nil
}

// replyError is an error that the server replied with.
type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// sink collects a reply. It grows with what comes, not with what was announced.
type sink []byte

func (s *sink) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// ReadFrom implements [io.ReaderFrom], which [io.CopyN] looks for.
func (s *sink) ReadFrom(r io.Reader) (total int64, err error) {
	const most = 64 << 10
	for {
		room := 512
		if l, ok := r.(*io.LimitedReader); ok {
			if l.N <= 0 {
				return total, nil
			}
			room = int(min(l.N, most))
		}
		*s = slices.Grow(*s, room)
		n, err := r.Read((*s)[len(*s) : len(*s)+room])
		*s = (*s)[:len(*s)+n]
		total += int64(n)
		if err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

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
	id, err := conn.ClientID(ctx).Result()
	if err != nil {
		conn.Close()
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node, r.conn, r.id, r.busy = n, conn, id, true
	return conn, nil
}

// drop gives the connection up.
func (r *reader) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
		r.t.count.reconnects.Add(1)
	}
}

// close closes the connection, which nobody reads from any more.
func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
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
		n.ClientUnblock(ctx, id)
	}
}

// wakeUntil wakes the reader until done is closed, for at most grace, and
// reports whether it was.
func (r *reader) wakeUntil(done <-chan struct{}, grace time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var waking sync.WaitGroup
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
