// Package transport defines what a driver provides so that echo can carry
// messages over it: memory, a broker, a socket.
//
// A driver is a [Transport]: it sends batches of messages to named topics and
// opens subscriptions that receive them in batches. The interfaces are small on
// purpose. What a driver can do beyond them is a capability, an interface of
// its own ([Acker], [Nacker], [Releaser], [Extender], [ValueCarrier],
// [Retainer]) that [As] finds, also behind wrappers.
//
// The rules every driver keeps are stated on the interfaces and checked by
// package [github.com/echobus/echo/transport/transporttest]:
//
//   - A message that Send accepted reaches every group and every broadcast
//     subscription that existed then, at least once, until it is acknowledged
//     or its retention ends; a loss is reported as a [LostError].
//   - One group shares messages: each goes to one member at a time. A message
//     not settled when its lease ends, negatively acknowledged, or held by a
//     subscription that closes, is delivered again with a higher Attempt.
//   - First deliveries keep the order in which Send stored the messages.
//     Redeliveries come before messages not yet delivered; when there are more
//     of them than a subscription has room for, the two may take turns. Those
//     that were released take none: a subscription that releases what it holds
//     gets it again in order, and what is new after it.
package transport

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"time"
)

// Message is one message on its way through a driver.
type Message struct {
	// ID is unique and made by the producer's side; equal IDs are the same message.
	ID string
	// Key, when not empty, names what the message is about. Equal keys keep their order.
	Key string
	// Time is when the message was published.
	Time time.Time
	// Type is the media type of Data, such as "application/json".
	Type string
	// Header holds what the publisher added; nil when empty.
	Header map[string]string
	// Data is the encoded value.
	Data []byte
	// Value replaces Data on a transport that is a [ValueCarrier]: a pointer to
	// what was published, which nobody changes.
	Value any
	// Terms is what its publisher asks for besides; nil for nothing. Only for
	// Send: messages that arrive have none.
	Terms *Terms

	// Attempt counts deliveries to a group, 1 first. Set by Receive.
	Attempt int
	// Position is where the message stands in its topic. Set by Send and Receive.
	Position Position
	// Token names this delivery to the driver. Set by Receive.
	Token uint64
}

// Receipt returns what settles this delivery of the message.
func (m *Message) Receipt() Receipt { return Receipt{m.Position, m.Token} }

// Size is what the message weighs against bounds in bytes: its data, key,
// type and headers. A value carried by reference weighs nothing.
func (m *Message) Size() int {
	n := len(m.Data) + len(m.Key) + len(m.Type)
	for k, v := range m.Header {
		n += len(k) + len(v)
	}
	return n
}

// Clone returns a copy of m that shares no memory with it, a Value excepted.
func (m *Message) Clone() Message {
	c := *m
	c.Data = append([]byte(nil), m.Data...)
	c.Header = maps.Clone(m.Header)
	return c
}

// Terms are what a publisher asks of Send besides storing a message.
type Terms struct {
	// Due is when the message takes its place in the topic, and can be
	// delivered; it is never delivered before. Zero means at once, and so does
	// a time that has passed. Only for a [Delayer].
	Due time.Time
	// Once names the message within its topic: for Window after it was accepted,
	// others of the same name are not stored, and Send says that they are.
	// Empty means that nobody looks. Only for a [Deduplicator].
	Once   string
	Window time.Duration
}

// Receipt settles one delivery of one message.
type Receipt struct {
	Position Position
	Token    uint64
}

// Position is a place in a topic. Positions of one topic are ordered as its
// messages are. The two numbers are the driver's: a counter, or the two halves
// of a Redis entry ID.
type Position struct{ Hi, Lo uint64 }

// Compare returns -1, 0 or +1 as p stands before, at or after q.
func (p Position) Compare(q Position) int {
	switch {
	case p == q:
		return 0
	case p.Hi < q.Hi, p.Hi == q.Hi && p.Lo < q.Lo:
		return -1
	}
	return 1
}

// String returns the position as "hi-lo", the form [ParsePosition] reads.
func (p Position) String() string {
	return strconv.FormatUint(p.Hi, 10) + "-" + strconv.FormatUint(p.Lo, 10)
}

// MarshalText implements [encoding.TextMarshaler] with the form of String.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] by ParsePosition.
func (p *Position) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePosition(string(text))
	return err
}

// ParsePosition reads the form that String writes.
func ParsePosition(s string) (Position, error) {
	hi, lo, ok := strings.Cut(s, "-")
	h, err1 := strconv.ParseUint(hi, 10, 64)
	l, err2 := strconv.ParseUint(lo, 10, 64)
	p := Position{h, l}
	if !ok || err1 != nil || err2 != nil || p.String() != s {
		return Position{}, fmt.Errorf("transport: position %q is not two numbers joined by a hyphen", s)
	}
	return p, nil
}

// Sender stores messages in topics.
type Sender interface {
	// Send stores msgs in order and reports how many it stored, counted from
	// the first. Like [io.Writer], n < len(msgs) means err != nil.
	//
	// An error that wraps [ErrNotPublished] says that msgs[n:] were surely not
	// stored; any other error leaves open whether some of msgs[n:] were. One for
	// which [RefusedForItself] is true speaks of msgs[n] alone: those after it
	// were not tried.
	// A ctx that ends while Send waits (for room, for a reply) ends Send; when
	// it ended before the call, nothing is stored.
	//
	// Send sets the Position of each message it stored, or to the zero Position
	// if it is not due or was there already, and changes nothing else. It keeps
	// neither msgs nor what the messages point to, unless the driver is a
	// [Retainer]. Safe for concurrent use.
	Send(ctx context.Context, topic string, msgs []Message) (n int, err error)
}

// Subscriber opens subscriptions.
type Subscriber interface {
	// Subscribe opens a subscription to topic. A message that Send accepts
	// after Subscribe returned is not missed. ctx bounds this call alone.
	// A topic exists from its first use on. Safe for concurrent use.
	Subscribe(ctx context.Context, topic string, opts Options) (Subscription, error)
}

// Subscription receives the messages of one topic. One goroutine at a time may
// call Receive; everything else may be called beside it.
type Subscription interface {
	// Receive waits until at least one message is there, fills dst with what is
	// ready and reports how many messages that is. It repairs what it can (a
	// lost connection, a restarted server) and waits meanwhile.
	//
	// When ctx ends, Receive returns its error and no message is lost. After
	// Close it returns [ErrClosed]. A [*LostError] tells of messages lost
	// to this subscription; Receive may be called again. Any other error is
	// final. With an error, n is 0.
	//
	// Data and Header of a received message may be shared with other
	// receivers: keep them, but do not change them.
	Receive(ctx context.Context, dst []Message) (n int, err error)

	// Close ends the subscription. Messages of a group that it holds are given
	// back. Closing twice is no error.
	Close() error
}

// Transport is a driver: a Sender, a Subscriber and a Closer.
type Transport interface {
	Sender
	Subscriber

	// Close ends every subscription and waiting call. Everything but Close
	// returns [ErrClosed] from then on. Closing twice is no error.
	io.Closer
}

// Options say what a subscription is.
type Options struct {
	// Group names the consumers that share the topic's messages. A group is
	// durable: it keeps its place when its last member leaves. Empty means
	// broadcast: this subscription gets every message and ends with Close.
	Group string
	// Start is where a broadcast subscription or a group that does not exist
	// yet begins. The zero Start means Oldest for a group, Newest for a
	// broadcast. A group that exists goes on where it was.
	Start Start
	// Lease is how long a message may stay unsettled before it is delivered
	// again. 0 means the driver's default.
	Lease time.Duration
	// MaxPending bounds the unsettled messages this subscription holds:
	// Receive waits while there are as many. 0 means no bound.
	MaxPending int
	// MaxPendingBytes bounds their Size in the same way. One message is
	// delivered to a subscription that holds none, however large. 0 means no bound.
	MaxPendingBytes int
}

// Start is a place in a topic to begin at.
type Start struct {
	From     From
	ID       string    // with AfterID
	Time     time.Time // with AtTime
	Position Position  // with AfterPosition
}

// From names the kinds of Start.
type From uint8

const (
	Default       From = iota // Oldest for a group, Newest for a broadcast
	Oldest                    // the oldest message still kept
	Newest                    // only messages stored from now on
	AfterID                   // after the message with Start.ID; Subscribe returns ErrNotFound when it is not kept
	AtTime                    // the first message kept whose Time is not before Start.Time
	AfterPosition             // after Start.Position; messages no longer kept are reported by a LostError, and so is a position of another log
)
