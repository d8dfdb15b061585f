package transport

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

var (
	// ErrClosed is returned by everything used after Close.
	ErrClosed = errors.New("closed")
	// ErrNotPublished says of a failed Send that the messages it did not count
	// were surely not stored.
	ErrNotPublished = errors.New("not published")
	// ErrPublishUnknown says of a failed Send that some of the messages it did
	// not count may have been stored.
	ErrPublishUnknown = errors.New("publish outcome unknown")
	// ErrFull is why a bounded topic refused a message.
	ErrFull = errors.New("topic full")
	// ErrTooLarge is why a message over a limit was refused.
	ErrTooLarge = errors.New("too large")
	// ErrLeaseLost says that a delivery can no longer be settled by its
	// receiver: its lease ended, and the message belongs to the group again.
	ErrLeaseLost = errors.New("lease lost")
	// ErrNotFound says that a message to start after is not kept.
	ErrNotFound = errors.New("message not found")
)

// RefusedForItself reports whether the error of a Send says that a message was
// refused for what it is, and not for how the topic or the network is now: it is
// too large, or asks for what the driver cannot do. Sending it again is useless.
func RefusedForItself(err error) bool {
	return errors.Is(err, ErrNotPublished) && (errors.Is(err, ErrTooLarge) || errors.Is(err, errors.ErrUnsupported))
}

// Cannot returns why a transport does not do what a message's terms ask for, an
// error that [RefusedForItself] knows, or nil if it does.
func Cannot(t Transport, terms *Terms) error {
	if terms == nil {
		return nil
	}
	what := ""
	if d, ok := As[Delayer](t); !terms.Due.IsZero() && !(ok && d.DelaysMessages()) {
		what = "delay"
	} else if d, ok := As[Deduplicator](t); terms.Once != "" && !(ok && d.DeduplicatesMessages()) {
		what = "deduplicate"
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%w: the transport does not %s messages: %w", ErrNotPublished, what, errors.ErrUnsupported)
}

// LeaseError names deliveries that could not be settled or extended because
// their receiver does not hold them any more. It wraps [ErrLeaseLost].
type LeaseError struct{ Lost []Receipt }

func (e *LeaseError) Error() string {
	return fmt.Sprintf("%v for %d deliveries, first at %v", ErrLeaseLost, len(e.Lost), e.Lost[0].Position)
}

func (e *LeaseError) Unwrap() error { return ErrLeaseLost }

// LostError tells a subscription that messages were dropped before it
// received them. The subscription goes on after them.
type LostError struct {
	Topic string
	Group string   // empty for a broadcast
	Count uint64   // messages lost since the last LostError; 0 when nobody knows how many
	Next  Position // the place after which the subscription goes on, as for AfterPosition
}

func (e *LostError) Error() string {
	who := "broadcast subscription"
	if e.Group != "" {
		who = "group " + e.Group
	}
	count := "an unknown number of"
	if e.Count > 0 {
		count = strconv.FormatUint(e.Count, 10)
	}
	return fmt.Sprintf("%s of topic %s lost %s messages up to position %v", who, e.Topic, count, e.Next)
}

// Has reports whether r is among the lost.
func (e *LeaseError) Has(r Receipt) bool { return slices.Contains(e.Lost, r) }
