package echo

import (
	"errors"
	"fmt"

	"github.com/echobus/echo/transport"
)

// Conditions that callers tell apart with errors.Is.
var (
	// ErrClosed is returned by everything used after its bus or consumer was closed.
	ErrClosed = transport.ErrClosed
	// ErrNotPublished: the message was refused and surely not stored.
	ErrNotPublished = transport.ErrNotPublished
	// ErrPublishUnknown: the message may have been stored; the answer was lost.
	// Publishing it again under the same ID is safe where consumers deduplicate.
	ErrPublishUnknown = transport.ErrPublishUnknown
	// ErrTooLarge: a payload, header or key is over a limit that the error names.
	ErrTooLarge = transport.ErrTooLarge
	// ErrFull: the topic is at its bound and its policy is to reject.
	ErrFull = transport.ErrFull
	// ErrLeaseLost: the message was not settled in time and belongs to its group
	// again. It is also the cause of a handler's context that ends for this reason.
	ErrLeaseLost = transport.ErrLeaseLost
)

// PublishError is what Publish and PublishBatch return when not everything was
// stored. errors.Is finds its outcome, [ErrNotPublished] or [ErrPublishUnknown],
// and its reason, such as [ErrTooLarge] or context.DeadlineExceeded.
type PublishError struct {
	Topic    string
	Accepted int // messages surely stored, counted from the first
	Total    int // messages given
	// Outcome of the messages that were not accepted: ErrNotPublished, or
	// ErrPublishUnknown when some of them may have been stored.
	Outcome error
	Err     error // the reason
}

func (e *PublishError) Error() string {
	s := "echo: publish " + e.Topic + ": "
	if e.Total > 1 {
		s += fmt.Sprintf("%d of %d accepted: ", e.Accepted, e.Total)
	}
	if !errors.Is(e.Err, e.Outcome) {
		s += e.Outcome.Error() + ": "
	}
	return s + e.Err.Error()
}

// Unwrap returns the outcome and the reason.
func (e *PublishError) Unwrap() []error { return []error{e.Outcome, e.Err} }

// publishError classifies err, the reason why only n of total were accepted.
func publishError(topic string, n, total int, err error) error {
	outcome := ErrPublishUnknown
	if errors.Is(err, ErrNotPublished) {
		outcome = ErrNotPublished
	}
	return &PublishError{Topic: topic, Accepted: n, Total: total, Outcome: outcome, Err: err}
}

// notPublished is publishError for what never reached a transport.
func notPublished(topic string, total int, err error) error {
	return &PublishError{Topic: topic, Total: total, Outcome: ErrNotPublished, Err: err}
}

// DecodeError says that a message arrived that is no value of the topic's type.
type DecodeError struct {
	Topic string
	ID    string
	Type  string // its content type
	Data  []byte // its payload, not to be changed
	Err   error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("echo: decode message %.80q of %s (%d bytes): %v", e.ID, e.Topic, len(e.Data), e.Err)
}

// Unwrap returns the reason.
func (e *DecodeError) Unwrap() error { return e.Err }

// PanicError is the error of a handler or codec that panicked, or of a handler
// that ended its goroutine with runtime.Goexit, as testing.T.FailNow does.
type PanicError struct {
	Value any // what was given to panic; nil for Goexit
	Stack []byte
}

func (e *PanicError) Error() string {
	if e.Value == nil {
		return fmt.Sprintf("runtime.Goexit was called\n%s", e.Stack)
	}
	return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack)
}

// Unwrap returns the panic's value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// LostError tells a consumer that messages were dropped before it got them,
// because the topic's bound or age limit says so. The consumer goes on.
type LostError = transport.LostError
