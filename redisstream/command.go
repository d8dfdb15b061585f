package redisstream

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Replies are read here and not by go-redis, whose readers believe what a
// server announces: a length alone makes them allocate, or panic.

// processor is a client or a connection.
type processor interface {
	Process(context.Context, redis.Cmder) error
}

// raw runs a command whose argument number key is its key, 0 if it has none,
// and appends its reply to reply. Nothing sends it again.
func raw(ctx context.Context, p processor, reply *sink, key int8, args []any) error {
	from := len(reply.b)
	reply.heads = 0 // of what the sink collected before, such as a nil array
	cmd := redis.NewRawWriteToCmd(ctx, reply, args...)
	cmd.SetFirstKeyPos(key)
	cmd.SetStepCount(1) // or a cluster's client asks the server for it, each time if that may not be asked
	if err := p.Process(ctx, cmd); err != nil {
		return err
	}
	if err := replied(reply.b[from:]); err != nil {
		reply.b = reply.b[:from]
		return err
	}
	return nil
}

// replied returns the error that a reply is, or nil.
func replied(reply []byte) error {
	if len(reply) == 0 || reply[0] != '-' {
		return nil
	}
	line, _, _ := strings.Cut(string(reply[1:]), "\r")
	return replyError(line)
}

// replyError is an error that the server replied with.
type replyError string

func (e replyError) Error() string { return string(e) }
func (replyError) RedisError()     {}

// is reports whether err is an error that the server replied with and that
// begins with code.
func is(err error, code string) bool { return redis.HasErrorPrefix(err, code) }

// command runs a command and returns its reply: a string, an int64, a []any,
// or nil. It returns when ctx ends at the latest.
func (t *Transport) command(ctx context.Context, key int8, args ...any) (any, error) {
	var reply sink
	if _, err := within(ctx, func() error { return raw(ctx, t.clients.command(), &reply, key, args) }); err != nil {
		return nil, err
	}
	c := cursor{reply.b}
	return c.value()
}

// value takes a reply of any type.
func (c *cursor) value() (any, error) {
	if len(c.rest) == 0 {
		return nil, c.fail("a reply")
	}
	switch c.rest[0] {
	case ':':
		return c.integer()
	case '+':
		line, err := c.line('+', "a status")
		return string(line), err
	case '$':
		s, err := c.bulk()
		if s == nil {
			return nil, err
		}
		return string(s), err
	}
	n, err := c.array()
	if err != nil || n < 0 {
		return nil, err
	}
	list := make([]any, 0, min(n, 1024))
	for range n {
		v, err := c.value()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// attributes are the names and values of a reply that lists them by turns.
type attributes map[string]any

func attributesOf(v any) attributes {
	list, _ := v.([]any)
	a := make(attributes, len(list)/2)
	for i := 0; i+1 < len(list); i += 2 {
		name, _ := list[i].(string)
		a[name] = list[i+1]
	}
	return a
}

func (a attributes) text(name string) string {
	s, _ := a[name].(string)
	return s
}

// number returns an attribute, or -1 where it is unknown.
func (a attributes) number(name string) int64 {
	if n, ok := a[name].(int64); ok {
		return n
	}
	return -1
}

// stream returns what XINFO STREAM tells, nil if there is no such stream.
func (t *Transport) stream(ctx context.Context, key string) (attributes, error) {
	v, err := t.command(ctx, 2, "XINFO", "STREAM", key)
	if is(err, "no such key") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return attributesOf(v), nil
}

// groupsOf returns what XINFO GROUPS tells.
func (t *Transport) groupsOf(ctx context.Context, key string) ([]attributes, error) {
	v, err := t.command(ctx, 2, "XINFO", "GROUPS", key)
	if is(err, "no such key") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, _ := v.([]any)
	groups := make([]attributes, len(list))
	for i := range list {
		groups[i] = attributesOf(list[i])
	}
	return groups, nil
}

// sink collects replies. It grows with what comes, not with what was
// announced, and refuses what no reply is like.
type sink struct {
	b     []byte
	heads int // of arrays, one in another
}

const (
	deepest = 32
	largest = 1 << 30
)

func (s *sink) Write(p []byte) (int, error) {
	switch {
	case len(p) == 2 && p[0] == '\r': // the end of a line
	case len(p) > 0 && p[0] == '*' && (len(s.b) == 0 || s.b[len(s.b)-1] == '\n'):
		if s.heads++; s.heads > deepest {
			return 0, fmt.Errorf("%w: arrays within arrays", errMalformed)
		}
	default:
		s.heads = 0
	}
	if len(s.b) > largest {
		return 0, fmt.Errorf("%w: it is larger than %d bytes", errMalformed, largest)
	}
	s.b = append(s.b, p...)
	return len(p), nil
}

// ReadFrom implements [io.ReaderFrom], which [io.CopyN] looks for.
func (s *sink) ReadFrom(r io.Reader) (total int64, err error) {
	const most = 64 << 10
	s.heads = 0
	for {
		room := 512
		if l, ok := r.(*io.LimitedReader); ok {
			if l.N <= 0 {
				return total, nil
			}
			room = int(min(l.N, most))
		}
		if len(s.b) > largest {
			return total, fmt.Errorf("%w: it is larger than %d bytes", errMalformed, largest)
		}
		s.b = slices.Grow(s.b, room)
		n, err := r.Read(s.b[len(s.b) : len(s.b)+room])
		s.b = s.b[:len(s.b)+n]
		total += int64(n)
		if err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}
