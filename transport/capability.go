package transport

import (
	"context"
	"time"
)

// Acker is a [Subscription] whose messages can be acknowledged.
type Acker interface {
	// Ack settles the deliveries in rs: their messages are done for this group.
	// A [*LeaseError] names those that the subscription did not hold any more;
	// the others are settled. Each delivery is settled once, by whichever of
	// Ack, Nack and Release comes first. Ack does not keep rs.
	Ack(ctx context.Context, rs []Receipt) error
}

// Nacker is a [Subscription] that can give messages back.
type Nacker interface {
	// Nack gives the deliveries in rs back, to be delivered again, to any
	// member of the group, no sooner than after delay. Without a delay, a group of
	// one member gets them in order before what came after them, but for what a
	// Receive returns that began earlier. Errors are as for Ack.
	Nack(ctx context.Context, rs []Receipt, delay time.Duration) error
}

// Releaser is a [Subscription] that can give back what nobody began to handle.
type Releaser interface {
	// Release is a Nack without delay that leaves Attempt as it was.
	Release(ctx context.Context, rs []Receipt) error
}

// Extender is a [Subscription] whose messages are leased.
type Extender interface {
	// Lease is how long a delivery may stay unsettled.
	Lease() time.Duration
	// Extend makes the leases of rs end after d from now; 0 means Lease.
	// Errors are as for Ack.
	Extend(ctx context.Context, rs []Receipt, d time.Duration) error
}

// Mover is a [Subscription] of a group that can put a message into another
// topic in place of one it was given.
type Mover interface {
	// Move stores m in topic and settles the delivery r as done, in one step:
	// both or neither.
	//
	// A [*LeaseError] says that the subscription did not hold r any more, and an
	// error that wraps [ErrNotPublished] that the topic refused m; nothing is
	// done then. After any other error it may have been done; what was not
	// comes again when its lease ends. Like Send, Move keeps nothing of m.
	//
	// It works between a topic and its dead letters, see [DeadTopic], in either
	// direction. Between other topics it returns an error that wraps
	// [errors.ErrUnsupported] where the driver cannot do it.
	Move(ctx context.Context, topic string, m Message, r Receipt) error
}

// Positioner is a broadcast [Subscription] that knows how far it is.
type Positioner interface {
	// Position is the place up to which Receive has returned the topic's
	// messages. A subscription that starts after it, by AfterPosition, begins
	// with the first message that this one was not given. Called right after
	// Subscribe it tells where the subscription began.
	Position() Position
}

// Delayer is a [Transport] that keeps messages until their [Terms] say that they
// are due, by the clock of whatever stores them. They may come late, as after
// an outage; they come once, however many look after them.
type Delayer interface {
	DelaysMessages() bool
}

// Deduplicator is a [Transport] that stores a message once, as its [Terms] ask.
type Deduplicator interface {
	DeduplicatesMessages() bool
}

// Inspector is a [Transport] that can tell how its topics are.
type Inspector interface {
	// Inspect returns how a topic is now. A topic that nobody used is empty,
	// and no error. The figures need not be of one moment. Safe for concurrent use.
	Inspect(ctx context.Context, topic string) (Info, error)
}

// Lister is a [Transport] that can tell which topics there are.
type Lister interface {
	// Topics returns the topics that match a pattern, see [MatchTopic], in
	// order of their names. A topic is there when the first Send to it, or
	// Subscribe, returned; it may stay when all its messages are gone. Safe for
	// concurrent use.
	Topics(ctx context.Context, pattern string) ([]string, error)
}

// Pinger is a [Transport] that can ask whatever it talks to for a sign of life.
type Pinger interface {
	// Ping returns nil when the answer came, within ctx. Safe for concurrent use.
	Ping(ctx context.Context) error
}

// Unknown is a figure of [Info] that the driver cannot tell.
const Unknown = -1

// Info is how a topic is.
type Info struct {
	Messages   int64       `json:"messages"`   // kept, whether or not anybody has yet to get them
	Bytes      int64       `json:"bytes"`      // their size
	Delayed    int64       `json:"delayed"`    // accepted and not due yet; not among Messages
	Lost       int64       `json:"lost"`       // dropped before some group or broadcast subscription got them, summed over these
	Duplicates int64       `json:"duplicates"` // publishes that were found to be there already
	Forgotten  int64       `json:"forgotten"`  // messages that were to be stored once and may be stored again, as there were too many to remember
	Groups     []GroupInfo `json:"groups"`     // in the order of their names
}

// GroupInfo is how far a group is.
type GroupInfo struct {
	Name    string `json:"name"`
	Lag     int64  `json:"lag"`     // kept messages that no member was given yet
	Pending int64  `json:"pending"` // given to a member, or given back, and not settled
	// Oldest is how long ago the oldest pending message was published; 0 if
	// there is none, [Unknown] if the driver cannot tell.
	Oldest time.Duration `json:"oldest"`
}

// Group returns how far a group is; one that does not exist has nothing.
func (i Info) Group(name string) GroupInfo {
	for _, g := range i.Groups {
		if g.Name == name {
			return g
		}
	}
	return GroupInfo{Name: name}
}

// ValueCarrier is a [Transport] that can carry values by reference.
type ValueCarrier interface {
	// CarriesValues reports whether messages hold a Value in place of Data.
	CarriesValues() bool
}

// Retainer is a [Transport] whose Send may keep Data and Header of its
// messages. Their owner must not change them after Send.
type Retainer interface {
	RetainsMessages() bool
}

// Immediate is a [Transport] whose Send is a matter of nanoseconds, so that
// joining several publishers into one Send gains nothing. It is asked itself,
// not through Unwrap, as a wrapper may take its time.
type Immediate interface {
	SendsImmediately() bool
}

// Opener is a [Transport] that can look a topic up once for many sends. It is
// asked itself, not through Unwrap, so that no wrapper's Send is passed by.
type Opener interface {
	// Open returns what Send would do for this topic. A topic that cannot be
	// opened is reported when the function is called.
	Open(topic string) func(ctx context.Context, topic string, msgs []Message) (n int, err error)
}

// Checker is a [Transport] that was built with options it cannot honour. Every
// call returns the error too; Err lets a caller ask before the first one.
type Checker interface {
	Err() error
}

// As finds a capability: the first of v and what its Unwrap methods lead to
// that is a T. Wrappers of a Transport or a Subscription have a method
// "Unwrap() Transport" or "Unwrap() Subscription" and implement only what
// they change.
func As[T any](v any) (T, bool) {
	for v != nil {
		if t, ok := v.(T); ok {
			return t, true
		}
		switch w := v.(type) {
		case interface{ Unwrap() Transport }:
			v = w.Unwrap()
		case interface{ Unwrap() Subscription }:
			v = w.Unwrap()
		default:
			v = nil
		}
	}
	var none T
	return none, false
}

// KeepOpen returns t with a Close that does nothing, for a transport that
// several owners share.
func KeepOpen(t Transport) Transport { return keepOpen{t} }

type keepOpen struct{ Transport }

func (keepOpen) Close() error        { return nil }
func (k keepOpen) Unwrap() Transport { return k.Transport }

func (k keepOpen) SendsImmediately() bool {
	i, ok := k.Transport.(Immediate)
	return ok && i.SendsImmediately()
}
