package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// member is a subscription of a group: one of its consumers.
type member struct {
	hold
	t      *Transport
	topic  string
	key    string
	losses string // the key of the hash of what retention took from groups
	group  *group
	name   groupName
	base   string // of the consumer's names, which end in a lease
	self   string // the usual one of them
	lease  time.Duration
	reader reader
	left   chan struct{} // closed when Close has given everything back

	// Of the one caller of Receive.
	former  string // what to take over at once, the first time
	last    transport.Position
	average int           // size of a message
	pause   backoff       // between attempts that fail
	aside   int           // entries set aside
	stuck   time.Duration // until when setting aside is not tried, as it failed
	back    chan struct{} // closed when what did not fit has gone back; others come after that

	state sync.Mutex // guards the rest
	job   *job       // under way
	names []string   // of the consumer
	turn  bool       // new messages come next, as there is more that is due than room
	lost  uint64     // messages lost, not yet told
	final error      // what Receive returns for good
}

var (
	_ transport.Subscription = (*member)(nil)
	_ transport.Acker        = (*member)(nil)
	_ transport.Nacker       = (*member)(nil)
	_ transport.Releaser     = (*member)(nil)
	_ transport.Extender     = (*member)(nil)
	_ transport.Mover        = (*member)(nil)
)

func (t *Transport) subscribeGroup(ctx context.Context, topic string, o transport.Options) (*member, error) {
	s := &member{
		t: t, topic: topic, key: t.key(topic), losses: t.sideKey(topic, "lost"),
		name: groupName{topic, o.Group}, lease: o.Lease, former: t.former, left: make(chan struct{}),
	}
	s.hold.init(o)
	s.reader = reader{t: t, key: s.key}
	s.base = t.name + "-" + strconv.FormatUint(t.serial.Add(1), 10)
	s.self = s.base + suffix(s.lease)
	s.names = []string{s.self}
	if err := s.create(ctx, o.Start); err != nil {
		return nil, err
	}
	s.group = t.join(s.name)
	t.spawn(func() { t.sweep(s.key, o.Group) })
	return s, nil
}

func suffix(lease time.Duration) string { return "." + strconv.FormatInt(milliseconds(lease), 10) }

// milliseconds rounds up.
func milliseconds(d time.Duration) int64 {
	n := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		n++
	}
	return n
}

// create makes the group if it does not exist.
func (s *member) create(ctx context.Context, start transport.Start) error {
	id := "0"
	switch start.From {
	case transport.Newest:
		id = "$"
	case transport.AfterPosition:
		id = start.Position.String()
	case transport.AfterID, transport.AtTime:
		exists, err := s.exists(ctx)
		if err != nil {
			return err
		}
		if !exists {
			p, err := s.t.locate(ctx, s.key, start)
			if err != nil {
				return err
			}
			id = p.String()
		}
	}
	_, err := s.make(ctx, id)
	return err
}

// make makes the group at id and reports whether it did not exist.
func (s *member) make(ctx context.Context, id string) (made bool, err error) {
	again, err := s.t.retrying(ctx, forever, func(ctx context.Context) error {
		_, err := s.t.command(ctx, 2, "XGROUP", "CREATE", s.key, s.name.group, id, "MKSTREAM")
		return err
	})
	if is(err, "BUSYGROUP") {
		return again, nil
	}
	if err != nil {
		return false, describe("XGROUP CREATE", s.key, err)
	}
	return true, nil
}

func (s *member) exists(ctx context.Context) (bool, error) {
	var groups []attributes
	_, err := s.t.retrying(ctx, forever, func(ctx context.Context) (err error) {
		groups, err = s.t.groupsOf(ctx, s.key)
		return err
	})
	if err != nil {
		return false, describe("XINFO GROUPS", s.key, err)
	}
	for _, g := range groups {
		if g.text("name") == s.name.group {
			return true, nil
		}
	}
	return false, nil
}

// job is a command that brings messages, in a goroutine of its own: Receive
// may have to return before it ends.
type job struct {
	s     *member
	claim bool
	most  int
	done  chan struct{}

	// Set before done is closed.
	began, ended time.Duration
	reply        []byte
	err          error

	returned bool // what it brought went back

	abandoned bool // nobody waits for it; s.state guards it
	late      bool // something went back since it began; s.state guards it
}

// A cancelled Receive waits so long for the server to end its read.
const grace = 50 * time.Millisecond

func (s *member) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := s.told(); err != nil {
			return 0, err
		}
		room, wait, expired := s.space(min(len(dst), pipelineMessages), s.average)
		if expired {
			s.group.poke()
		}
		if room == 0 {
			t := time.NewTimer(wait)
			select {
			case <-s.room:
			case <-t.C:
			case <-s.ended:
			case <-ctx.Done():
			}
			t.Stop()
			continue
		}
		if s.average == 0 {
			room = min(room, 64) // until it is known how large messages are
		}
		if !s.awaitReturn(ctx) {
			continue
		}
		j := s.start(room)
		if !s.await(ctx, j) {
			continue // and find out why
		}
		n, err := s.finish(ctx, j, dst)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// told returns what Receive has to tell before it goes on.
func (s *member) told() error {
	select {
	case <-s.ended:
		return transport.ErrClosed
	default:
	}
	s.state.Lock()
	defer s.state.Unlock()
	if s.final != nil {
		return s.final
	}
	if n := s.lost; n > 0 {
		s.lost = 0
		return &transport.LostError{Topic: s.topic, Group: s.name.group, Count: n, Next: s.last}
	}
	return nil
}

// start begins a job, or takes up the one that an earlier Receive left.
func (s *member) start(room int) *job {
	s.state.Lock()
	defer s.state.Unlock()
	if j := s.job; j != nil {
		j.abandoned = j.late // nobody may have it then
		return j
	}
	j := &job{s: s, most: room, done: make(chan struct{}), began: clock()}
	if s.open(context.Background()) != nil { // after which nothing may be read for this consumer
		j.err = transport.ErrClosed
		close(j.done)
		return j
	}
	s.job = j
	block := time.Duration(0)
	if s.turn {
		s.turn = false
	} else if due, until := s.group.due(j.began, j); due {
		j.claim = true
	} else {
		block = min(max(until-j.began, 10*time.Millisecond), blockMost)
	}
	if !s.t.spawn(func() { j.run(block) }) {
		j.err = transport.ErrClosed
		close(j.done)
	}
	return j
}

// run does the job.
func (j *job) run(block time.Duration) {
	s := j.s
	if j.claim {
		if j.reply, j.err = s.claim(j.most); j.err != nil {
			s.group.again()
		}
	} else {
		args := []any{"XREADGROUP", "GROUP", s.name.group, s.self, "COUNT", j.most, "BLOCK", block.Milliseconds(), "STREAMS", s.key, ">"}
		if block == 0 {
			args = append(args[:6], args[8:]...)
		}
		j.reply, j.err = s.reader.read(args)
		s.group.busy(j)
	}
	j.ended = clock()
	s.state.Lock()
	if j.abandoned && j.err == nil {
		s.state.Unlock()
		s.returnAll(j)
		s.state.Lock()
		j.returned = true
	}
	if j.abandoned {
		s.job = nil
	}
	close(j.done)
	s.state.Unlock()
}

// claim takes over what is due.
func (s *member) claim(most int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.t.ctx, settleMost)
	defer cancel()
	var buf sink
	err := s.t.run(ctx, claimScript, []string{s.key, s.losses}, &buf,
		s.name.group, s.self, most, milliseconds(s.lease), horizonMS, atOnceMS, s.former, s.t.name+"-")
	if err == nil {
		s.former = ""
	}
	return buf.b, err
}

// await waits for j to be done. When ctx or the subscription ends first, and
// the server is slow to end the read, j is abandoned.
func (s *member) await(ctx context.Context, j *job) bool {
	select {
	case <-j.done:
		return true
	case <-ctx.Done():
	case <-s.ended:
		return false // Close sees to it
	}
	if j.claim {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-j.done:
			return true
		case <-t.C:
		}
	} else if s.reader.wakeUntil(j.done, grace) {
		return true
	}
	s.state.Lock()
	defer s.state.Unlock()
	select {
	case <-j.done:
		return true
	default:
		j.abandoned = true
		return false
	}
}

// finish turns what a job brought into messages, or sees to why it did not.
func (s *member) finish(ctx context.Context, j *job, dst []transport.Message) (int, error) {
	s.state.Lock()
	s.job = nil
	s.state.Unlock()
	select {
	case <-s.ended:
		return 0, transport.ErrClosed
	default:
	}
	if j.returned {
		return 0, nil
	}
	err := j.err
	if err == nil {
		var n int
		if n, err = s.deliver(j, dst); err == nil {
			s.pause = backoff{}
			return n, nil
		}
	}
	if s.t.ctx.Err() != nil {
		return 0, transport.ErrClosed
	}
	command := "XREADGROUP"
	if j.claim {
		command = "claiming from"
	}
	err = describe(command, s.key, err)
	s.t.failed(err)
	switch faultOf(err) {
	case none:
		return 0, nil
	case lostGroup:
		var made bool
		if made, err = s.recreate(ctx); made {
			return 0, nil
		}
		if err == nil { // made by another, or this connection leads to another server than it is on
			s.reader.drop()
			break
		}
		if faultOf(err) != rejected && !errors.Is(err, ErrGroupLost) {
			break
		}
		fallthrough
	case rejected:
		s.state.Lock()
		defer s.state.Unlock()
		s.final = err
		return 0, nil // Receive returns it
	}
	if s.pause.d == 0 && err != nil {
		s.t.cfg.logger.Warn("redisstream: receiving failed, trying again", "topic", s.topic, "group", s.name.group, "error", err)
	}
	s.pause.wait(ctx, s.ended)
	return 0, nil
}

// deliver hands the messages of a job to the consumer.
func (s *member) deliver(j *job, dst []transport.Message) (int, error) {
	into := dst
	if len(dst) < j.most { // it was begun for an earlier Receive
		into = make([]transport.Message, j.most)
	}
	msgs, from, err := s.parse(j, into)
	if err != nil {
		return 0, err
	}
	n := s.take(msgs[:min(len(msgs), len(dst))], from, from+s.lease)
	if n < len(msgs) {
		s.giveBackLater(msgs[n:])
	}
	if len(dst) < j.most {
		copy(dst, msgs[:n])
	}
	s.t.count.received.Add(uint64(n))
	size := 0
	for i := range msgs[:n] {
		m := &msgs[i]
		size += m.Size()
		if m.Attempt > 1 {
			s.t.count.redelivered.Add(1)
		}
		if s.last.Compare(m.Position) < 0 {
			s.last = m.Position
		}
	}
	if n > 0 {
		if s.average == 0 {
			s.average = size/n + 1
		}
		s.average += (size/n + 1 - s.average) / 4
	}
	return n, nil
}

// parse reads a job's reply. from is when the deliveries began.
func (s *member) parse(j *job, dst []transport.Message) (msgs []transport.Message, from time.Duration, err error) {
	c := cursor{j.reply}
	if !j.claim {
		k, err := c.stream()
		if err != nil {
			return nil, 0, err
		}
		n, err := s.t.messages(&c, k, dst, s.bad)
		for i := range dst[:n] {
			dst[i].Attempt = 1
		}
		return dst[:n], j.ended, err
	}
	if k, err := c.array(); err != nil || k != 6 {
		return nil, 0, c.fail("six results of a script")
	}
	next, err1 := c.integer()
	more, err2 := c.integer()
	lost, err3 := c.integer()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, 0, err
	}
	attempts, err := s.attempts(&c)
	if err != nil {
		return nil, 0, err
	}
	k, err := c.array()
	if err != nil {
		return nil, 0, err
	}
	found := 0
	n, err := s.t.messages(&c, k, dst, func(e *entry, err error) {
		if err != errDeleted {
			found++
		}
		s.bad(e, err)
	})
	if err != nil {
		return nil, 0, err
	}
	for i := range dst[:n] {
		dst[i].Attempt = attempts[dst[i].Position]
	}
	if gone := len(attempts) - found - n; gone > 0 || lost > 0 {
		s.lose(uint64(max(gone, 0)) + uint64(max(lost, 0)))
	}
	if more > 0 {
		s.state.Lock()
		s.turn = more == 1 && !j.late // what went back without a delay keeps its place before what is new
		s.state.Unlock()
		s.group.poke()
	}
	if next >= 0 {
		s.group.pokeAfter(time.Duration(next) * time.Millisecond)
	}
	return dst[:n], j.began, nil
}

// attempts reads the ids that were claimed and their deliveries so far.
func (s *member) attempts(c *cursor) (map[transport.Position]int, error) {
	n, err := c.array()
	if err != nil {
		return nil, err
	}
	ids := make([]transport.Position, max(n, 0))
	for i := range ids {
		id, err := c.bulk()
		if err != nil {
			return nil, err
		}
		if ids[i], err = parseID(id); err != nil {
			return nil, err
		}
	}
	if n, err = c.array(); err != nil {
		return nil, err
	}
	if n != len(ids) {
		return nil, c.fail("as many counts as ids")
	}
	attempts := make(map[transport.Position]int, n)
	for _, id := range ids {
		k, err := c.integer()
		if err != nil {
			return nil, err
		}
		attempts[id] = int(k) + 1
	}
	return attempts, nil
}

// lose notes messages that are gone.
func (s *member) lose(n uint64) {
	s.t.count.lost.Add(n)
	s.t.cfg.logger.Error("redisstream: messages were trimmed or deleted before they were handled", "topic", s.topic, "group", s.name.group, "messages", n)
	s.state.Lock()
	defer s.state.Unlock()
	s.lost += n
}

// bad sees to an entry that is no message.
func (s *member) bad(e *entry, why error) {
	if why == errDeleted {
		s.lose(1)
		s.ackIDs(s.t.ctx, []transport.Receipt{{Position: e.id}})
		return
	}
	if clock() < s.stuck {
		return // it comes again
	}
	s.t.count.setAside.Add(1)
	id := e.id.String()
	if s.aside++; s.aside == 1 || s.aside%1000 == 0 { // a stream may be full of them
		s.t.cfg.logger.Error("redisstream: entries that are no messages are set aside", "topic", s.topic, "group", s.name.group, "so far", s.aside, "entry", id, "reason", why.Error())
	}
	args := []any{s.name.group, id, s.t.cfg.aside, "echo-group", s.name.group, "echo-entry", id, "echo-reason", why.Error()}
	size := 0
	for _, f := range e.fields {
		size += len(f)
	}
	if size <= asideBytes && len(e.fields) <= 1000 {
		for _, f := range e.fields {
			args = append(args, f)
		}
	} else {
		args = append(args, "echo-size", size)
	}
	ctx, cancel := context.WithTimeout(s.t.ctx, settleMost)
	defer cancel()
	if err := s.t.run(ctx, asideScript, []string{s.key, s.t.sideKey(s.topic, "aside")}, nil, args...); err != nil {
		s.t.failed(err)
		s.stuck = clock() + time.Second
		s.t.cfg.logger.Error("redisstream: setting an entry aside failed, it comes again", "topic", s.topic, "group", s.name.group, "entry", id, "error", err)
	}
}

// Entries larger than this are set aside without their content.
const asideBytes = 1 << 20

// returnAll gives back what a job brought that nobody waited for.
func (s *member) returnAll(j *job) {
	msgs, _, err := s.parse(j, make([]transport.Message, j.most))
	if err == nil {
		s.giveBack(msgs)
	}
}

// giveBackLater is giveBack in a goroutine of its own.
func (s *member) giveBackLater(msgs []transport.Message) {
	msgs = slices.Clone(msgs)
	back := make(chan struct{})
	if s.t.spawn(func() {
		defer close(back)
		s.giveBack(msgs)
	}) {
		s.back = back
	}
}

// awaitReturn waits until what did not fit has gone back, and reports whether that
// was before ctx or the subscription ended.
func (s *member) awaitReturn(ctx context.Context) bool {
	if s.back == nil {
		return true
	}
	select {
	case <-s.back:
		s.back = nil
		return true
	case <-s.ended:
	case <-ctx.Done():
	}
	return false
}

// giveBack returns messages that nobody was given.
func (s *member) giveBack(msgs []transport.Message) {
	if len(msgs) == 0 {
		return
	}
	rs := make([]transport.Receipt, len(msgs))
	for i := range msgs {
		rs[i] = msgs[i].Receipt()
	}
	ctx, cancel := context.WithTimeout(s.t.ctx, settleMost)
	defer cancel()
	if _, err := s.settleByScript(ctx, "give", rs, waiting, atOnce, 1); err != nil {
		s.t.failed(err)
		return
	}
	s.group.poke()
}

// recreate makes a group again that was lost.
func (s *member) recreate(ctx context.Context) (made bool, err error) {
	id := "0"
	switch s.t.cfg.onLost {
	case Fail:
		return false, fmt.Errorf("redisstream: group %s of %s: %w", s.name.group, s.key, ErrGroupLost)
	case Resume:
		id = s.resumeAt().String()
	}
	made, err = s.make(ctx, id)
	if made {
		s.t.count.groupsRecreated.Add(1)
		s.t.cfg.logger.Error("redisstream: the group was lost and made again", "topic", s.topic, "group", s.name.group, "start", id)
	}
	return made, err
}

// resumeAt is the place after which nothing was settled.
func (s *member) resumeAt() transport.Position {
	p := s.last
	s.mu.Lock()
	defer s.mu.Unlock()
	for q := range s.held {
		if q.Compare(p) <= 0 {
			p = before(q)
		}
	}
	return p
}

// before is the place right before p.
func before(p transport.Position) transport.Position {
	if p.Lo > 0 {
		return transport.Position{Hi: p.Hi, Lo: p.Lo - 1}
	}
	if p.Hi == 0 {
		return p
	}
	return transport.Position{Hi: p.Hi - 1, Lo: 1<<64 - 1}
}

// Close implements [transport.Subscription]. It returns within 100 ms; what it
// could not give back by then is given back in the background, or comes again
// when its lease ends.
func (s *member) Close() error {
	if s.hold.close() && !s.t.spawn(func() {
		defer close(s.left)
		s.depart()
	}) {
		close(s.left)
	}
	t := time.NewTimer(90 * time.Millisecond)
	defer t.Stop()
	select {
	case <-s.left:
	case <-t.C:
	}
	return nil
}

// depart ends the read under way and leaves the group.
func (s *member) depart() {
	s.state.Lock()
	j := s.job
	s.state.Unlock()
	if j != nil && !j.claim {
		s.reader.wakeUntil(j.done, grace)
	}
	ctx, cancel := context.WithTimeout(s.t.ctx, settleMost)
	defer cancel()
	if j != nil {
		select {
		case <-j.done:
			if j.claim && j.err == nil && !j.returned {
				s.parse(j, make([]transport.Message, j.most)) // for what it tells of losses
			}
		case <-ctx.Done():
		}
	}
	s.state.Lock()
	args := []any{s.name.group, atOnceMS, s.lost}
	for _, name := range s.names {
		args = append(args, name)
	}
	s.state.Unlock()
	_, err := s.t.retrying(ctx, forever, func(ctx context.Context) error {
		return s.t.run(ctx, leaveScript, []string{s.key, s.losses}, nil, args...)
	})
	if err != nil && faultOf(err) != lostGroup {
		s.t.cfg.logger.Warn("redisstream: giving back on closing failed, messages come again when their leases end", "topic", s.topic, "group", s.name.group, "error", err)
	}
	s.reader.close()
	s.t.forget(s, s.topic)
	s.group.poke()
	s.t.leave(s.name, s.group)
}
