package redisstream

import (
	"sync/atomic"
	"time"
)

// Stats is what happened on a transport since it was made, and how it is. All
// but the last three are counts.
type Stats struct {
	Sent      uint64 // messages that the server said it stored
	Refused   uint64 // messages surely not stored
	Unknown   uint64 // messages whose outcome is unknown: what P3 calls ambiguous
	Resent    uint64 // messages sent again because their outcome was unknown
	Unreplied uint64 // messages stored, but on fewer replicas than asked for

	Received    uint64 // deliveries
	Redelivered uint64 // of these, second and later ones
	Acked       uint64 // acknowledged, and the server confirmed
	GivenBack   uint64 // given back for another delivery
	Stale       uint64 // settlements of deliveries no longer held
	LeasesLost  uint64 // deliveries whose lease could not be kept

	Lost            uint64 // messages trimmed or deleted before a group or broadcast subscription had handled them
	SetAside        uint64 // entries that could not be understood
	GroupsRecreated uint64 // groups found missing and made again
	Trimmed         uint64 // entries removed by retention
	Reconnects      uint64 // connections for reading that were given up

	Connected bool      // the last command was answered
	LastError string    // the last failure, "" if there was none
	LastAt    time.Time // and when that was
}

type counters struct {
	sent, refused, unknown, resent, unreplied                  atomic.Uint64
	received, redelivered, acked, givenBack, stale, leasesLost atomic.Uint64
	lost, setAside, groupsRecreated, trimmed, reconnects       atomic.Uint64
	connected                                                  atomic.Bool
	failure                                                    atomic.Pointer[failure]
}

type failure struct {
	text string
	at   time.Time
}

// answered notes that the server answers.
func (c *counters) answered() {
	if !c.connected.Load() {
		c.connected.Store(true)
	}
}

// failed notes a failure.
func (c *counters) failed(err error) {
	switch faultOf(err) {
	case refused, ambiguous:
		c.connected.Store(false)
	}
	c.failure.Store(&failure{err.Error(), time.Now()})
}

// Stats returns the transport's figures.
func (t *Transport) Stats() Stats {
	c := &t.count
	s := Stats{
		Sent: c.sent.Load(), Refused: c.refused.Load(), Unknown: c.unknown.Load(), Resent: c.resent.Load(), Unreplied: c.unreplied.Load(),
		Received: c.received.Load(), Redelivered: c.redelivered.Load(), Acked: c.acked.Load(), GivenBack: c.givenBack.Load(),
		Stale: c.stale.Load(), LeasesLost: c.leasesLost.Load(),
		Lost: c.lost.Load(), SetAside: c.setAside.Load(), GroupsRecreated: c.groupsRecreated.Load(), Trimmed: c.trimmed.Load(), Reconnects: c.reconnects.Load(),
		Connected: c.connected.Load(),
	}
	if f := c.failure.Load(); f != nil {
		s.LastError, s.LastAt = f.text, f.at
	}
	return s
}
