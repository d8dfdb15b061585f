package redisstream

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/transport"
)

// A pipeline has at most this many messages, and about this many bytes.
const (
	pipelineMessages = 1000
	pipelineBytes    = 1 << 20
)

// ReplicaError says that messages are stored by the primary and by fewer
// replicas than [WithReplicas] asks for. It wraps
// [transport.ErrPublishUnknown].
type ReplicaError struct{ Want, Got int }

func (e *ReplicaError) Error() string {
	return fmt.Sprintf("stored by %d of %d replicas", e.Got, e.Want)
}

func (e *ReplicaError) Unwrap() error { return transport.ErrPublishUnknown }

// Send implements [transport.Sender] with one XADD per message, in pipelines.
// Its errors are of the two kinds told in the package's documentation.
func (t *Transport) Send(ctx context.Context, topic string, msgs []transport.Message) (int, error) {
	n, err := t.send(ctx, topic, msgs)
	t.count.sent.Add(uint64(n))
	if err == nil {
		return n, nil
	}
	if rest := uint64(len(msgs) - n); errors.Is(err, transport.ErrNotPublished) {
		t.count.refused.Add(rest)
	} else {
		t.count.unknown.Add(rest)
		if !errors.Is(err, transport.ErrPublishUnknown) {
			err = fmt.Errorf("%w: %w", transport.ErrPublishUnknown, err)
		}
	}
	return n, err
}

func notPublished(err error) error {
	return fmt.Errorf("%w: %w", transport.ErrNotPublished, err)
}

func (t *Transport) send(ctx context.Context, topic string, msgs []transport.Message) (n int, err error) {
	if err := t.usable(); err != nil {
		return 0, notPublished(err)
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return 0, notPublished(err)
	}
	if ctx.Err() != nil {
		return 0, notPublished(context.Cause(ctx))
	}
	if !transport.IsInbox(topic) {
		t.retain(topic)
	}
	key := t.key(topic)
	for n < len(msgs) {
		end := n
		for size := 0; end < len(msgs) && end-n < pipelineMessages && (end == n || size+msgs[end].Size() <= pipelineBytes); end++ {
			size += msgs[end].Size()
		}
		k, err := t.sendSome(ctx, key, topic, msgs[n:end])
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

// sendSome sends the messages of one pipeline until they are stored or that
// has failed for good.
func (t *Transport) sendSome(ctx context.Context, key, topic string, msgs []transport.Message) (n int, err error) {
	until := time.Now().Add(t.cfg.sendFor)
	resends := t.cfg.resends
	unsure := false // some of the rest may have been stored by an earlier attempt
	var pause backoff
	for {
		k, fault, err := t.attempt(ctx, key, topic, msgs[n:])
		t.postponed(topic, msgs[n:]) // some of them may be stored even after an error
		if n += k; err == nil {
			t.answered()
			return n, nil
		}
		if t.ctx.Err() != nil {
			err = transport.ErrClosed
		}
		t.failed(err)
		err = describe("XADD", key, ended(ctx, err))
		if _, ok := errors.AsType[*ReplicaError](err); ok { // stored, and so not to be sent again
			return n, err
		}
		over := t.ctx.Err() != nil || ctx.Err() != nil || time.Now().After(until)
		switch fault {
		case ambiguous:
			unsure = true
			if over || resends == 0 {
				return n, err
			}
			resends--
			t.count.resent.Add(uint64(len(msgs) - n))
		case moved:
			relocate(ctx, t.clients.command())
			fallthrough
		case refused:
			if over {
				return n, outcome(unsure, err)
			}
		default:
			return n, outcome(unsure, err)
		}
		if end := pause.wait(ctx, t.ctx.Done()); end != nil {
			return n, outcome(unsure, fmt.Errorf("%w; last: %w", end, err))
		}
	}
}

// outcome is the error for messages that the last attempt surely did not store.
func outcome(unsure bool, err error) error {
	if unsure {
		return err
	}
	return notPublished(err)
}

// xadds are the XADDs of a pipeline, or another long command, and the replies. All is memory to be used
// again: allocating it for each message would take longer than sending it.
type xadds struct {
	args    []any
	ends    []int   // of the commands in args
	pieces  []piece // what the nils in args will point to
	text    []byte  // what pieces will be cut from
	cuts    []int   // where
	memory  []redis.RawWriteToCmd
	cmds    []redis.Cmder
	replies sink
}

// piece is an argument. A pointer to it costs nothing to make.
type piece []byte

// MarshalBinary is how go-redis gets at an argument.
func (p *piece) MarshalBinary() ([]byte, error) { return *p, nil }

var pipelines = sync.Pool{New: func() any { return new(xadds) }}

// free lets x be used again. Nobody refers to it.
func (x *xadds) free() {
	if cap(x.text) > pipelineBytes || cap(x.replies.b) > pipelineBytes {
		return
	}
	clear(x.args)
	clear(x.memory)
	clear(x.cmds)
	clear(x.pieces)
	*x = xadds{
		args: x.args[:0], ends: x.ends[:0], pieces: x.pieces[:0], text: x.text[:0], cuts: x.cuts[:0],
		memory: x.memory[:0], cmds: x.cmds[:0], replies: sink{b: x.replies.b[:0]},
	}
	pipelines.Put(x)
}

var xadd, star, idmp = "XADD", "*", "IDMP"

// begin begins a field of the last command, and returns the memory to append
// its value to. end ends it.
func (x *xadds) begin(name *string) []byte {
	x.args = append(x.args, name, nil)
	return x.text
}

func (x *xadds) end(text []byte) {
	x.text = text
	x.cuts = append(x.cuts, len(x.text))
}

// fill gives the arguments their values.
func (x *xadds) fill() {
	from := 0
	for _, end := range x.cuts {
		x.pieces = append(x.pieces, x.text[from:end])
		from = end
	}
	k := 0
	for i := range x.args {
		if x.args[i] == nil {
			x.args[i] = &x.pieces[k]
			k++
		}
	}
}

// seal makes the commands of the arguments.
func (x *xadds) seal(ctx context.Context) {
	x.fill()
	x.memory = slices.Grow(x.memory, len(x.ends))[:len(x.ends)]
	from := 0
	for i, end := range x.ends {
		x.memory[i] = *redis.NewRawWriteToCmd(ctx, &x.replies, x.args[from:end:end]...) // which go-redis never sends again
		x.memory[i].SetFirstKeyPos(firstKey(x.args[from]))
		x.memory[i].SetStepCount(1) // or a cluster's client asks the server for it
		x.cmds = append(x.cmds, &x.memory[i])
		from = end
	}
}

// What a topic for replies keeps, and for how long after the last one.
const (
	inboxMost = 10_000
	inboxAge  = 2 * time.Minute
)

// firstKey is where a command that sends has its first key.
func firstKey(command any) int8 {
	if command == "EVAL" || command == "EVALSHA" {
		return 3
	}
	return 1
}

// attempt sends messages once. It returns how many are stored, counted from
// the first, and what the error says of the others.
func (t *Transport) attempt(ctx context.Context, key, topic string, msgs []transport.Message) (int, fault, error) {
	if !t.ready.Load() {
		// Nothing is sent before the server answers, so that a failure to
		// reach it is known for one.
		if err := t.ping(ctx); err != nil {
			if faultOf(err) == rejected {
				return 0, rejected, err
			}
			return 0, refused, err
		}
		t.answered()
		t.look(ctx)
	}
	if err := t.note(ctx, topic); err != nil {
		return 0, refused, err
	}
	x := pipelines.Get().(*xadds)
	good, bad := t.commands(ctx, x, key, topic, msgs)
	if good == 0 {
		x.free()
		return 0, rejected, bad
	}
	finished, err := within(ctx, func() error { return t.execute(ctx, key, x.cmds) })
	if !finished {
		return 0, ambiguous, err // the commands are still under way, and x with them
	}
	defer x.free()
	n, f, err := t.stored(msgs[:good], x.replies.b, err)
	if err == nil && bad != nil {
		return n, rejected, bad
	}
	return n, f, err
}

// commands are the XADDs of msgs up to the first one that cannot be sent, bad
// says why, and WAIT after them if replicas are asked for. They keep nothing of
// the caller's memory, as they may outlive the call.
func (t *Transport) commands(ctx context.Context, x *xadds, key, topic string, msgs []transport.Message) (good int, bad error) {
	inbox, first := transport.IsInbox(topic), true
	idempotent := t.cfg.resends > 0 && t.idempotent.Load()
	for i := range msgs {
		args, text, cuts := len(x.args), len(x.text), len(x.cuts)
		switch {
		case msgs[i].Terms != nil && (inbox || !t.DelaysMessages()):
			bad = fmt.Errorf("message %s of topic %s is to be delayed or stored once: %w", msgs[i].ID, topic, errors.ErrUnsupported)
		case msgs[i].Terms != nil:
			x.accepting(t, key, topic, &msgs[i], first)
			first = false
		case inbox:
			x.args = append(x.args, &xadd, &key, "MAXLEN", "~", inboxMost, &star)
		default:
			x.args = append(x.args, &xadd, &key)
			if idempotent {
				x.args = append(x.args, &idmp, &t.name, msgs[i].ID)
			}
			x.args = append(x.args, &star)
		}
		if bad == nil {
			if err := t.cfg.format.fields(x, &msgs[i]); err != nil {
				bad = fmt.Errorf("message %s: %w", msgs[i].ID, err)
			}
		}
		if bad != nil {
			x.args, x.text, x.cuts = x.args[:args], x.text[:text], x.cuts[:cuts]
			break
		}
		x.ends = append(x.ends, len(x.args))
		good++
	}
	if good == 0 {
		return 0, bad
	}
	x.seal(ctx)
	if t.cfg.replicas > 0 {
		x.cmds = append(x.cmds, redis.NewRawWriteToCmd(ctx, &x.replies, "WAIT", t.cfg.replicas, t.cfg.waitFor.Milliseconds()))
	}
	if inbox { // its receiver may be gone, and nobody else cares
		expire := redis.NewRawWriteToCmd(ctx, &x.replies, "PEXPIRE", key, inboxAge.Milliseconds())
		expire.SetFirstKeyPos(1)
		x.cmds = append(x.cmds, expire)
	}
	return good, bad
}

// execute runs commands as one pipeline.
func (t *Transport) execute(ctx context.Context, key string, cmds []redis.Cmder) error {
	client := t.clients.command()
	if t.cfg.replicas > 0 { // WAIT has no key by which a cluster would find the node
		n, err := node(ctx, client, key)
		if err != nil {
			return err
		}
		client = n
	}
	if len(cmds) == 1 {
		return client.Process(ctx, cmds[0])
	}
	pipe := client.Pipeline()
	pipe.BatchProcess(ctx, cmds...)
	_, err := pipe.Exec(ctx)
	return err
}

// stored sets the positions of what the replies say is stored, and tells what
// became of the rest. failure is why replies are missing.
func (t *Transport) stored(msgs []transport.Message, replies []byte, failure error) (n int, f fault, err error) {
	c := cursor{replies}
	for i := range msgs {
		p, e := c.added(failure)
		switch {
		case e == nil && n == i:
			if p == already {
				p = notYet
				t.count.duplicates.Add(1)
			}
			msgs[i].Position = p
			n++
		case e == nil:
			f = ambiguous // stored, after one that was not
		case err == nil:
			f, err = faultOf(e), e
			if errors.Is(e, errMalformed) {
				f = ambiguous
			}
		case faultOf(e) == ambiguous:
			f = ambiguous
		}
	}
	if t.cfg.replicas == 0 || n == 0 {
		return n, f, err
	}
	if got, e := c.integer(); e != nil || int(got) < t.cfg.replicas {
		t.count.unreplied.Add(uint64(n))
		return 0, rejected, errors.Join(&ReplicaError{Want: t.cfg.replicas, Got: int(got)}, cmp.Or(err, failure))
	}
	return n, f, err
}

// added takes the reply to an XADD. missing is the error where there is none.
func (c *cursor) added(missing error) (transport.Position, error) {
	if len(c.rest) == 0 || !bytes.Contains(c.rest, []byte("\r\n")) {
		if missing == nil {
			missing = io.ErrUnexpectedEOF
		}
		return transport.Position{}, missing
	}
	if err := replied(c.rest); err != nil {
		_, lineErr := c.line('-', "an error")
		return transport.Position{}, cmp.Or(lineErr, err)
	}
	id, err := c.bulk()
	if err != nil {
		if missing != nil {
			err = missing
		}
		return transport.Position{}, err
	}
	return parseID(id)
}
