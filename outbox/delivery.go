package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/echobus/echo/transport"
)

// deliver sends rows of one topic in order, until one of them is not taken. Its
// error is the database's.
func (r *relay) deliver(ctx context.Context, rows []row) error {
	topic := rows[0].topic
	suspect := false // the first row may have been refused for itself
	for len(rows) > 0 && ctx.Err() == nil {
		n, err := 0, rows[0].bad
		msgs := messages(rows)
		if suspect {
			msgs = msgs[:1]
		}
		if err == nil {
			n, err = r.send(ctx, rows, msgs)
		}
		rows = rows[n:]
		if n > 0 {
			delete(r.paused, topic)
		}
		switch {
		case err == nil:
			suspect = false
		case rows[0].bad != nil, len(msgs) == 1 && r.permanent(err):
			if err := r.park(ctx, &rows[0], err); err != nil {
				return err
			}
			rows, suspect = rows[1:], false
			delete(r.paused, topic)
		case r.permanent(err):
			suspect = true
		default:
			r.pause(ctx, topic, len(rows), err)
			return nil
		}
	}
	return nil
}

// messages returns what of rows goes together: up to 1 MiB, and what was read
// well.
func messages(rows []row) []transport.Message {
	msgs := make([]transport.Message, 0, len(rows))
	for i := range rows {
		if rows[i].bad != nil {
			break
		}
		msgs = append(msgs, rows[i].msg)
	}
	return msgs[:chunk(msgs, len(msgs), sendBytes)]
}

// send sends the first of rows and notes what became of them.
func (r *relay) send(ctx context.Context, rows []row, msgs []transport.Message) (int, error) {
	for i := range msgs {
		if _, again := r.unsure[rows[i].id]; again {
			r.o.repeated.Add(1)
		}
	}
	limited, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	n, err := r.to.Send(limited, rows[0].topic, msgs)
	n = max(0, min(n, len(msgs)))
	switch {
	case n == len(msgs):
		err = nil
	case err == nil:
		err = io.ErrShortWrite
	}
	for i := range msgs {
		switch id := rows[i].id; {
		case i < n:
			r.done = append(r.done, id)
			delete(r.unsure, id)
		case !errors.Is(err, transport.ErrNotPublished):
			r.unsure[id] = struct{}{}
		}
	}
	r.o.sent.Add(uint64(n))
	return n, err
}

// permanent reports whether a message was refused for itself.
func (r *relay) permanent(err error) bool {
	return transport.RefusedForItself(err) || errors.Is(err, transport.ErrNotPublished) && r.o.cfg.permanent(err)
}

// park sets a message aside, in its row.
func (r *relay) park(ctx context.Context, w *row, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	text := strings.ReplaceAll(strings.ToValidUTF8(reason.Error(), "\ufffd"), "\x00", "")
	if _, err := r.o.db.ExecContext(ctx, r.o.sql.park, fmt.Sprintf("%.1000s", text), w.id); err != nil {
		return err
	}
	delete(r.unsure, w.id)
	r.o.cfg.logger.ErrorContext(ctx, "outbox: a message was refused and parked", "table", r.o.cfg.table, "row", w.id, "topic", w.topic, "id", w.msg.ID, "error", reason)
	return nil
}

// pause lets a topic wait.
func (r *relay) pause(ctx context.Context, topic string, waiting int, err error) {
	if ctx.Err() != nil {
		return
	}
	b := r.paused[topic]
	if b == nil {
		b = new(backoff)
		r.paused[topic] = b
	}
	b.fail()
	outcome := transport.ErrPublishUnknown
	if errors.Is(err, transport.ErrNotPublished) {
		outcome = transport.ErrNotPublished
	}
	r.o.cfg.logger.WarnContext(ctx, "outbox: sending failed, trying again", "topic", topic, "outcome", outcome, "after", time.Until(b.until), "waiting", waiting, "error", err)
}

// backoff is the pause after failures that follow each other.
type backoff struct {
	d     time.Duration
	until time.Time
}

// fail begins a pause between the half of d and d, which doubles each time.
func (b *backoff) fail() {
	b.d = min(max(100*time.Millisecond, 2*b.d), 10*time.Second)
	b.until = time.Now().Add(b.d/2 + rand.N(b.d/2))
}
