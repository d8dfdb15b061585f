package redisstream

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"
)

// Option is an option of [New] and [Open].
type Option func(*config)

type config struct {
	prefix     string
	format     format
	name       string
	lease      time.Duration
	sendFor    time.Duration
	resends    int
	replicas   int
	waitFor    time.Duration
	onLost     GroupLost
	keep       map[string]Retention // by topic; "" is every other
	aside      int
	remembered int
	logger     *slog.Logger
	errs       []error
}

func defaults() config {
	return config{
		prefix:     "echo",
		format:     native{},
		lease:      30 * time.Second,
		sendFor:    10 * time.Second,
		aside:      10_000,
		remembered: 100_000,
		keep:       map[string]Retention{},
		logger:     slog.New(slog.DiscardHandler),
	}
}

// WithPrefix sets what the names of all keys start with; the default is
// "echo". The stream of topic orders is then the key echo:{orders}.
func WithPrefix(prefix string) Option { return func(c *config) { c.prefix = prefix } }

// WithName names this process within its groups, which must be the only one
// of this name in them. When it starts again after a crash, it takes what it
// had not settled over at once; without a name that waits for the leases to end.
func WithName(name string) Option {
	return func(c *config) {
		if c.name = name; name == "" {
			c.errs = append(c.errs, errors.New("WithName: the name is empty"))
		}
	}
}

// WithLease sets the lease of subscriptions that ask for none; the default is
// 30 s. It is how long the messages of a consumer that died wait.
func WithLease(d time.Duration) Option { return func(c *config) { c.lease = d } }

// WithSendTimeout bounds how long Send goes on trying while the server refuses
// or cannot be reached, if its context allows as much; the default is 10 s. It
// counts anew for every thousand messages or megabyte of a batch.
func WithSendTimeout(d time.Duration) Option { return func(c *config) { c.sendFor = d } }

// WithResend lets Send send messages whose outcome is unknown again, up to n
// times, under the same IDs; the default is never. A message may then be in the
// stream twice; consumers that must not handle it twice tell by its ID. A
// server that knows idempotent producers (Redis 8.6) stores it once, within the
// bounds of XADD's IDMP. Stats.Resent counts.
func WithResend(n int) Option { return func(c *config) { c.resends = n } }

// WithReplicas makes Send wait until n replicas have the messages too, at most
// for timeout. Where fewer do, Send returns a [*ReplicaError], which wraps
// [github.com/echobus/echo/transport.ErrPublishUnknown]: the primary has the
// messages, and may lose them in a failover. It makes a loss much less likely
// and does not exclude it; see the WAIT command of Redis.
func WithReplicas(n int, timeout time.Duration) Option {
	return func(c *config) {
		c.replicas, c.waitFor = n, timeout
		if n < 1 || timeout < time.Millisecond {
			c.errs = append(c.errs, fmt.Errorf("WithReplicas(%d, %v): at least one replica and a millisecond", n, timeout))
		}
	}
}

// GroupLost names what a subscription does when its group is no more: the
// stream was deleted or evicted, the server lost its data, somebody destroyed
// the group. A group that is made again is counted by Stats.GroupsRecreated.
type GroupLost uint8

const (
	Replay GroupLost = iota // make the group again at the oldest entry: all that is kept is delivered again
	Resume                  // make it again after what this subscription received last, or before what it holds
	Fail                    // Receive returns an error that wraps [ErrGroupLost]
)

// WithGroupLost says what happens when a group is lost; the default is [Replay].
func WithGroupLost(p GroupLost) Option { return func(c *config) { c.onLost = p } }

// Retention bounds a stream. Entries leave it from the oldest on, some seconds
// after they may. The zero Retention keeps everything.
type Retention struct {
	MaxAge       time.Duration // entries older than this go; 0: no limit
	MaxLen       int64         // of more entries than this the oldest go; 0: no limit
	Acknowledged bool          // entries that all groups have acknowledged go, if there is a group

	// Unacknowledged lets MaxAge and MaxLen take entries that some group has
	// not acknowledged. Without it they stay, and the stream may grow beyond
	// its bounds while a group is behind. A group that loses messages is told
	// by a [github.com/echobus/echo/transport.LostError].
	Unacknowledged bool
}

// WithRetention sets the retention of some topics, or of all others if none is
// named. By default a stream keeps everything. One goroutine of the transport
// sees to the topics that it has sent to or subscribed to.
func WithRetention(r Retention, topics ...string) Option {
	return func(c *config) {
		if r.MaxAge < 0 || r.MaxLen < 0 {
			c.errs = append(c.errs, fmt.Errorf("WithRetention(%+v): a bound is negative", r))
		}
		if r.Unacknowledged && r.MaxAge == 0 && r.MaxLen == 0 {
			c.errs = append(c.errs, errors.New("WithRetention: Unacknowledged has no meaning without MaxAge or MaxLen"))
		}
		if len(topics) == 0 {
			topics = []string{""}
		}
		for _, t := range topics {
			c.keep[t] = r
		}
	}
}

// WithRemembered sets how many messages that are to be stored once a topic
// remembers at a time; the default is 100,000. Each takes some 100 bytes of the
// server's memory until its window is over. Where more are published within a
// window, those whose windows end first are forgotten early.
func WithRemembered(n int) Option { return func(c *config) { c.remembered = n } }

// WithLogger sets who is told of what deserves attention: lost groups, entries
// set aside, a server that may lose data. By default nobody is.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// WithCrystalFormat reads and writes the entries of the Crystal shard Echo, to
// share streams with it: the key is the topic's name alone, and values are JSON
// objects. Keys and headers have no room there; a message with either is refused.
func WithCrystalFormat() Option { return func(c *config) { c.format = crystal{} } }

var validPrefix = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$`)
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

func (c *config) check() error {
	errs := c.errs
	if !validPrefix.MatchString(c.prefix) {
		errs = append(errs, fmt.Errorf("WithPrefix(%q): a prefix is 1 to 100 letters, digits and . _ : -, the first one a letter or digit", c.prefix))
	}
	if c.name != "" && !validName.MatchString(c.name) {
		errs = append(errs, fmt.Errorf("WithName(%q): a name is 1 to 100 letters, digits and . _ -, the first one a letter or digit", c.name))
	}
	if c.lease < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("WithLease(%v): a lease is at least 10 ms", c.lease))
	}
	if c.sendFor <= 0 {
		errs = append(errs, fmt.Errorf("WithSendTimeout(%v): a timeout is positive", c.sendFor))
	}
	if c.resends < 0 {
		errs = append(errs, fmt.Errorf("WithResend(%d): a count is not negative", c.resends))
	}
	if c.remembered < 1 {
		errs = append(errs, fmt.Errorf("WithRemembered(%d): at least one message", c.remembered))
	}
	if c.onLost > Fail {
		errs = append(errs, fmt.Errorf("WithGroupLost(%d): no such policy", c.onLost))
	}
	if c.logger == nil {
		errs = append(errs, errors.New("WithLogger: the logger is nil"))
	}
	return errors.Join(errs...)
}
