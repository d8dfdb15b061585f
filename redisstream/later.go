package redisstream

import (
	"context"
	"time"

	"github.com/echobus/echo/transport"
)

// DelaysMessages reports true, but for the format of Crystal Echo. What is not
// due yet waits in a sorted set. Each transport that has subscribed to a topic,
// or sent such a message to it, moves what is due to the stream, by the clock
// of the server: the moment it is due if it sent it or looked since, within two
// seconds otherwise, and later while there is none.
func (t *Transport) DelaysMessages() bool { return t.cfg.format == format(native{}) }

// DeduplicatesMessages reports true, but for the format of Crystal Echo. A
// topic remembers [WithRemembered] messages.
func (t *Transport) DeduplicatesMessages() bool { return t.DelaysMessages() }

// A topic for which nothing is known to be due is looked at so often.
const dueEvery = 2 * time.Second

// follow sees to it that what is due in a topic is moved to its stream, and
// looks after d at the latest.
func (t *Transport) follow(topic string, d time.Duration) {
	if !t.DelaysMessages() {
		return
	}
	at := clock() + d
	t.mu.Lock()
	defer t.mu.Unlock()
	if next, ok := t.later[topic]; ok && next <= at {
		return
	}
	t.later[topic] = at
	if !t.mover && !t.ended {
		t.mover = true
		t.work.Go(t.moveDue)
	}
	select {
	case t.sooner <- struct{}{}:
	default:
	}
}

// moveDue moves what is due, of all topics, until the transport is closed.
func (t *Transport) moveDue() {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for {
		select {
		case <-alarm.C:
		case <-t.sooner:
		case <-t.ctx.Done():
			return
		}
		now, next := clock(), time.Hour
		t.mu.Lock()
		var topics []string
		for topic, at := range t.later {
			if at <= now {
				topics = append(topics, topic)
			} else {
				next = min(next, at-now)
			}
		}
		t.mu.Unlock()
		for _, topic := range topics {
			next = min(next, t.moveDueOf(topic))
		}
		alarm.Reset(next)
	}
}

// moveDueOf moves what is due in a topic, and returns when to look again.
func (t *Transport) moveDueOf(topic string) time.Duration {
	t.mu.Lock()
	t.later[topic] = clock() + dueEvery // unless something is said to be due sooner, from here on
	t.mu.Unlock()
	next, err := t.moveSome(topic)
	if err != nil {
		if t.ctx.Err() == nil {
			t.failed(err)
			t.cfg.logger.Warn("redisstream: moving what is due failed, trying again", "topic", topic, "error", err)
		}
		next = time.Second
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := min(t.later[topic], clock()+next)
	t.later[topic] = at
	return max(0, at-clock())
}

func (t *Transport) moveSome(topic string) (next time.Duration, err error) {
	const most = 500 // keep the server's other clients from waiting
	ctx, cancel := context.WithTimeout(t.ctx, settleMost)
	defer cancel()
	var reply sink
	_, err = within(ctx, func() error {
		return t.run(ctx, dueScript, []string{t.key(topic), t.sideKey(topic, "later"), t.sideKey(topic, "aside")}, &reply, most, t.cfg.aside)
	})
	if err != nil {
		return 0, err
	}
	c := cursor{reply.b}
	if k, err := c.array(); err != nil || k != 2 {
		return 0, c.fail("two numbers")
	}
	n, err := c.integer()
	if err != nil {
		return 0, err
	}
	wait, err := c.integer()
	switch {
	case err != nil:
		return 0, err
	case n == most:
		return 0, nil
	case wait < 0:
		return dueEvery, nil
	}
	return min(time.Duration(wait)*time.Millisecond, dueEvery), nil
}

// accepting begins the command for a message with terms, which its fields follow.
func (x *xadds) accepting(t *Transport, key, topic string, m *transport.Message) {
	terms := m.Terms
	var delay int64
	if !terms.Due.IsZero() {
		if d := time.Until(terms.Due); d > 0 {
			delay = milliseconds(d)
			t.follow(topic, d)
		}
	}
	x.args = append(x.args, "EVALSHA", acceptScript.hash, 3, key, t.sideKey(topic, "later"), t.sideKey(topic, "once"),
		delay, terms.Once, milliseconds(terms.Window), t.cfg.remembered)
}

// What accept.lua returns in place of an id.
var notYet, already = transport.Position{}, transport.Position{Lo: 1}
