package redisstream

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// broadcast is a subscription without a group. It reads at a place of its own,
// and the server knows nothing of it; so it keeps what is not settled itself.
type broadcast struct {
	t      *Transport
	topic  string
	key    string
	lease  time.Duration
	reader reader

	maxMessages, maxBytes int

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

	mu    sync.Mutex // guards the rest
	given transport.Position
	held  map[transport.Position]*kept
	bytes int
	token uint64
	job   *broadcastJob
	woken chan struct{} // holds a token when Receive should look again
	ended chan struct{}
	lost  uint64
}

// kept is a message that was delivered and is not settled.
type kept struct {
	msg  transport.Message
	size int
	out  bool          // delivered; due is when its lease ends. Otherwise due is when it may be delivered again.
	due  time.Duration //
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
		t: t, topic: topic, key: t.key(topic), lease: o.Lease,
		maxMessages: o.MaxPending, maxBytes: o.MaxPendingBytes,
		held: map[transport.Position]*kept{}, woken: make(chan struct{}, 1), ended: make(chan struct{}),
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
	s.cursor, s.given = p, p
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
		n, wait, room, err := s.take(dst)
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

// take gives what is due again, and else what was read. Otherwise it returns
// how long it will be until something is due, and how many messages may be read.
func (s *broadcast) take(dst []transport.Message) (n int, wait time.Duration, room int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		return 0, 0, 0, transport.ErrClosed
	default:
	}
	if s.lost > 0 {
		e := &transport.LostError{Topic: s.topic, Count: s.lost, Next: s.cursor}
		s.lost = 0
		return 0, 0, 0, e
	}
	now := clock()
	var due []*kept
	out := 0
	wait = time.Hour
	for _, k := range s.held {
		switch {
		case k.due <= now:
			due = append(due, k)
		case k.out:
			out++
			wait = min(wait, k.due-now)
		default:
			wait = min(wait, k.due-now)
		}
	}
	slices.SortFunc(due, func(a, b *kept) int { return a.msg.Position.Compare(b.msg.Position) })
	limit := len(dst)
	if s.maxMessages > 0 {
		limit = min(limit, s.maxMessages-out)
	}
	for _, k := range due {
		if n >= limit || !k.out && !s.fits(k.size, out+n) {
			break
		}
		s.token++
		if !k.out {
			s.bytes += k.size
		}
		k.msg.Attempt++
		k.msg.Token = s.token
		k.out, k.due = true, now+s.lease
		dst[n] = k.msg
		n++
		s.t.count.redelivered.Add(1)
	}
	if n > 0 {
		s.t.count.received.Add(uint64(n))
		return n, 0, 0, nil
	}
	for n < min(limit, len(s.spare)) {
		m := &s.spare[n]
		size := m.Size()
		if !s.fits(size, out+n) {
			break
		}
		s.token++
		m.Attempt, m.Token = 1, s.token
		s.bytes += size
		s.held[m.Position] = &kept{msg: *m, size: size, out: true, due: now + s.lease}
		dst[n] = *m
		n++
		s.given = m.Position
	}
	clear(s.spare[:n])
	s.spare = s.spare[n:]
	s.t.count.received.Add(uint64(n))
	if n > 0 || len(s.spare) > 0 || limit <= 0 {
		return n, wait, 0, nil
	}
	return 0, wait, limit, nil
}

// fits reports whether one more message of this size may be out.
func (s *broadcast) fits(size, out int) bool {
	return s.maxBytes == 0 || out == 0 || s.bytes+size <= s.maxBytes
}

// sleep waits for a settlement, for d at most.
func (s *broadcast) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.woken:
	case <-t.C:
	case <-s.ended:
	case <-ctx.Done():
	}
}

// fill reads up to n new messages into spare, waiting for d at most.
func (s *broadcast) fill(ctx context.Context, n int, d time.Duration) error {
	j := s.begin(n, d)
	select {
	case <-j.done:
	case <-s.woken:
		s.reader.wakeUntil(j.done, grace)
	case <-s.ended:
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
	s.pause.wait(ctx, s.ended)
	return nil
}

// begin starts a read, or takes the one under way up.
func (s *broadcast) begin(n int, d time.Duration) *broadcastJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.job != nil {
		return s.job
	}
	if n = min(n, pipelineMessages); s.average == 0 {
		n = min(n, 64)
	} else if s.maxBytes > 0 {
		n = min(n, max(1, (s.maxBytes-s.bytes)/s.average))
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

// Position implements [transport.Positioner].
func (s *broadcast) Position() transport.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given
}

func (s *broadcast) Lease() time.Duration { return s.lease }

func (s *broadcast) Ack(ctx context.Context, rs []transport.Receipt) error {
	return s.each(ctx, rs, func(k *kept) {
		delete(s.held, k.msg.Position)
		s.bytes -= k.size
		s.t.count.acked.Add(1)
	})
}

func (s *broadcast) Nack(ctx context.Context, rs []transport.Receipt, delay time.Duration) error {
	now := clock()
	return s.each(ctx, rs, func(k *kept) { s.giveBack(k, now+delay) })
}

func (s *broadcast) Release(ctx context.Context, rs []transport.Receipt) error {
	now := clock()
	return s.each(ctx, rs, func(k *kept) {
		k.msg.Attempt--
		s.giveBack(k, now)
	})
}

func (s *broadcast) giveBack(k *kept, due time.Duration) {
	k.out, k.due = false, due
	s.bytes -= k.size
	s.t.count.givenBack.Add(1)
}

func (s *broadcast) Extend(ctx context.Context, rs []transport.Receipt, d time.Duration) error {
	until := clock() + cmp.Or(d, s.lease)
	return s.each(ctx, rs, func(k *kept) { k.due = until })
}

// each applies do to the deliveries of rs that are held, and names the others.
func (s *broadcast) each(ctx context.Context, rs []transport.Receipt, do func(*kept)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		return transport.ErrClosed
	default:
	}
	var lost []transport.Receipt
	for _, r := range rs {
		if k := s.held[r.Position]; k != nil && k.out && k.msg.Token == r.Token && k.due > now {
			do(k)
		} else {
			lost = append(lost, r)
		}
	}
	s.t.count.stale.Add(uint64(len(lost)))
	select {
	case s.woken <- struct{}{}:
	default:
	}
	return leaseError(lost)
}

// Close implements [transport.Subscription]. It returns within 100 ms.
func (s *broadcast) Close() error {
	s.mu.Lock()
	select {
	case <-s.ended:
		s.mu.Unlock()
		return nil
	default:
	}
	close(s.ended)
	j := s.job
	s.mu.Unlock()
	s.t.forget(s)
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
		s.mu.Lock()
		s.lost += n
		s.mu.Unlock()
	}
	s.known, s.added, s.seen = true, added, 0
}

const checkEvery = 5 * time.Second
