package wsstream

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/echobus/echo/transport"
)

// Code says why the other end refused something. The first digit says what:
// 1 the link, 2 rights, 3 a publish, 4 a subscription, 5 the server.
type Code uint16

const (
	CodeBadFrame     Code = 101 // a frame that cannot be read, or a request that makes no sense
	CodeTooBig       Code = 103 // a frame, or one of its fields, is too large
	CodeTooMany      Code = 104 // too many frames, requests or errors
	CodeNoToken      Code = 201 // a token is needed
	CodeBadToken     Code = 202 // the token is not good; why is not told
	CodeExpired      Code = 203 // the token is no longer good
	CodeForbidden    Code = 204 // no right to this topic, or no such topic
	CodeRefused      Code = 303 // the transport does not take the message, and never will
	CodeFull         Code = 304 // the topic is full, or the transport cannot be reached: not stored
	CodeUnknown      Code = 305 // whether the message was stored is not known
	CodeOverrun      Code = 306 // more publishes under way than the welcome allowed
	CodeSubLimit     Code = 402 // too many subscriptions
	CodeBadStart     Code = 403 // the place to begin at makes no sense
	CodeNotFound     Code = 404 // the message to begin after is not kept
	CodeUnsupported  Code = 405 // the transport behind cannot do it
	CodeInternal     Code = 501 // the server's fault
	CodeUnavailable  Code = 502 // the transport behind failed
	CodeOverloaded   Code = 503 // too much for the server now
	CodeShuttingDown Code = 504 // the server is going away
)

var codeTexts = map[Code]string{
	CodeBadFrame: "bad frame", CodeTooBig: "too big", CodeTooMany: "too many", CodeNoToken: "a token is needed",
	CodeBadToken: "token not accepted", CodeExpired: "token expired", CodeForbidden: "forbidden or unknown topic",
	CodeRefused: "refused", CodeFull: "topic full", CodeUnknown: "outcome unknown", CodeOverrun: "too many publishes under way",
	CodeSubLimit: "too many subscriptions", CodeBadStart: "bad start", CodeNotFound: "message not found",
	CodeUnsupported: "unsupported", CodeInternal: "internal error", CodeUnavailable: "transport unavailable",
	CodeOverloaded: "overloaded", CodeShuttingDown: "shutting down",
}

func (c Code) String() string {
	if s := codeTexts[c]; s != "" {
		return s
	}
	return "code " + strconv.Itoa(int(c))
}

// temporary reports whether the same request may succeed later: it failed
// through the server's fault.
func (c Code) temporary() bool { return c >= 500 }

// Error is a refusal by the other end of a link.
type Error struct {
	Code Code
	Text string // more on it, for people
}

func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("refused by the server: %v (%d)", e.Code, e.Code)
	}
	return fmt.Sprintf("refused by the server: %v (%d): %s", e.Code, e.Code, e.Text)
}

// Unwrap returns the errors of package transport that say the same, so that a
// link fails as what is behind it would.
func (e *Error) Unwrap() []error {
	switch e.Code {
	case CodeUnknown:
		return []error{transport.ErrPublishUnknown}
	case CodeFull:
		return []error{transport.ErrFull}
	case CodeTooBig:
		return []error{transport.ErrTooLarge}
	case CodeNotFound:
		return []error{transport.ErrNotFound}
	case CodeUnsupported:
		return []error{errors.ErrUnsupported}
	}
	return nil
}

// Close codes of the WebSocket connection. A client that does not know one goes
// by its range: 4000 to 4099 connect again, with back-off; 4200 to 4299 get a
// new token first; 4300 to 4399 do not connect again unchanged.
const (
	closeDrain       = 4001 // the server is going away: another node, at a random moment within the time it said
	closeSlow        = 4002 // the client does not read
	closeOverloaded  = 4003
	closeSilent      = 4004 // nothing was heard of the client
	closeExpired     = 4201 // the token expired
	closeRevoked     = 4202 // somebody took the right to this link
	closeBadToken    = 4203
	closeBadProtocol = 4301 // a mistake of the client
	closeFlood       = 4302 // too many mistakes, or too much of something
	closeReplaced    = 4303 // another link resumed this one's session
)
