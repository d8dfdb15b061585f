package wsstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/echobus/echo/transport"
)

// publish is a message that a client publishes.
type publish struct {
	rid    uint64
	topic  string
	msg    transport.Message
	again  bool
	chain  bool // only if the one before it is accepted
	within time.Duration
	code   Code // why it is refused, 0 if it is not
	text   string
	fate   *fate // what becomes of it, nil if it is refused
	before *fate // what became of it when it came before, if that is remembered
}

// publish takes a message from a frame; it shares nothing with it.
func (c *conn) publish(f *frame) publish {
	p := publish{rid: f.Rid, topic: f.Topic, msg: f.message(), again: f.Again, chain: f.Chain, within: c.h.cfg.sendFor}
	p.msg.Data = bytes.Clone(f.Data)
	if f.Type == framePub {
		p.msg.Terms = f.terms()
	}
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
	case f.Name != "" && f.Window == 0:
		p.code, p.text = CodeBadFrame, "name has no window"
	case len(f.ID) > idMost || len(f.Name) > idMost:
		p.code, p.text = CodeTooBig, fmt.Sprintf("an id or name has %d bytes at most", idMost)
	case len(f.Header) > headersMost:
		p.code, p.text = CodeTooBig, fmt.Sprintf("a header has %d names at most", headersMost)
	default:
		if err := transport.CheckName("topic", f.Topic); err != nil {
			p.code, p.text = CodeRefused, err.Error()
		} else if !c.h.mayPublish(c.grant, f.Topic) {
			p.code = CodeForbidden
		} else if p.msg.Terms != nil && transport.IsInbox(f.Topic) {
			p.code, p.text = CodeUnsupported, "a reply is neither delayed nor deduplicated"
		} else if err := transport.Cannot(c.h.t, p.msg.Terms); err != nil {
			p.code, p.text = CodeUnsupported, err.Error()
		} else if most := c.h.cfg.maxDelay; duration(f.Delay) > most {
			p.code, p.text = CodeUnsupported, fmt.Sprintf("a delay of %v; the server bears %v", duration(f.Delay), most)
		}
	}
	return p
}

// What a message may have: bytes in its id, or name, and names in its header.
const (
	idMost      = 128
	headersMost = 128
)

// publishing is what a link publishes, in order. The link's lock guards it.
type publishing struct {
	c     *conn
	queue []publish
	load  load // of what is under way, which an answer makes room for
	open  int  // messages that are not answered
	busy  bool
	room  chan struct{} // closed when one of these went down, if somebody waits

	last unpublished // the last publish that was not accepted; run's
}

// unpublished is why a publish was not accepted.
type unpublished struct {
	rid  uint64
	code Code
	text string
}

// publishBytes bounds the messages of a link that wait to be published;
// reading from the link waits while there are more.
const publishBytes = 8 << 20

// add queues messages, and reports whether the link goes on.
func (q *publishing) add(pubs []publish) bool {
	c := q.c
	if len(pubs) == 0 {
		return true
	}
	size := 0
	for i := range pubs {
		size += pubs[i].msg.Size()
	}
	if !q.lock(len(pubs), size) {
		return false
	}
	for i := range pubs {
		p := &pubs[i]
		if q.load.messages >= c.h.cfg.maxPublish && p.code == 0 {
			p.code = CodeOverrun
		}
		q.begin(p.msg.Size())
	}
	c.h.window.begin(c.subject, pubs)
	q.queue = append(q.queue, pubs...)
	if !q.busy {
		q.busy = true
		c.work.Go(q.run)
	}
	c.mu.Unlock()
	return true
}

// begin counts a message of a size. The caller holds the link's lock.
func (q *publishing) begin(size int) {
	q.load.add(1, size)
	q.open++
}

// lock waits until there is room for n messages, and returns with the link's
// lock held, or reports false if the link does not go on.
func (q *publishing) lock(n, size int) bool {
	c := q.c
	c.mu.Lock()
	for q.load.messages > 0 && q.load.bytes+size > publishBytes {
		if !q.await(c.left) {
			c.mu.Unlock()
			return false
		}
	}
	if q.load.messages+n > 2*c.h.cfg.maxPublish {
		c.mu.Unlock()
		c.reject(CodeOverrun, "", closeFlood)
		return false
	}
	return true
}

// await waits until there is more room or less to answer, and reports whether
// that was before end. The caller holds the link's lock, which is let go meanwhile.
func (q *publishing) await(end <-chan struct{}) bool {
	if q.room == nil {
		q.room = make(chan struct{})
	}
	room := q.room
	q.c.mu.Unlock()
	defer q.c.mu.Lock()
	defer q.c.stay()()
	select {
	case <-room:
		return true
	case <-end:
		return false
	}
}

// wait waits until everything is answered, or the link ends.
func (q *publishing) wait() {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	for q.open > 0 && q.await(q.c.left) {
	}
}

// settled makes room. That comes before the answer, as the client may fill the
// room as soon as it has that.
func (q *publishing) settled(pubs []publish) {
	size := 0
	for i := range pubs {
		size += pubs[i].msg.Size()
	}
	q.free(len(pubs), size)
}

// free makes room for n messages.
func (q *publishing) free(n, size int) {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	q.load.add(-n, -size)
	q.tell()
}

// answered notes that n messages are, or never will be.
func (q *publishing) answered(n int) {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	q.open -= n
	q.tell()
}

// tell wakes who awaits. The caller holds the link's lock.
func (q *publishing) tell() {
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
}

// run publishes until nothing is left. When the link is to end, what was not
// begun is not: the client sends it again, on its next one.
func (q *publishing) run() {
	c := q.c
	for {
		c.mu.Lock()
		pubs := q.queue
		if q.queue = nil; len(pubs) == 0 {
			q.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for len(pubs) > 0 {
			n := 1
			if p := &pubs[0]; p.chain && q.last.code != 0 && p.rid == q.last.rid+1 {
				c.h.window.drop(pubs[:n])
				q.settled(pubs[:n])
				c.out.send(frame{Type: frameErr, Rid: p.rid, Count: 1, Code: q.last.code, Text: q.last.text})
				q.last.rid++
				q.answered(n)
				pubs = pubs[n:]
				continue
			}
			for n < len(pubs) && pubs[n].topic == pubs[0].topic && pubs[n].code == 0 && pubs[0].code == 0 &&
				pubs[n].again == pubs[0].again && pubs[n].rid == pubs[0].rid+uint64(n) {
				n++
			}
			if c.leaving() {
				c.h.window.drop(pubs)
				q.settled(pubs)
				n = len(pubs)
			} else {
				q.last = c.send(pubs[:n])
			}
			q.answered(n)
			pubs = pubs[n:]
		}
	}
}

// send publishes messages of one topic, with numbers in a row, and answers. It
// returns why the last one was not accepted.
func (c *conn) send(pubs []publish) unpublished {
	first := &pubs[0]
	switch {
	case first.code != 0:
		c.pubs.settled(pubs)
		c.refuse(&frame{Rid: first.rid}, first.code, first.text)
		return unpublished{first.rid, first.code, first.text}
	case first.again:
		return c.sendAgain(pubs)
	}
	return c.store(pubs)
}

// store publishes messages that are not there yet. One that is refused for
// itself takes none with it but those chained to it.
func (c *conn) store(pubs []publish) (last unpublished) {
	first := &pubs[0]
	msgs := make([]transport.Message, len(pubs))
	within := first.within
	for i := range pubs {
		msgs[i] = pubs[i].msg
		within = max(within, pubs[i].within)
	}
	ctx, cancel := context.WithTimeout(c.h.ctx, within)
	defer cancel()
	for len(pubs) > 0 {
		n, err := c.h.t.Send(ctx, first.topic, msgs)
		end := len(pubs)
		if transport.RefusedForItself(err) {
			for end = n + 1; end < len(pubs) && pubs[end].chain; end++ {
			}
		}
		last = c.stored(pubs[:end], msgs, n, err)
		pubs, msgs = pubs[end:], msgs[end:]
	}
	return last
}

// stored notes and tells that the first n of messages are stored, and the others
// are not.
func (c *conn) stored(pubs []publish, msgs []transport.Message, n int, err error) (last unpublished) {
	first := pubs[0].rid
	c.h.window.end(pubs, msgs, n, err)
	c.pubs.settled(pubs)
	c.h.count.published.Add(uint64(n))
	if n > 0 {
		at := make([]transport.Position, n)
		for i := range at {
			at[i] = msgs[i].Position
		}
		c.out.send(frame{Type: framePubOK, Rid: first, Count: uint64(n), At: at})
	}
	if n < len(pubs) {
		last = unpublished{first + uint64(len(pubs)-1), sendCode(err), sendText(err)}
		c.out.send(frame{Type: frameErr, Rid: first + uint64(n), Count: uint64(len(pubs) - n), Code: last.code, Text: last.text})
	}
	return last
}

// sendAgain publishes messages that the client sent before, on a link that
// broke. Those that were stored, by this node or another, are not stored again.
func (c *conn) sendAgain(pubs []publish) (last unpublished) {
	ctx, cancel := context.WithTimeout(c.h.ctx, pubs[0].within)
	defer cancel()
	since := pubs[0].msg.Time
	there := make(map[string]transport.Position)
	unsure := make(map[string]bool)
	for i := range pubs {
		p := &pubs[i]
		at, known, err := c.h.window.find(ctx, p)
		switch {
		case err != nil: // another link is still at it
			p.code = CodeUnknown
		case at != (transport.Position{}):
			there[p.msg.ID] = at
		case !known:
			unsure[p.msg.ID] = true
			if p.msg.Time.Before(since) {
				since = p.msg.Time
			}
		}
	}
	if len(unsure) > 0 {
		if end, ok := c.h.looks.begin(ctx); ok {
			c.h.lookFor(ctx, pubs[0].topic, since, unsure, there)
			end()
		}
	}
	for len(pubs) > 0 {
		if last.code != 0 && pubs[0].chain && pubs[0].code == 0 && there[pubs[0].msg.ID] == (transport.Position{}) {
			pubs[0].code = last.code
		}
		n := 0
		for n < len(pubs) && pubs[n].code == 0 && there[pubs[n].msg.ID] == (transport.Position{}) {
			n++
		}
		first := &pubs[0]
		switch {
		case n > 0:
			last = c.store(pubs[:n])
		case first.code != 0:
			n = 1
			c.h.window.drop(pubs[:1])
			c.pubs.settled(pubs[:1])
			c.out.send(frame{Type: frameErr, Rid: first.rid, Count: 1, Code: first.code})
			last = unpublished{first.rid, first.code, ""}
		default:
			n, last = 1, unpublished{}
			at := there[first.msg.ID]
			c.h.window.found(first, at)
			c.pubs.settled(pubs[:1])
			if at == elsewhere {
				at = transport.Position{}
			}
			c.out.send(frame{Type: framePubOK, Rid: first.rid, Count: 1, At: []transport.Position{at}, Again: true})
			c.h.count.duplicates.Add(1)
		}
		pubs = pubs[n:]
	}
	return last
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
	case errors.Is(err, errors.ErrUnsupported):
		return CodeUnsupported
	case errors.Is(err, transport.ErrFull), errors.Is(err, context.DeadlineExceeded):
		return CodeFull
	case errors.Is(err, transport.ErrClosed), errors.Is(err, context.Canceled):
		return CodeShuttingDown
	}
	return CodeRefused
}

func sendText(err error) string {
	if transport.RefusedForItself(err) || errors.Is(err, transport.ErrFull) {
		return err.Error()
	}
	return ""
}
