package echo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/echobus/echo/transport"
)

// Service is the contract between those who ask and those who answer: a name,
// and the types of requests and replies. It holds no resources; a package-level
// variable is its natural place.
type Service[Req, Res any] struct {
	requests *Topic[Req]
	replies  topicConfig // the codec of replies is that of requests
}

// NewService returns the service called name. Requests are messages of a topic
// of this name, to which the options apply; [WithCodec] is for replies, too.
func NewService[Req, Res any](name string, opts ...TopicOption) *Service[Req, Res] {
	t := NewTopic[Req](name, opts...)
	return &Service[Req, Res]{t, topicConfig{codec: t.cfg.codec, also: t.cfg.also}}
}

// CallError is an error that came from the other side of a [Call]. A responder
// returns one to choose its code; of other errors the code is "unknown", of a
// panic "internal", of a request that it cannot decode "bad_request".
type CallError struct {
	Code string // a word for programs
	Text string // for people
}

func (e *CallError) Error() string { return e.Code + ": " + e.Text }

// The headers of requests and replies. A reply's key is the number of its call.
const (
	headReply = "echo-reply" // of a request: where the reply goes, and after a space the number of the call
	headCode  = "echo-code"  // of a reply that is an error, whose text is the data
)

// respondGroup is the group whose members share the requests of a service.
const respondGroup = "respond"

// Call sends a request and returns the reply of one of those who [Respond]. ctx
// bounds it, and its deadline goes along: a request is not handled after it.
//
// What the responder's function returned as an error is a [*CallError]. A
// [*PublishError] says that the request was not sent, or that this is unknown.
// When ctx ends first, the request may have been handled all the same. Replies
// come over one subscription of the bus that Call opens the first time; late
// ones are dropped.
func Call[Req, Res any](ctx context.Context, b *Bus, s *Service[Req, Res], req Req, opts ...PublishOption) (Res, error) {
	res, err := call(ctx, b, s, req, opts)
	if err != nil {
		name := "nil service"
		if s != nil {
			name = s.requests.name
		}
		err = fmt.Errorf("echo: call %s: %w", name, err)
	}
	return res, err
}

func call[Req, Res any](ctx context.Context, b *Bus, s *Service[Req, Res], req Req, opts []PublishOption) (res Res, err error) {
	switch {
	case s == nil:
		return res, errors.New("service is nil")
	case b == nil:
		return res, errors.New("bus is nil")
	}
	c, err := callerOf(b, s)
	if err != nil {
		return res, err
	}
	in, err := b.openInbox(ctx)
	if err != nil {
		return res, err
	}
	n, reply, err := in.expect(ctx)
	if err != nil {
		return res, fmt.Errorf("%w: %w", ErrNotPublished, err)
	}
	defer in.forget(n, reply)
	cfg := configs.Get().(*publishConfig)
	defer cfg.free()
	for _, o := range opts {
		o.applyPublish(cfg)
	}
	cfg.reply, cfg.call = in.topic, n
	cfg.until, _ = ctx.Deadline()
	if err := c.producer.publish(ctx, req, cfg); err != nil {
		return res, err
	}
	select {
	case m := <-reply:
		res, err = c.read(&m)
		if d, ok := ctx.Deadline(); ok && err != nil && !time.Now().Before(d) {
			return res, context.DeadlineExceeded // which is why the responder failed, most likely
		}
		return res, err
	case <-in.ended:
		return res, in.err
	case <-ctx.Done():
		return res, context.Cause(ctx)
	}
}

// caller is what a bus needs to call a service.
type caller[Req, Res any] struct {
	producer *Producer[Req]
	decs     decoders
	as       *consumer // by which replies are decoded
}

// callerOf returns the caller of a service, which is made once.
func callerOf[Req, Res any](b *Bus, s *Service[Req, Res]) (*caller[Req, Res], error) {
	if c, ok := b.callers.Load(s); ok {
		return c.(*caller[Req, Res]), nil
	}
	c := &caller[Req, Res]{producer: NewProducer(b, s.requests), as: &consumer{bus: b, topic: s.requests.name}}
	if c.producer.err != nil {
		return nil, c.producer.err
	}
	c.decs = newDecoders(b, s.replies, s.requests.codec(b))
	b.callers.Store(s, c)
	return c, nil
}

// read makes a result of a reply.
func (c *caller[Req, Res]) read(m *transport.Message) (res Res, err error) {
	if code, ok := m.Header[headCode]; ok {
		return res, &CallError{Code: code, Text: string(m.Data)}
	}
	v, _, err := valueOf[Res](c.as, &c.decs, m)
	if err != nil {
		return res, err
	}
	return *v, nil
}

// inbox receives the replies to a bus's calls.
type inbox struct {
	topic string
	sub   transport.Subscription
	ended chan struct{} // closed when no reply comes any more
	err   error         // why

	room chan struct{} // holds a token when a call may have its turn

	mu      sync.Mutex // guards the rest
	n       uint64
	calls   map[uint64]chan transport.Message
	waiting int // for their turn
}

// maxCalls bounds the calls under way, so that an inbox keeps all their replies.
const maxCalls = 10_000

// opening is an inbox that is being opened, or was.
type opening struct {
	done chan struct{} // closed when the rest is known
	in   *inbox
	err  error
}

// openInbox returns the bus's inbox, and opens it if there is none. The bus
// opens it, not who calls first.
func (b *Bus) openInbox(ctx context.Context) (*inbox, error) {
	b.mu.Lock()
	o := b.inbox
	if o == nil || o.over() {
		if b.inboxClosed {
			b.mu.Unlock()
			return nil, ErrClosed
		}
		o = &opening{done: make(chan struct{})}
		b.inbox = o
		b.replying.Go(func() { b.runInbox(o) })
	}
	b.mu.Unlock()
	select {
	case <-o.done:
		return o.in, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// over reports whether it failed, or has ended.
func (o *opening) over() bool {
	select {
	case <-o.done:
	default:
		return false
	}
	if o.err != nil {
		return true
	}
	select {
	case <-o.in.ended:
		return true
	default:
		return false
	}
}

// runInbox opens an inbox and receives replies until it ends.
func (b *Bus) runInbox(o *opening) {
	in := &inbox{topic: transport.InboxTopic(rand.Text()), ended: make(chan struct{}), room: make(chan struct{}, 1), calls: make(map[uint64]chan transport.Message)}
	in.sub, o.err = b.transport.Subscribe(b.replies, in.topic, transport.Options{})
	if o.err != nil {
		if b.replies.Err() != nil {
			o.err = ErrClosed
		}
		o.err = fmt.Errorf("subscribing to replies: %w", o.err)
		close(o.done)
		return
	}
	o.in = in
	close(o.done)
	in.receive(b.replies)
	in.sub.Close()
}

// closeInbox ends what openInbox began.
func (b *Bus) closeInbox() {
	b.mu.Lock()
	b.inboxClosed = true
	b.mu.Unlock()
	b.endReplies()
	b.await(&b.replying)
}

// expect returns the number of a call and where its reply will come, when it is
// its turn.
func (in *inbox) expect(ctx context.Context) (uint64, chan transport.Message, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.calls) >= maxCalls {
		if err := in.await(ctx); err != nil {
			return 0, nil, err
		}
	}
	reply := awaited.Get().(chan transport.Message)
	in.n++
	in.calls[in.n] = reply
	in.offer()
	return in.n, reply, nil
}

// await waits until there may be room for a call. The caller holds mu, which is
// let go meanwhile.
func (in *inbox) await(ctx context.Context) error {
	in.waiting++
	in.mu.Unlock()
	defer func() {
		in.mu.Lock()
		in.waiting--
	}()
	select {
	case <-in.room:
		return nil
	case <-in.ended:
		return in.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// offer wakes one that waits for its turn, if there is room. The caller holds mu.
func (in *inbox) offer() {
	if in.waiting > 0 && len(in.calls) < maxCalls {
		select {
		case in.room <- struct{}{}:
		default:
		}
	}
}

// awaited lends out the channels in which replies come.
var awaited = sync.Pool{New: func() any { return make(chan transport.Message, 1) }}

// forget ends what expect began.
func (in *inbox) forget(n uint64, reply chan transport.Message) {
	in.mu.Lock()
	delete(in.calls, n) // nobody sends to the channel from here on
	in.offer()
	in.mu.Unlock()
	select {
	case <-reply: // it came too late
	default:
	}
	awaited.Put(reply)
}

// receive gives replies to those who wait for them.
func (in *inbox) receive(ctx context.Context) {
	defer close(in.ended)
	acker, _ := transport.As[transport.Acker](in.sub)
	dst := make([]transport.Message, 64)
	var rs []transport.Receipt
	for {
		n, err := in.sub.Receive(ctx, dst)
		if _, lost := errors.AsType[*LostError](err); lost {
			continue // whoever waits for one of them waits until its context ends
		}
		if err != nil {
			if in.err = err; ctx.Err() != nil {
				in.err = ErrClosed
			}
			return
		}
		rs = rs[:0]
		for i := range dst[:n] {
			rs = append(rs, dst[i].Receipt())
			in.deliver(&dst[i])
		}
		if acker != nil {
			acker.Ack(ctx, rs) // or they come again, and nobody waits for them
		}
		clear(dst[:n])
	}
}

// deliver gives a reply to who waits for it.
func (in *inbox) deliver(m *transport.Message) {
	n, err := strconv.ParseUint(m.Key, 10, 64)
	if err != nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if reply := in.calls[n]; reply != nil {
		delete(in.calls, n) // a second reply is of a second attempt
		in.offer()
		reply <- *m // which has room
	}
}

// Respond answers requests of a service with what f returns, until ctx ends, as
// [Consumer.Run] does. All who respond share the work. f's context has the
// deadline of the call.
//
// An error that f returns goes to the caller, and so does a panic; the request
// is done with. f returns [RetryAfter] to have it tried again. A reply that the
// transport does not take leads to another attempt, too: requests are handled
// at least once, and answered once.
func Respond[Req, Res any](ctx context.Context, b *Bus, s *Service[Req, Res], f func(ctx context.Context, m Message[Req]) (Res, error), opts ...SubscribeOption) error {
	if s == nil || f == nil {
		return errors.New("echo: respond: the service or the function is nil")
	}
	c, err := Subscribe(ctx, b, s.requests, append([]SubscribeOption{WithGroup(respondGroup)}, opts...)...)
	if err != nil {
		return err
	}
	replies := &Topic[Res]{name: s.requests.name, cfg: s.replies}
	r := &responder[Req, Res]{c: c, replies: NewProducer(b, replies)}
	if r.replies.err != nil {
		c.Close()
		return fmt.Errorf("echo: respond %s: of replies: %w", s.requests.name, r.replies.err)
	}
	if len(c.core.cfg.middleware)+len(b.cfg.middleware) == 0 {
		r.f = f
	}
	r.handle = wrapped(wrapped(func(ctx context.Context, m Message[Req]) (err error) {
		a, ok := ctx.Value(answering{}).(*answer[Res])
		if !ok {
			return &CallError{"internal", "middleware of the responder does not pass its context on"}
		}
		a.value, err = f(ctx, m)
		return err
	}, c.core.cfg.middleware), b.cfg.middleware)
	return c.fail("respond", c.core.run(ctx, func() handling {
		return handling{r.one, func(*fetch) {}, func() {}}
	}))
}

// responder answers requests.
type responder[Req, Res any] struct {
	c       *Consumer[Req]
	replies *Producer[Res] // encodes them
	handle  Handler[Req]
	f       func(ctx context.Context, m Message[Req]) (Res, error) // if there is no middleware around it
}

// answer is what the function of a responder returned.
type answer[Res any] struct{ value Res }

type answering struct{} // its key in a context

// one handles a request and sends the reply.
func (r *responder[Req, Res]) one(ctx context.Context, f *fetch, i int) error {
	raw := &f.msgs[i]
	if text, ok := raw.Header[headExpires]; ok {
		if at, err := strconv.ParseInt(text, 10, 64); err == nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, time.UnixMilli(at))
			defer cancel()
		}
	}
	v, version, err := r.c.value(raw)
	if err != nil {
		bad := &CallError{"bad_request", err.Error()}
		if e := r.reply(ctx, raw, nil, bad); e != nil && e != error(bad) {
			return e
		}
		return r.c.core.undecoded(ctx, err)
	}
	returned := false
	defer func() {
		if !returned { // f called runtime.Goexit
			why := &CallError{"internal", "the responder gave up"}
			if err := r.reply(ctx, raw, nil, why); err == nil || err == error(why) {
				f.delivery(i).drop(r.c.core.bus.settling)
			}
		}
	}()
	res, err := r.guarded(ctx, r.c.message(f, i, v, version))
	returned = true
	if err != nil {
		err = plain(err)
	}
	_, rejected := errors.AsType[*rejection](err)
	if _, again := errors.AsType[*retryAfter](err); again && !rejected {
		if most := r.c.core.cfg.retry.Attempts; most > 0 && raw.Attempt >= most { // and it is a dead letter
			r.reply(ctx, raw, nil, err)
		}
		return err
	}
	return r.reply(ctx, raw, &res, err)
}

// guarded calls the function. Its panic is an answer.
func (r *responder[Req, Res]) guarded(ctx context.Context, m Message[Req]) (res Res, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.c.core.bus.cfg.logger.Error("echo: responder panicked", "topic", m.Topic, "id", m.ID, "panic", p)
			err = &CallError{"internal", "the responder panicked"}
		}
	}()
	if r.f != nil {
		return r.f(ctx, m)
	}
	a := new(answer[Res])
	err = r.handle(context.WithValue(ctx, answering{}, a), m)
	return a.value, err
}

// reply sends an answer to who asked, if anybody did.
func (r *responder[Req, Res]) reply(handling context.Context, request *transport.Message, v *Res, failure error) error {
	inbox, number, ok := strings.Cut(request.Header[headReply], " ")
	if !ok || !transport.IsInbox(inbox) || transport.CheckName("topic", inbox) != nil {
		return failure
	}
	if _, err := strconv.ParseUint(number, 10, 64); err != nil {
		return failure
	}
	msgs := one.Get().(*[1]transport.Message)
	defer func() {
		msgs[0] = transport.Message{}
		one.Put(msgs)
	}()
	m := &msgs[0]
	if failure == nil {
		failure = r.replies.encode(m, *v, nil)
	}
	if failure != nil {
		e, ok := errors.AsType[*CallError](failure)
		if !ok {
			e = &CallError{"unknown", errorText(failure)}
		}
		id, now := r.replies.id()
		*m = transport.Message{
			ID: id, Time: now, Type: Text.ContentType(), Data: []byte(oneLine(e.Text, maxDeadError)),
			Header: map[string]string{headCode: oneLine(e.Code, 64)},
		}
	}
	m.Key = number
	b := r.c.core.bus
	ctx := b.settling
	if !b.immediate { // its Send may look for values
		ctx = replyContext{b.settling, handling}
	}
	_, err := b.transport.Send(ctx, inbox, msgs[:])
	return err
}

// replyContext is a context that ends with settlements and has the values of a handler's.
type replyContext struct {
	context.Context
	values context.Context
}

func (s replyContext) Value(key any) any { return s.values.Value(key) }
