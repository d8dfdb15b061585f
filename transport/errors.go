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
