package redisstream

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/echobus/echo/internal/held"
	"github.com/echobus/echo/transport"
)

// broadcast is a subscription without a group. It reads at a place of its own,
// and the server knows nothing of it; so it keeps what is not settled itself.
type broadcast struct {
	held.Messages
	t      *Transport
	topic  string
	key    string
	reader reader

	// Of the one caller of Receive.
	cursor  transport.Position // what comes after it is to be read
	average int
	pause   backoff
	spare   []transport.Message // read and not yet given
	checked time.Duration       // when it was last looked for losses
	unread  transport.Position  // the stream's end then, if not read
	known   bool                // added is known
	added   uint64              // entries that the stream had had at some moment
	seen    uint64              // entries read since

	mu  sync.Mutex // guards job
	job *broadcastJob
}

var (
	_ transport.Subscription = (*broadcast)(nil)
	_ transport.Acker        = (*broadcast)(nil)
	_ transport.Nacker       = (*broadcast)(nil)
	_ transport.Releaser     = (*broadcast)(nil)
	_ transport.Extender     = (*broadcast)(nil)
	_ transport.Positioner   = (*broadcast)(nil)
)

func (t *Transport) subscribeBroadcast(ctx context.Context, topic string, o transport.Options) (*broadcast, error) {
	s := &broadcast{
		Messages: held.Messages{Leased: o.Lease, Most: o.MaxPending, MostSize: o.MaxPendingBytes, Tell: t.count.event},
		t:        t, topic: topic, key: t.key(topic),
	}
	s.reader = reader{t: t, key: s.key}
	start := o.Start
	if start.From == transport.Default {
		start.From = transport.Newest
	}
	p, err := t.locate(ctx, s.key, start)
	if err != nil {
		return nil, err
	}
	gone := false
	if start.From == transport.AfterPosition && p != (transport.Position{}) {
		if p, gone, err = t.after(ctx, s.key, p); err != nil {
			return nil, err
		}
	}
	s.Init(p)
	s.cursor = p
	if gone {
		s.Lose(&transport.LostError{Topic: topic, Next: p})
	}
	if start.From == transport.Newest {
		s.checked = -checkEvery // look at the first silence
	}
	return s, nil
}

// broadcastJob is a read in a goroutine of its own.
type broadcastJob struct {
	done  chan struct{}
	reply []byte
	err   error
}

func (s *broadcast) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, wait, room, err := s.Take(dst, &s.spare)
		if n > 0 || err != nil {
			return n, err
		}
		if room == 0 {
			s.sleep(ctx, wait)
			continue
		}
		if err := s.fill(ctx, room, wait); err != nil {
			return 0, err
		}
	}
}

// sleep waits for a settlement, for d at most.
func (s *broadcast) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.Woken():
	case <-t.C:
	case <-s.Ended():
	case <-ctx.Done():
	}
}

// fill reads up to n new messages into spare, waiting for d at most.
func (s *broadcast) fill(ctx context.Context, n int, d time.Duration) error {
	j := s.begin(n, d)
	select {
	case <-j.done:
	case <-s.Woken():
		s.reader.wakeUntil(j.done, grace)
	case <-s.Ended():
	case <-ctx.Done():
		s.reader.wakeUntil(j.done, grace)
	}
	select {
	case <-j.done:
	default:
		return nil // the next Receive takes the read up
	}
	s.mu.Lock()
	s.job = nil
	s.mu.Unlock()
	err := j.err
	if err == nil {
		err = s.parse(j.reply)
	}
	if err == nil {
		s.pause = backoff{}
		if len(s.spare) == 0 { // what came, if anything did, was no message
			s.Reach(s.cursor)
		}
		return nil
	}
	if s.t.ctx.Err() != nil {
		return transport.ErrClosed
	}
	err = describe("XREAD", s.key, err)
	s.t.failed(err)
	switch faultOf(err) {
	case none, lostGroup:
	case rejected:
		return err
	default:
		if s.pause.d == 0 {
			s.t.cfg.logger.Warn("redisstream: receiving failed, trying again", "topic", s.topic, "error", err)
		}
	}
	s.pause.wait(ctx, s.Ended())
	return nil
}

// begin starts a read, or takes the one under way up.
func (s *broadcast) begin(n int, d time.Duration) *broadcastJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job != nil {
		return s.job
	}
	select {
	case <-s.Ended():
		j := &broadcastJob{done: make(chan struct{}), err: transport.ErrClosed}
		close(j.done)
		return j
	default:
	}
	if n = min(n, pipelineMessages); s.average == 0 {
		n = min(n, 64)
	} else if s.MostSize > 0 {
		n = min(n, max(1, (s.MostSize-s.Size())/s.average))
	}
	block := min(max(d, time.Millisecond), blockMost)
	j := &broadcastJob{done: make(chan struct{})}
	s.job = j
	cursor := s.cursor.String()
	if !s.t.spawn(func() {
		j.reply, j.err = s.reader.read([]any{"XREAD", "COUNT", n, "BLOCK", milliseconds(block), "STREAMS", s.key, cursor})
		close(j.done)
	}) {
		j.err = transport.ErrClosed
		close(j.done)
	}
	return j
}

// parse puts what was read into spare.
func (s *broadcast) parse(reply []byte) error {
	c := cursor{reply}
	k, err := c.stream()
	if err != nil || k == 0 {
		if err == nil {
			s.check()
		}
		return err
	}
	msgs := make([]transport.Message, k)
	var last transport.Position
	n, err := s.t.messages(&c, k, msgs, func(e *entry, why error) {
		last = e.id
		s.t.count.setAside.Add(1)
		s.t.cfg.logger.Error("redisstream: an entry that is no message was passed by", "topic", s.topic, "entry", e.id.String(), "reason", why.Error())
	})
	if err != nil {
		return err
	}
	size := 0
	for i := range msgs[:n] {
		size += msgs[i].Size()
	}
	if n > 0 {
		s.average = cmp.Or(s.average, size/n+1)
		s.average += (size/n + 1 - s.average) / 4
		if p := msgs[n-1].Position; last.Compare(p) < 0 {
			last = p
		}
	}
	if last.Compare(s.cursor) <= 0 {
		return c.fail("entries after " + s.cursor.String())
	}
	s.cursor, s.spare = last, msgs[:n]
	s.seen += uint64(k)
	return nil
}

// Close implements [transport.Subscription]. It returns within 100 ms.
func (s *broadcast) Close() error {
	if !s.End() {
		return nil
	}
	s.mu.Lock()
	j := s.job
	s.mu.Unlock()
	s.t.forget(s, s.topic)
	if j != nil {
		s.reader.wakeUntil(j.done, grace)
	}
	s.reader.close()
	return nil
}

// check looks, while nothing comes, whether entries were trimmed or deleted
// before they were read: then the stream has had more than this subscription saw.
func (s *broadcast) check() {
	now := clock()
	if now-s.checked < checkEvery {
		return
	}
	s.checked = now
	ctx, cancel := context.WithTimeout(s.t.ctx, time.Second)
	defer cancel()
	info, err := s.t.stream(ctx, s.key)
	if err != nil || info == nil {
		return // there is no stream, or the next read fails too
	}
	last, err := parseID(info.text("last-generated-id"))
	if err != nil || info.number("entries-added") < 0 {
		return
	}
	if s.cursor.Compare(last) < 0 && last != s.unread {
		s.unread = last // come meanwhile, or gone for good: the next check tells
		return
	}
	s.cursor = last
	added := uint64(info.number("entries-added"))
	if s.known && added > s.added+s.seen {
		n := added - s.added - s.seen
		s.t.count.lost.Add(n)
		s.t.cfg.logger.Error("redisstream: messages were trimmed or deleted before they were received", "topic", s.topic, "messages", n)
		s.Lose(&transport.LostError{Topic: s.topic, Count: n, Next: s.cursor})
	}
	s.known, s.added, s.seen = true, added, 0
}

const checkEvery = 5 * time.Second
