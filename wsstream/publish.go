package wsstream

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// publish is a message that a client publishes.
type publish struct {
	rid    uint64
	topic  string
	msg    transport.Message
	again  bool
	within time.Duration
	code   Code // why it is refused, 0 if it is not
	text   string
}

// publish takes a message from a frame; it shares nothing with it.
func (c *conn) publish(f *frame, g *Grant) publish {
	p := publish{rid: f.Rid, topic: f.Topic, msg: f.message(), again: f.Again, within: c.h.cfg.sendFor}
	p.msg.Data = bytes.Clone(f.Data)
	if f.Within > 0 {
		p.within = min(p.within, duration(f.Within))
	}
	if p.msg.Time.IsZero() {
		p.msg.Time = time.Now().UTC()
	}
	switch {
	case f.Rid == 0:
		p.code, p.text = CodeBadFrame, "rid is missing"
	case f.ID == "":
		p.code, p.text = CodeBadFrame, "id is missing"
	case len(f.ID) > 128:
		p.code, p.text = CodeTooBig, "an id has 128 bytes at most"
	default:
		if err := transport.CheckName("topic", f.Topic); err != nil {
			p.code, p.text = CodeRefused, err.Error()
		} else if !g.mayPublish(f.Topic) {
			p.code = CodeForbidden
		}
	}
	return p
}

// publishing is what a link publishes, in order. The link's lock guards it.
type publishing struct {
	c     *conn
	queue []publish
	bytes int
	busy  bool
	room  chan struct{} // closed when something was published, if somebody waits
}

// publishBytes bounds the messages of a link that wait to be published;
// reading from the link waits while there are more.
const publishBytes = 8 << 20

// add queues messages, and reports whether the link goes on.
func (q *publishing) add(pubs []publish) bool {
	c := q.c
	size := 0
	for i := range pubs {
		size += pubs[i].msg.Size()
	}
	c.mu.Lock()
	for len(q.queue) > 0 && q.bytes+size > publishBytes && !c.over {
		if q.room == nil {
			q.room = make(chan struct{})
		}
		room := q.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-c.h.ctx.Done():
			return false
		}
		c.mu.Lock()
	}
	if len(q.queue)+len(pubs) > 2*c.h.cfg.maxPublish {
		c.mu.Unlock()
		c.reject(CodeOverrun, "", closeFlood)
		return false
	}
	for i := range pubs {
		if len(q.queue) >= c.h.cfg.maxPublish && pubs[i].code == 0 {
			pubs[i].code = CodeOverrun
		}
		q.queue = append(q.queue, pubs[i])
	}
	q.bytes += size
	start := !q.busy && !c.over
	if start {
		q.busy = true
		c.work.Go(q.run)
	}
	c.mu.Unlock()
	return true
}

// run publishes until nothing is left.
func (q *publishing) run() {
	c := q.c
	for {
		c.mu.Lock()
		pubs := q.queue
		q.queue, q.bytes = nil, 0
		if q.room != nil {
			close(q.room)
			q.room = nil
		}
		if len(pubs) == 0 {
			q.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for len(pubs) > 0 {
			n := 1
			for n < len(pubs) && pubs[n].topic == pubs[0].topic && pubs[n].code == 0 && pubs[0].code == 0 &&
				pubs[n].again == pubs[0].again && pubs[n].rid == pubs[0].rid+uint64(n) {
				n++
			}
			c.send(pubs[:n])
			pubs = pubs[n:]
		}
	}
}

// send publishes messages of one topic, with numbers in a row, and answers.
func (c *conn) send(pubs []publish) {
	first := &pubs[0]
	if first.code != 0 {
		c.refuse(&frame{Rid: first.rid}, first.code, first.text)
		return
	}
	if first.again {
		c.sendAgain(pubs)
		return
	}
	msgs := make([]transport.Message, len(pubs))
	within := first.within
	for i := range pubs {
		msgs[i] = pubs[i].msg
		within = max(within, pubs[i].within)
	}
	under := c.h.window.begin(c.subject(), first.topic, msgs)
	ctx, cancel := context.WithTimeout(c.h.ctx, within)
	n, err := c.h.t.Send(ctx, first.topic, msgs)
	cancel()
	c.h.window.end(under, msgs, n, err)
	c.h.count.published.Add(uint64(n))
	if n > 0 {
		at := make([]transport.Position, n)
		for i := range at {
			at[i] = msgs[i].Position
		}
		c.out.send(frame{Type: framePubOK, Rid: first.rid, Count: uint64(n), At: at})
	}
	if err != nil {
		c.out.send(frame{Type: frameErr, Rid: first.rid + uint64(n), Count: uint64(len(pubs) - n), Code: sendCode(err), Text: sendText(err)})
	}
}

// sendAgain publishes messages that the client sent before, on a link that
// broke. Those that were stored, by this node or another, are not stored again.
func (c *conn) sendAgain(pubs []publish) {
	ctx, cancel := context.WithTimeout(c.h.ctx, pubs[0].within)
	defer cancel()
	since := pubs[0].msg.Time
	there := make(map[string]transport.Position)
	unsure := make(map[string]bool)
	for i := range pubs {
		m := &pubs[i].msg
		if at, known := c.h.window.find(ctx, c.subject(), pubs[i].topic, m.ID); at != (transport.Position{}) {
			there[m.ID] = at
		} else if !known {
			unsure[m.ID] = true
			if m.Time.Before(since) {
				since = m.Time
			}
		}
	}
	if len(unsure) > 0 {
		c.h.lookFor(ctx, pubs[0].topic, since, unsure, there)
	}
	for len(pubs) > 0 {
		n := 0
		for n < len(pubs) && there[pubs[n].msg.ID] == (transport.Position{}) {
			pubs[n].again = false
			n++
		}
		if n > 0 {
			c.send(pubs[:n])
			pubs = pubs[n:]
			continue
		}
		c.out.send(frame{Type: framePubOK, Rid: pubs[0].rid, Count: 1, At: []transport.Position{there[pubs[0].msg.ID]}, Again: true})
		c.h.count.duplicates.Add(1)
		pubs = pubs[1:]
	}
}

// lookFor looks in a topic for messages that another node may have stored, and
// adds to there where they are. It looks at no more than what was published
// since, and gives up on what would take too long: a message stored twice is
// better than one that is not.
func (h *Handler) lookFor(ctx context.Context, topic string, since time.Time, ids map[string]bool, there map[string]transport.Position) {
	const most = 100_000
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	end, err := h.t.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.Newest}})
	if err != nil {
		return
	}
	defer end.Close()
	last, ok := transport.As[transport.Positioner](end)
	if !ok {
		return
	}
	head := last.Position()
	sub, err := h.t.Subscribe(ctx, topic, transport.Options{Start: transport.Start{From: transport.AtTime, Time: since}})
	if err != nil {
		return
	}
	defer sub.Close()
	at, ok := transport.As[transport.Positioner](sub)
	if !ok {
		return
	}
	dst := make([]transport.Message, 256)
	for n := 0; n < most && at.Position().Compare(head) < 0; {
		k, err := sub.Receive(ctx, dst)
		if err != nil {
			return
		}
		for i := range dst[:k] {
			if m := &dst[i]; ids[m.ID] {
				there[m.ID] = m.Position
			}
		}
		n += k
	}
}

// sendCode says why messages were not published.
func sendCode(err error) Code {
	switch {
	case !errors.Is(err, transport.ErrNotPublished):
		return CodeUnknown
	case errors.Is(err, transport.ErrTooLarge):
		return CodeTooBig
	case errors.Is(err, transport.ErrFull), errors.Is(err, context.DeadlineExceeded):
		return CodeFull
	case errors.Is(err, transport.ErrClosed), errors.Is(err, context.Canceled):
		return CodeShuttingDown
	}
	return CodeRefused
}

func sendText(err error) string {
	if errors.Is(err, transport.ErrTooLarge) || errors.Is(err, transport.ErrFull) {
		return err.Error()
	}
	return ""
}

// window remembers which messages were published of late, so that one that is
// sent again is stored once.
type window struct {
	mu   sync.Mutex
	most int
	past map[published]*fate
	ring []published // in the order they came
	next int
}

// published names a message.
type published struct{ subject, topic, id string }

// fate is what became of a message.
type fate struct {
	done  chan struct{} // closed when the following are set
	at    transport.Position
	known bool // it was stored at at, or surely not
}

func (w *window) init(most int) {
	w.most = most
	w.past = make(map[published]*fate)
}

// begin notes messages that are about to be published.
func (w *window) begin(subject, topic string, msgs []transport.Message) []*fate {
	fates := make([]fate, len(msgs))
	under := make([]*fate, len(msgs))
	done := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range msgs {
		f := &fates[i]
		f.done = done
		under[i] = f
		k := published{subject, topic, msgs[i].ID}
		if len(w.ring) < w.most {
			w.ring = append(w.ring, k)
		} else {
			delete(w.past, w.ring[w.next])
			w.ring[w.next] = k
			w.next = (w.next + 1) % w.most
		}
		w.past[k] = f
	}
	return under
}

// end notes what became of them.
func (w *window) end(under []*fate, msgs []transport.Message, n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range under {
		if i < n {
			f.at, f.known = msgs[i].Position, true
		} else {
			f.known = errors.Is(err, transport.ErrNotPublished)
		}
	}
	if len(under) > 0 {
		close(under[0].done)
	}
}

// find returns where a message was stored, if it was, and whether that is
// known. It waits for one that is being stored.
func (w *window) find(ctx context.Context, subject, topic, id string) (at transport.Position, known bool) {
	w.mu.Lock()
	f := w.past[published{subject, topic, id}]
	w.mu.Unlock()
	if f == nil {
		return transport.Position{}, false
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return transport.Position{}, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return f.at, f.known
}
