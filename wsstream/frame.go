package wsstream

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/echobus/echo/transport"
)

// The sub-protocols. They say the same in different forms.
const (
	protocolJSON   = "echo.v1+json"
	protocolBinary = "echo.v1+bin"
	// bearerPrefix begins an entry of Sec-WebSocket-Protocol that carries a
	// token, for browsers, which cannot set headers. It is never selected.
	bearerPrefix = "echo.bearer."
)

// frameType tells what a frame is. The numbers are those of the binary form.
type frameType uint8

const (
	frameHello   frameType = 1 + iota // c: opens the link
	frameWelcome                      // s: the link is open
	frameAuth                         // c: a fresh token
	frameOK                           // s: a request is done
	frameErr                          // s: a request is refused, or the link is about to close
	frameSub                          // c: subscribe
	frameSubOK                        // s: subscribed
	frameUnsub                        // c: end a subscription
	frameSubEnd                       // s: a subscription was ended
	frameRun                          // s: what follows in this batch is for this subscription
	frameMsg                          // s: a message of a topic; the same bytes for all its readers
	frameDlv                          // s: a delivery to a member of a group
	frameGap                          // s: messages were lost
	frameAck                          // c: done
	frameNack                         // c: to be delivered again
	frameExtend                       // c: keep leases
	frameFlow                         // c: more may be sent
	framePub                          // c: publish
	framePubOK                        // s: stored
	framePing                         // both
	framePong                         // both: the answer
	frameDrain                        // s: reconnect within a time
	frameBye                          // c: will not come back
	frameMove                         // c: put a message elsewhere in place of a delivery
	frameInspect                      // c: how is a topic
	frameInfo                         // s: the answer
	frameEnd
)

// frame is one unit of the protocol. Which fields count depends on its type,
// see layouts. Durations are in milliseconds.
type frame struct {
	Type frameType `json:"t"`

	Rid   uint64 `json:"rid,omitempty"` // a request's number
	Sid   uint64 `json:"sid,omitempty"` // a subscription's number, chosen by the client
	Count uint64 `json:"count,omitempty"`

	Client     string `json:"client,omitempty"`
	Token      string `json:"token,omitempty"`
	Session    string `json:"session,omitempty"`
	Resumed    bool   `json:"resumed,omitempty"`
	TTL        uint64 `json:"ttl,omitempty"`
	Ping       uint64 `json:"ping,omitempty"`
	MaxMessage uint64 `json:"max_message,omitempty"`
	MaxFrames  uint64 `json:"max_frames,omitempty"`
	MaxSubs    uint64 `json:"max_subs,omitempty"`
	MaxPublish uint64 `json:"max_publish,omitempty"`

	Code  Code   `json:"code,omitempty"`
	Text  string `json:"text,omitempty"`
	After uint64 `json:"after,omitempty"`

	Topic  string             `json:"topic,omitempty"`
	Group  string             `json:"group,omitempty"`
	From   from               `json:"from,omitempty"`
	Pos    transport.Position `json:"pos,omitzero"`
	Lease  uint64             `json:"lease,omitempty"`
	Credit uint64             `json:"credit,omitempty"`
	Bytes  uint64             `json:"bytes,omitempty"`
	Manual bool               `json:"manual,omitempty"`
	Seen   uint64             `json:"seen,omitempty"`
	Most   uint64             `json:"most,omitempty"`
	MostB  uint64             `json:"most_bytes,omitempty"`
	Once   bool               `json:"once,omitempty"`

	N       uint64   `json:"n,omitempty"`
	Ns      []uint64 `json:"ns,omitempty"`
	Delay   uint64   `json:"delay,omitempty"`
	Release bool     `json:"release,omitempty"`
	Within  uint64   `json:"within,omitempty"`
	Name    string   `json:"name,omitempty"`
	Window  uint64   `json:"window,omitempty"`
	Chain   bool     `json:"chain,omitempty"`

	Prev    transport.Position   `json:"prev,omitzero"`
	Attempt uint64               `json:"attempt,omitempty"`
	ID      string               `json:"id,omitempty"`
	Time    time.Time            `json:"time,omitzero"`
	Key     string               `json:"key,omitempty"`
	Media   string               `json:"type,omitempty"`
	Header  map[string]string    `json:"header,omitempty"`
	Data    []byte               `json:"-"` // in JSON one of data, text and base64
	Again   bool                 `json:"again,omitempty"`
	At      []transport.Position `json:"at,omitempty"`
}

// layouts say which fields a type has, in the order of the binary form. In the
// JSON form a field that is zero is left out and the order does not matter. A
// later version of the protocol may only append.
var layouts = [frameEnd]struct {
	name   string
	fields []field
}{
	frameHello:   {"hello", []field{fClient, fToken, fSession}},
	frameWelcome: {"welcome", []field{fSession, fResumed, fTTL, fPing, fMaxMessage, fMaxFrames, fMaxSubs, fMaxPublish}},
	frameAuth:    {"auth", []field{fRid, fToken}},
	frameOK:      {"ok", []field{fRid, fTTL, fNs}},
	frameErr:     {"err", []field{fRid, fCount, fSid, fCode, fText, fAfter}},
	frameSub:     {"sub", []field{fSid, fTopic, fGroup, fFrom, fPos, fID, fTime, fLease, fCredit, fBytes, fManual, fMost, fMostB, fResumed, fSeen}},
	frameSubOK:   {"subok", []field{fSid, fPos, fLease, fResumed}},
	frameUnsub:   {"unsub", []field{fRid, fSid}},
	frameSubEnd:  {"subend", []field{fSid, fCode, fText}},
	frameRun:     {"run", []field{fSid}},
	frameMsg:     {"msg", []field{fPos, fPrev, fID, fTime, fKey, fMedia, fHeader, fData}},
	frameDlv:     {"dlv", []field{fN, fAttempt, fPos, fID, fTime, fKey, fMedia, fHeader, fData}},
	frameGap:     {"gap", []field{fCount, fPos}},
	frameAck:     {"ack", []field{fRid, fSid, fPos, fNs, fAgain}},
	frameNack:    {"nack", []field{fRid, fSid, fNs, fDelay, fRelease, fAgain, fSeen}},
	frameExtend:  {"extend", []field{fRid, fSid, fNs, fLease}},
	frameFlow:    {"flow", []field{fSid, fCredit, fBytes, fOnce}},
	framePub:     {"pub", []field{fRid, fTopic, fID, fTime, fKey, fMedia, fHeader, fData, fAgain, fWithin, fDelay, fName, fWindow, fChain}},
	framePubOK:   {"pubok", []field{fRid, fCount, fAt, fAgain}},
	framePing:    {"ping", []field{fN}},
	framePong:    {"pong", []field{fN}},
	frameDrain:   {"drain", []field{fWithin}},
	frameBye:     {"bye", nil},
	frameMove:    {"move", []field{fRid, fSid, fNs, fTopic, fID, fTime, fKey, fMedia, fHeader, fData, fAgain}},
	frameInspect: {"inspect", []field{fRid, fTopic}},
	frameInfo:    {"info", []field{fRid, fMedia, fData}},
}

func (t frameType) String() string {
	if t > 0 && t < frameEnd {
		return layouts[t].name
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

var types = func() map[string]frameType {
	m := make(map[string]frameType)
	for t := frameHello; t < frameEnd; t++ {
		m[layouts[t].name] = t
	}
	return m
}()

// field is a field of a frame, as the binary form needs it: the one function
// that is not nil says its kind.
type field struct {
	number    func(*frame) *uint64 // uvarint
	bool      func(*frame) *bool   // one byte, 0 or 1
	string    func(*frame) *string // length and UTF-8
	code      func(*frame) *Code
	from      func(*frame) *from
	time      func(*frame) *time.Time            // nanoseconds since 1970, a signed varint; 0 for none
	position  func(*frame) *transport.Position   // two uvarints
	positions func(*frame) *[]transport.Position // count and positions
	numbers   func(*frame) *[]uint64             // count and uvarints
	header    func(*frame) *map[string]string    // count, then names and values
	data      func(*frame) *[]byte               // length and bytes
}

var (
	fRid        = field{number: func(f *frame) *uint64 { return &f.Rid }}
	fSid        = field{number: func(f *frame) *uint64 { return &f.Sid }}
	fCount      = field{number: func(f *frame) *uint64 { return &f.Count }}
	fClient     = field{string: func(f *frame) *string { return &f.Client }}
	fToken      = field{string: func(f *frame) *string { return &f.Token }}
	fSession    = field{string: func(f *frame) *string { return &f.Session }}
	fResumed    = field{bool: func(f *frame) *bool { return &f.Resumed }}
	fTTL        = field{number: func(f *frame) *uint64 { return &f.TTL }}
	fPing       = field{number: func(f *frame) *uint64 { return &f.Ping }}
	fMaxMessage = field{number: func(f *frame) *uint64 { return &f.MaxMessage }}
	fMaxFrames  = field{number: func(f *frame) *uint64 { return &f.MaxFrames }}
	fMaxSubs    = field{number: func(f *frame) *uint64 { return &f.MaxSubs }}
	fMaxPublish = field{number: func(f *frame) *uint64 { return &f.MaxPublish }}
	fCode       = field{code: func(f *frame) *Code { return &f.Code }}
	fText       = field{string: func(f *frame) *string { return &f.Text }}
	fAfter      = field{number: func(f *frame) *uint64 { return &f.After }}
	fTopic      = field{string: func(f *frame) *string { return &f.Topic }}
	fGroup      = field{string: func(f *frame) *string { return &f.Group }}
	fFrom       = field{from: func(f *frame) *from { return &f.From }}
	fPos        = field{position: func(f *frame) *transport.Position { return &f.Pos }}
	fLease      = field{number: func(f *frame) *uint64 { return &f.Lease }}
	fCredit     = field{number: func(f *frame) *uint64 { return &f.Credit }}
	fBytes      = field{number: func(f *frame) *uint64 { return &f.Bytes }}
	fManual     = field{bool: func(f *frame) *bool { return &f.Manual }}
	fSeen       = field{number: func(f *frame) *uint64 { return &f.Seen }}
	fMost       = field{number: func(f *frame) *uint64 { return &f.Most }}
	fMostB      = field{number: func(f *frame) *uint64 { return &f.MostB }}
	fOnce       = field{bool: func(f *frame) *bool { return &f.Once }}
	fN          = field{number: func(f *frame) *uint64 { return &f.N }}
	fNs         = field{numbers: func(f *frame) *[]uint64 { return &f.Ns }}
	fDelay      = field{number: func(f *frame) *uint64 { return &f.Delay }}
	fRelease    = field{bool: func(f *frame) *bool { return &f.Release }}
	fWithin     = field{number: func(f *frame) *uint64 { return &f.Within }}
	fName       = field{string: func(f *frame) *string { return &f.Name }}
	fWindow     = field{number: func(f *frame) *uint64 { return &f.Window }}
	fChain      = field{bool: func(f *frame) *bool { return &f.Chain }}
	fPrev       = field{position: func(f *frame) *transport.Position { return &f.Prev }}
	fAttempt    = field{number: func(f *frame) *uint64 { return &f.Attempt }}
	fID         = field{string: func(f *frame) *string { return &f.ID }}
	fTime       = field{time: func(f *frame) *time.Time { return &f.Time }}
	fKey        = field{string: func(f *frame) *string { return &f.Key }}
	fMedia      = field{string: func(f *frame) *string { return &f.Media }}
	fHeader     = field{header: func(f *frame) *map[string]string { return &f.Header }}
	fData       = field{data: func(f *frame) *[]byte { return &f.Data }}
	fAgain      = field{bool: func(f *frame) *bool { return &f.Again }}
	fAt         = field{positions: func(f *frame) *[]transport.Position { return &f.At }}
)

// from is a transport.From with a name in JSON.
type from uint8

var froms = [...]string{
	transport.Default: "", transport.Oldest: "oldest", transport.Newest: "newest",
	transport.AfterID: "id", transport.AtTime: "time", transport.AfterPosition: "pos",
}

func (f from) MarshalText() ([]byte, error) {
	if int(f) >= len(froms) {
		return nil, fmt.Errorf("start %d: no such kind", f)
	}
	return []byte(froms[f]), nil
}

func (f *from) UnmarshalText(text []byte) error {
	for i, name := range froms {
		if name == string(text) {
			*f = from(i)
			return nil
		}
	}
	return errors.New("from is none of oldest, newest, id, time, pos")
}

func (t frameType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

func (t *frameType) UnmarshalText(text []byte) error {
	*t = types[string(text)] // 0, an unknown type, is ignored where frames are
	return nil
}

// codec is a form of the protocol.
type codec interface {
	// number is 0, 1 or 2.
	number() int
	// append adds a frame to a batch.
	append(batch []byte, f *frame) []byte
	// next takes the first frame off a batch that is not empty. A frame of an
	// unknown type has Type 0. What f refers to is within batch or its own.
	// After an error that is no errFraming, rest is what follows the bad frame.
	next(batch []byte, f *frame) (rest []byte, err error)
}

// codecOf returns the form of a sub-protocol, or nil.
func codecOf(protocol string) codec {
	switch protocol {
	case protocolJSON:
		return jsonCodec{}
	case protocolBinary:
		return binaryCodec{}
	}
	return nil
}

// message returns what a frame says of a message.
func (f *frame) message() transport.Message {
	return transport.Message{
		ID: f.ID, Key: f.Key, Time: f.Time, Type: f.Media, Header: f.Header, Data: f.Data,
		Attempt: int(f.Attempt), Position: f.Pos,
	}
}

// earliest and latest are the times that both forms can say.
var earliest, latest = time.Unix(0, math.MinInt64).UTC(), time.Unix(0, math.MaxInt64).UTC()

// frameOf returns a frame that says what m is. A time that cannot be said is
// the nearest one that can.
func frameOf(t frameType, m *transport.Message) frame {
	at := m.Time.UTC()
	switch {
	case m.Time.IsZero():
		at = m.Time
	case at.Before(earliest):
		at = earliest
	case at.After(latest):
		at = latest
	}
	return frame{Type: t, ID: m.ID, Key: m.Key, Time: at, Media: m.Type, Header: m.Header, Data: m.Data,
		Attempt: uint64(m.Attempt), Pos: m.Position}
}

// demand adds the terms of a message to its frame.
func (f *frame) demand(terms *transport.Terms) {
	if terms == nil {
		return
	}
	if !terms.Due.IsZero() {
		f.Delay = milliseconds(time.Until(terms.Due))
	}
	f.Name, f.Window = terms.Once, milliseconds(terms.Window)
}

// terms are those that a frame asks for.
func (f *frame) terms() *transport.Terms {
	if f.Delay == 0 && f.Name == "" {
		return nil
	}
	t := &transport.Terms{Once: f.Name, Window: duration(f.Window)}
	if f.Delay > 0 {
		t.Due = time.Now().Add(duration(f.Delay))
	}
	return t
}

// milliseconds rounds up.
func milliseconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	n := uint64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		n++
	}
	return n
}

// duration is the time that ms milliseconds are, a century at most.
func duration(ms uint64) time.Duration {
	const century = 100 * 365 * 24 * time.Hour
	return time.Duration(min(ms, uint64(century/time.Millisecond))) * time.Millisecond
}
