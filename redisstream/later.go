package redisstream

import (
	"container/heap"
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

// A topic for which nothing is known to be due is looked at so often, as long as
// somebody here subscribes to it.
const dueEvery = 2 * time.Second

// following is what a transport knows of what is due in a topic.
type following struct {
	topic string
	at    time.Duration // when to look
	users int           // subscriptions
	index int           // in the transport's looks; -1 while somebody looks
	again bool          // something was said to be due since then
}

// looks orders what is followed by when to look.
type looks []*following

func (q looks) Len() int           { return len(q) }
func (q looks) Less(a, b int) bool { return q[a].at < q[b].at }
func (q looks) Swap(a, b int) {
	q[a], q[b] = q[b], q[a]
	q[a].index, q[b].index = a, b
}

func (q *looks) Push(x any) {
	f := x.(*following)
	f.index = len(*q)
	*q = append(*q, f)
}

func (q *looks) Pop() any {
	last := len(*q) - 1
	f := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	f.index = -1
	return f
}

// follow sees to it that what is due in a topic is moved to its stream, and
// looks after d at the latest.
func (t *Transport) follow(topic string, d time.Duration) { t.followAs(topic, d, 0) }

// followAs is follow by so many subscriptions more, or less.
func (t *Transport) followAs(topic string, d time.Duration, users int) {
	if !t.DelaysMessages() || transport.IsInbox(topic) {
		return
	}
	at := clock() + d
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.later[topic]
	if f == nil {
		f = &following{topic: topic, at: at}
		t.later[topic] = f
		heap.Push(&t.looks, f)
	}
	f.users += users
	f.again = true
	if at < f.at {
		f.at = at
		if f.index >= 0 {
			heap.Fix(&t.looks, f.index)
		}
	}
	if !t.mover && !t.ended {
		t.mover = true
		t.work.Go(t.moveDue)
	}
	t.lookDue()
}

// lookDue makes moveDue look at the clock.
func (t *Transport) lookDue() {
	select {
	case t.sooner <- struct{}{}:
	default:
	}
}

// moveDue moves what is due, of all topics, until the transport is closed. A
// few topics are seen to at a time, so that one whose server hangs is one of few.
func (t *Transport) moveDue() {
	const most = 16
	turns := make(chan struct{}, most)
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
		var due []string
		for len(t.looks) > 0 && t.looks[0].at <= now {
			f := heap.Pop(&t.looks).(*following)
			f.again, f.at = false, now+dueEvery // unless something is said to be due sooner, from here on
			due = append(due, f.topic)
		}
		if len(t.looks) > 0 {
			next = t.looks[0].at - now
		}
		t.mu.Unlock()
		for _, topic := range due {
			select {
			case turns <- struct{}{}:
			case <-t.ctx.Done():
				return
			}
			t.spawn(func() {
				t.moveDueOf(topic)
				<-turns
			})
		}
		alarm.Reset(next)
	}
}

// moveDueOf moves what is due in a topic, and notes when to look again.
func (t *Transport) moveDueOf(topic string) {
	next, err := t.moveSome(topic)
	for next == 0 && err == nil {
		next, err = t.moveSome(topic)
	}
	if err != nil {
		if t.ctx.Err() == nil {
			t.failed(err)
			t.cfg.logger.Warn("redisstream: moving what is due failed, trying again", "topic", topic, "error", err)
		}
		next = time.Second
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.later[topic]
	if next < 0 {
		if next = dueEvery; f.users == 0 && !f.again {
			delete(t.later, topic)
			return
		}
	}
	f.at = min(f.at, clock()+min(next, dueEvery))
	heap.Push(&t.looks, f)
	t.lookDue()
}

// moveSome moves some of what is due, and returns when the next one is: 0 if
// there is more at once, less if there is nothing.
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
	case n > 0 && wait == 0:
		return 0, nil
	case wait < 0:
		return -1, nil
	}
	return max(time.Duration(min(wait, dueEvery.Milliseconds()))*time.Millisecond, time.Millisecond), nil
}

// accepting begins the command for a message with terms, which its fields
// follow. first tells that it is the first one of a pipeline.
func (x *xadds) accepting(t *Transport, key, topic string, m *transport.Message, first bool) {
	terms := m.Terms
	var delay int64
	if !terms.Due.IsZero() {
		if d := time.Until(terms.Due); d > 0 {
			delay = milliseconds(d)
		}
	}
	how, script := "EVALSHA", acceptScript.hash
	if first { // so that the server that has the key knows the script
		how, script = "EVAL", acceptScript.source
	}
	x.args = append(x.args, how, script, 5, key, t.sideKey(topic, "later"), t.sideKey(topic, "once"), t.sideKey(topic, "counts"), t.sideKey(topic, "once-age"),
		delay, terms.Once, milliseconds(terms.Window), t.cfg.remembered)
}

// postponed sees to it that messages which are stored now and due later are
// moved in time: a look that began before may not have seen them.
func (t *Transport) postponed(topic string, msgs []transport.Message) {
	next := time.Duration(-1)
	for i := range msgs {
		if terms := msgs[i].Terms; terms != nil && !terms.Due.IsZero() {
			if d := max(0, time.Until(terms.Due)); next < 0 || d < next {
				next = d
			}
		}
	}
	if next >= 0 {
		t.follow(topic, min(next, dueEvery))
	}
}

// What accept.lua returns in place of an id.
var notYet, already = transport.Position{}, transport.Position{Lo: 1}
