// Package redisstream is echo's transport over Redis Streams and their
// consumer groups: durable, and shared by many processes on many machines. It
// needs Redis 7.0 or Valkey 7.2, or later; one server, Sentinel or Cluster.
//
// A topic is a stream, a group a consumer group. The stream of topic orders is
// the key echo:{orders}; docs/operations.md of this module has the fields of its
// entries.
//
// # What survives what
//
// A nil error of Send says that the server had the messages. What that is worth
// is up to the server's configuration:
//
//	                           killed process     power loss      failover
//	no persistence             all is lost        all             what was not yet copied
//	RDB alone                  since the last snapshot            "
//	appendfsync everysec       nothing, usually   1 to 2 s        "
//	appendfsync always         nothing            nothing         "
//	and WithReplicas(1, …)     "                  "               much less, not nothing
//
// A transport looks at the configuration when it connects and tells its logger
// when data may be lost: without persistence, or with a maxmemory-policy that
// evicts keys.
//
// # Outcomes of Send
//
// An error that wraps [transport.ErrNotPublished] says that the server surely
// stored nothing of the rest: it refused, or could not be reached. While that
// may pass, Send tries again, see [WithSendTimeout]. An error that wraps
// [transport.ErrPublishUnknown] says that a reply was lost. Nothing is sent
// twice behind the caller's back unless [WithResend] allows it.
//
// # Delivery
//
// A consumer of a group holds what it was delivered as an entry of the group's
// pending list, under a name that no other process start has, and that ends
// with its lease in milliseconds. Whatever is not settled by then, any member
// of the group takes over, many at a time. Every member looks once a second;
// members within one process tell each other at once. What is given back waits
// under the name ~waiting until its delay is over. A broadcast subscription
// leaves no trace in the server; it reads at a place of its own.
//
// What a group gives up, a script moves to the stream of dead letters,
// echo:{orders}:dead for topic orders, in one step. A message with a delay
// waits in a sorted set, and a transport that knows the topic moves it when it
// is due, see [Transport.DelaysMessages]. Names of messages that are to be
// stored once are in another one, see [WithRemembered]. All keys of a topic
// have one hash tag. The stream of an inbox, for replies, is short and expires.
//
// Receiving rides out what passes: lost connections, restarts, failovers, a
// server that loads, is full or read-only. It retries with back-off and jitter,
// never faster. What does not pass (a wrong password, missing rights, a key of
// another type) ends the subscription with an error that names the command and
// the key.
package redisstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/transport"
)

// Transport is a transport over Redis Streams. It is safe for concurrent use.
type Transport struct {
	cfg        config
	err        error // what is wrong with the options
	clients    *clients
	own        redis.UniversalClient // made by Open
	name       string                // of this process, the start of its consumers' names
	former     string                // what names of predecessors start with, or ""
	count      counters
	ready      atomic.Bool // the server answered, and no failure since
	looked     atomic.Bool // the server's configuration was looked at
	idempotent atomic.Bool // the server adds an entry once, however often it is sent
	serial     atomic.Uint64
	noted      sync.Map // when a topic was noted in the set of topics, by name

	sooner chan struct{}   // holds a token when something is due earlier than was known
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // goroutines of the transport

	mu     sync.Mutex // guards the rest
	closed bool       // Close was called
	ended  bool       // and nothing new may begin
	subs   map[closer]struct{}
	groups map[groupName]*group
	keeper bool                  // retention is seen to
	mover  bool                  // what is due is moved
	later  map[string]*following // by topic
	looks  looks                 // of later, but those under way
	topics map[string]bool
}

type closer interface{ Close() error }

var (
	_ transport.Transport    = (*Transport)(nil)
	_ transport.Checker      = (*Transport)(nil)
	_ transport.Inspector    = (*Transport)(nil)
	_ transport.Pinger       = (*Transport)(nil)
	_ transport.Lister       = (*Transport)(nil)
	_ transport.Delayer      = (*Transport)(nil)
	_ transport.Deduplicator = (*Transport)(nil)
)

// ErrGroupLost is what a subscription made with [Fail] ends with when its
// group was lost.
var ErrGroupLost = errors.New("the group was lost")

// New returns a transport over a server. It makes clients of its own from the
// options of the given one, a *redis.Client (also one of
// redis.NewFailoverClient) or a *redis.ClusterClient, and never uses or closes
// that. It does no I/O. When options are wrong, every call on it returns an
// error that names them, and so does Err.
func New(client redis.UniversalClient, opts ...Option) *Transport {
	t := &Transport{
		cfg:    defaults(),
		subs:   map[closer]struct{}{},
		groups: map[groupName]*group{},
		topics: map[string]bool{},
		later:  map[string]*following{},
		sooner: make(chan struct{}, 1),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	for _, o := range opts {
		o(&t.cfg)
	}
	err := t.cfg.check()
	if err == nil {
		t.clients, err = newClients(client, t.cfg.waitFor)
	}
	if err != nil {
		t.err = fmt.Errorf("redisstream: %w", err)
		return t
	}
	start := make([]byte, 6)
	rand.Read(start)
	if t.cfg.name != "" {
		t.former = t.cfg.name + "~"
		t.name = t.former + hex.EncodeToString(start)
	} else {
		host, _ := os.Hostname()
		t.name = strings.ReplaceAll(fmt.Sprintf("%.60s-%d-%s", host, os.Getpid(), hex.EncodeToString(start)), ".", "-")
	}
	return t
}

// Open returns a transport for a URL as for [Dial], and asks the server for a
// sign of life, within ctx.
func Open(ctx context.Context, url string, opts ...Option) (*Transport, error) {
	client, err := Dial(url)
	if err != nil {
		return nil, err
	}
	return open(ctx, client, opts)
}

// OpenEnv is Open for what the environment says, see [DialEnv].
func OpenEnv(ctx context.Context, opts ...Option) (*Transport, error) {
	client, err := DialEnv()
	if err != nil {
		return nil, err
	}
	return open(ctx, client, opts)
}

func open(ctx context.Context, client redis.UniversalClient, opts []Option) (*Transport, error) {
	t := New(client, opts...)
	t.own = client
	err := t.err
	if err == nil {
		err = t.connect(ctx)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Err returns what is wrong with the options given to New, or nil.
func (t *Transport) Err() error { return t.err }

// Ping asks the server for a sign of life, once, within ctx.
func (t *Transport) Ping(ctx context.Context) error {
	if err := t.usable(); err != nil {
		return err
	}
	err := t.ping(ctx)
	if err != nil {
		t.failed(err)
		return describe("PING", "", err)
	}
	t.answered()
	return nil
}

func (t *Transport) ping(ctx context.Context) error {
	_, err := t.command(ctx, 0, "PING")
	return err
}

// usable returns why the transport cannot be used, or nil.
func (t *Transport) usable() error {
	if t.err != nil {
		return t.err
	}
	if t.ctx.Err() != nil {
		return transport.ErrClosed
	}
	return nil
}

// connect waits for the server's first answer while that may come.
func (t *Transport) connect(ctx context.Context) error {
	if t.ready.Load() {
		return nil
	}
	var pause backoff
	for {
		err := t.ping(ctx)
		if err == nil {
			t.answered()
			t.look(ctx)
			return nil
		}
		if t.ctx.Err() != nil {
			return transport.ErrClosed
		}
		t.failed(err)
		if faultOf(err) == rejected {
			return fmt.Errorf("redisstream: connecting: %w", err)
		}
		switch end := pause.wait(ctx, t.ctx.Done()); end {
		case nil:
		case transport.ErrClosed:
			return end
		default:
			return fmt.Errorf("redisstream: connecting: %w", ended(ctx, err))
		}
	}
}

// answered notes that the server answered a command.
func (t *Transport) answered() {
	if !t.ready.Load() {
		t.ready.Store(true)
	}
	t.count.answered()
}

// failed notes that a command failed.
func (t *Transport) failed(err error) {
	if f := faultOf(err); f == ambiguous || f == refused {
		t.ready.Store(false)
	}
	if is(err, "READONLY") {
		t.clients.renew()
	}
	t.count.failed(err)
}

// within runs f, and returns when ctx ends at the latest. It reports whether f
// returned; otherwise f goes on with all that it uses.
func within(ctx context.Context, f func() error) (finished bool, err error) {
	if ctx.Done() == nil {
		return true, f()
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return true, err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// Close implements [transport.Transport]. It gives back what subscriptions
// hold, in 100 ms at most; what that cannot reach comes again when its lease ends.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	subs := t.subs
	t.subs = nil
	t.mu.Unlock()
	var closing sync.WaitGroup
	for s := range subs {
		closing.Go(func() { s.Close() })
	}
	closing.Wait()
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.cancel()
	var err error
	if t.clients != nil {
		err = t.clients.close()
	}
	if t.own != nil {
		err = errors.Join(err, t.own.Close())
	}
	t.work.Wait()
	if errors.Is(err, redis.ErrClosed) {
		err = nil
	}
	return err
}

// Subscribe implements [transport.Subscriber]. The subscription is an Acker, a
// Nacker, a Releaser, an Extender and, for a group, a Mover.
func (t *Transport) Subscribe(ctx context.Context, topic string, opts transport.Options) (transport.Subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.usable(); err != nil {
		return nil, err
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return nil, err
	}
	if opts.Group != "" {
		if err := transport.CheckName("group", opts.Group); err != nil {
			return nil, err
		}
	}
	if opts.Lease < 0 || opts.MaxPending < 0 || opts.MaxPendingBytes < 0 || opts.Start.From > transport.AfterPosition {
		return nil, fmt.Errorf("redisstream: options %+v: a lease or bound is negative, or there is no such start", opts)
	}
	if opts.Lease == 0 {
		opts.Lease = t.cfg.lease
	}
	opts.Lease = min(max(opts.Lease, time.Millisecond), horizon)
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	if _, err := t.retrying(ctx, forever, func(ctx context.Context) error { return t.note(ctx, topic) }); err != nil {
		return nil, describe("SADD", t.registry(), err)
	}
	var s interface {
		transport.Subscription
		closer
	}
	var err error
	if opts.Group != "" {
		s, err = t.subscribeGroup(ctx, topic, opts)
	} else {
		s, err = t.subscribeBroadcast(ctx, topic, opts)
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		s.Close()
		return nil, transport.ErrClosed
	}
	t.subs[s] = struct{}{}
	t.mu.Unlock()
	if !transport.IsInbox(topic) {
		t.retain(topic)
	}
	t.followAs(topic, 0, 1)
	return s, nil
}

// forget is called by a subscription to a topic that closes.
func (t *Transport) forget(s closer, topic string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.subs, s)
	if f := t.later[topic]; f != nil && f.users > 0 {
		f.users--
	}
}

func (t *Transport) key(topic string) string { return t.cfg.format.key(t.cfg.prefix, topic) }

// sideKey is a key beside a topic's stream, in the same slot of a cluster.
func (t *Transport) sideKey(topic, what string) string {
	if t.cfg.format != format(native{}) { // whose streams have no tag
		return t.cfg.prefix + ":{" + topic + "}:" + what
	}
	return t.key(topic) + ":" + what
}
