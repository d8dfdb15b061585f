package redisstream

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/echobus/echo/transport"
)

// skew is how far the clock of a publisher may be ahead of the server's for
// [transport.AtTime] to find its messages.
const skew = 10 * time.Minute

// locate returns the place after which a subscription begins. To find a
// message by its ID it reads the stream from its end; to find one by its time
// it reads on from the first entry added at that time, or a little earlier.
func (t *Transport) locate(ctx context.Context, key string, start transport.Start) (p transport.Position, err error) {
	switch start.From {
	case transport.AfterPosition:
		return start.Position, nil
	case transport.AfterID:
		p, ok, err := t.scan(ctx, "XREVRANGE", key, "+", func(m *transport.Message) bool { return m.ID == start.ID })
		if err == nil && !ok {
			err = fmt.Errorf("redisstream: message %q in %s: %w", start.ID, key, transport.ErrNotFound)
		}
		return p, err
	case transport.AtTime:
		from := strconv.FormatInt(max(0, start.Time.Add(-skew).UnixMilli()), 10)
		p, ok, err := t.scan(ctx, "XRANGE", key, from, func(m *transport.Message) bool { return !m.Time.Before(start.Time) })
		if err != nil {
			return p, err
		}
		if ok {
			return before(p), nil
		}
		fallthrough
	case transport.Newest:
		return t.newest(ctx, key)
	}
	return p, nil // Oldest
}

// after returns where to go on after a position, and whether entries after it
// are gone: trimmed, deleted, or lost with the whole stream.
func (t *Transport) after(ctx context.Context, key string, p transport.Position) (from transport.Position, gone bool, err error) {
	var info attributes
	_, err = t.retrying(ctx, forever, func(ctx context.Context) error {
		i, err := t.stream(ctx, key)
		if err == nil {
			info = i
		}
		return err
	})
	if err != nil {
		return transport.Position{}, false, describe("XINFO STREAM", key, err)
	}
	if info == nil {
		return transport.Position{}, true, nil
	}
	last, err := parseID(info.text("last-generated-id"))
	if err != nil {
		return transport.Position{}, false, err
	}
	if last.Compare(p) < 0 { // of a stream before this one
		return transport.Position{}, true, nil
	}
	if last == p {
		return p, false, nil
	}
	// Where p itself is gone, more may be: nobody knows what came right after it.
	first, err := firstID(info)
	if err != nil || first.Compare(p) > 0 {
		return p, true, nil
	}
	deleted, err := parseID(info.text("max-deleted-entry-id")) // which servers before 7.0 do not tell
	return p, err == nil && deleted.Compare(p) > 0, nil
}

// firstID returns the ID of the oldest entry of a stream.
func firstID(info attributes) (transport.Position, error) {
	entry, _ := info["first-entry"].([]any)
	if len(entry) == 0 {
		return transport.Position{}, errMalformed
	}
	id, _ := entry[0].(string)
	return parseID(id)
}

// newest returns the ID of the last entry that a stream ever had.
func (t *Transport) newest(ctx context.Context, key string) (p transport.Position, err error) {
	_, err = t.retrying(ctx, forever, func(ctx context.Context) error {
		info, err := t.stream(ctx, key)
		if err == nil && info != nil {
			p, err = parseID(info.text("last-generated-id"))
		}
		return err
	})
	if err != nil {
		return transport.Position{}, describe("XINFO STREAM", key, err)
	}
	return p, nil
}

// scan reads a stream until it finds a message.
func (t *Transport) scan(ctx context.Context, command, key, from string, found func(*transport.Message) bool) (transport.Position, bool, error) {
	const batch = 500
	end := "+"
	if command == "XREVRANGE" {
		end = "-"
	}
	var last transport.Position
	for {
		var reply sink
		_, err := t.retrying(ctx, forever, func(ctx context.Context) error {
			reply.b = reply.b[:0]
			return raw(ctx, t.clients.command(), &reply, 1, []any{command, key, from, end, "COUNT", batch})
		})
		if err != nil {
			return last, false, describe(command, key, err)
		}
		c := cursor{reply.b}
		n, err := c.array()
		if err != nil || n <= 0 {
			return last, false, err
		}
		var e entry
		var m transport.Message
		for range n {
			if err := c.entry(&e); err != nil {
				return last, false, err
			}
			last = e.id
			if t.cfg.format.message(&e, &m) == nil && found(&m) {
				return last, true, nil
			}
		}
		from = "(" + last.String()
	}
}
