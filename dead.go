package echo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/echobus/echo/transport"
)

// Why a message is a dead letter.
const (
	ReasonAttempts    = "attempts"    // its attempts are used up
	ReasonRejected    = "rejected"    // its handler said so, see Reject and Retry.Retryable
	ReasonUndecodable = "undecodable" // it is no value of the topic's type
	ReasonUpcast      = "upcast"      // it is of an earlier schema, and an Upcast failed
	ReasonExpired     = "expired"     // it came after its time to live
)

// DeadLetter is a message that could not be handled, as it lies in the topic of
// its dead letters. The [Message] that carries it has the ID, key, time and
// headers that it had when it was published.
type DeadLetter[M any] struct {
	Value    M     // zero if it cannot be decoded
	Err      error // why it cannot: a [*DecodeError], which has the data; else nil
	Reason   string
	Error    string    // what its last handler returned, shortened to 1 KiB; "" if nobody knows
	Attempts int       // how often it was tried
	Group    string    // in which it died
	Died     time.Time // when, by the clock of the consumer that gave it up
	Redrives int       // how often it was sent home before
}

// DeadLetters returns the topic of a topic's dead letters, for [Subscribe]. It
// is called as the topic, with ".dead" after it, and belongs to all groups of
// the topic. What cannot be decoded arrives, too. Nothing can be published to
// it, and its own messages are tried for ever: dead letters have none.
//
// A group that consumes dead letters sees each of them; it does not take them
// away from [Redrive].
func DeadLetters[M any](topic *Topic[M]) *Topic[DeadLetter[M]] {
	if topic == nil {
		return &Topic[DeadLetter[M]]{err: errors.New("topic is nil")}
	}
	dead := NewTopic[DeadLetter[M]](transport.DeadTopic(topic.name))
	if topic.err != nil {
		dead.err = topic.err
	}
	own := topic.cfg
	dead.read = func(c *Consumer[DeadLetter[M]], raw *transport.Message) (*DeadLetter[M], int, error) {
		decs := newDecoders(c.core.bus, own, topic.codec(c.core.bus))
		d := &DeadLetter[M]{}
		v, version, err := valueOf[M](c.core, &decs, raw)
		if d.Err = err; err == nil {
			d.Value = *v
		}
		d.tell(raw.Header)
		return d, version, nil
	}
	return dead
}

// tell reads what the headers say.
func (d *DeadLetter[M]) tell(h map[string]string) {
	d.Reason, d.Error, d.Group = h[headDeadReason], h[headDeadError], h[headDeadGroup]
	d.Attempts, _ = strconv.Atoi(h[headDeadAttempts])
	d.Redrives, _ = strconv.Atoi(h[headRedrives])
	d.Died, _ = time.Parse(time.RFC3339Nano, h[headDeadTime])
}

// The headers of a dead letter, besides its own.
const (
	headDead         = "echo-dead-"
	headDeadReason   = headDead + "reason"
	headDeadError    = headDead + "error"
	headDeadAttempts = headDead + "attempts"
	headDeadGroup    = headDead + "group"
	headDeadTime     = headDead + "time"

	// Kept for ever: how often it was sent home.
	headRedrives = "echo-redrives"
	// Of one that was sent home: the group in which it died, which alone handles it.
	headFor = "echo-for"
)

var (
	// errNotForUs says that a message is to be passed by: it was sent home for
	// another group, was handled already, or expired and nobody wants to know.
	errNotForUs = errors.New("not to be handled")
	// errBusy says that a message of the same name is being handled.
	errBusy = errors.New("being handled elsewhere in this consumer")
)

// bars returns why a message that arrived is not to be handled, or nil: a
// [*rejection], or errNotForUs.
func (c *consumer) bars(m *transport.Message) error {
	if group, ok := m.Header[headFor]; ok && group != c.cfg.Group && !c.letters {
		return errNotForUs
	}
	if most := c.cfg.retry.Attempts; most > 0 && m.Attempt > most {
		return &rejection{ReasonAttempts, errSpent}
	}
	if m.Header == nil || c.letters {
		return nil
	}
	if expired(m, time.Now()) {
		if c.cfg.deadExpired {
			return &rejection{ReasonExpired, nil}
		}
		c.count.expired.Add(1)
		return errNotForUs
	}
	return nil
}

// A dead letter tells so much of its error, in bytes.
const maxDeadError = 1 << 10

// deadLetter is m as a dead letter of a group.
func deadLetter(m *transport.Message, group, reason string, err error) transport.Message {
	d := *m
	d.Header = make(map[string]string, len(m.Header)+5)
	maps.Copy(d.Header, m.Header)
	maps.DeleteFunc(d.Header, func(name, _ string) bool { return name == headFor || strings.HasPrefix(name, headDead) })
	d.Terms = nil
	d.Header[headDeadReason] = reason
	d.Header[headDeadAttempts] = strconv.Itoa(m.Attempt)
	d.Header[headDeadGroup] = group
	d.Header[headDeadTime] = time.Now().UTC().Format(time.RFC3339Nano)
	if err != nil {
		d.Header[headDeadError] = oneLine(errorText(err), maxDeadError)
	}
	return d
}

// errorText is what an error says, which may be a nil pointer, or worse.
func errorText(err error) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprintf("an error of type %T, whose Error panics: %v", err, p)
		}
	}()
	return err.Error()
}

// oneLine returns text as the value of a header: UTF-8, without control
// characters, at most so many bytes.
func oneLine(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), most)], "\uFFFD"))
	for len(text) > most || !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text
}

// errSpent is the error of a message that comes after its last attempt: what
// the last one ended with is not known, as its process ended too.
var errSpent = errors.New("delivered again after its last attempt: whoever had it did not settle it")

// bury puts a message among the dead letters of its topic, in place of the
// delivery. Where there are none it is given up: logged, and settled as done.
func (c *consumer) bury(ctx context.Context, m *transport.Message, reason string, err error) error {
	topic, mover := c.home(m)
	if mover == nil {
		c.bus.cfg.logger.Error("echo: message given up, as there are no dead letters here", "topic", topic, "group", c.cfg.Group,
			"id", m.ID, "reason", reason, "attempt", m.Attempt, "error", err)
		ack := c.acker.Ack(ctx, []transport.Receipt{m.Receipt()})
		if ack == nil {
			c.count.givenUp.Add(1)
		}
		return ack
	}
	most := buryMost
	if lease := c.lease(); lease > 0 { // or somebody else has it meanwhile
		most = min(most, max(lease/3, 10*time.Millisecond))
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	move := mover.Move(ctx, transport.DeadTopic(topic), deadLetter(m, c.cfg.Group, reason, err), m.Receipt())
	if move == nil {
		c.count.dead.Add(1)
		c.bus.cfg.logger.Error("echo: message is a dead letter", "topic", topic, "group", c.cfg.Group,
			"id", m.ID, "reason", reason, "attempt", m.Attempt, "error", err)
	}
	return move
}

// buryMost is how long the topic of dead letters may take to accept one.
const buryMost = time.Second
