package redisstream

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/echobus/echo/internal/held"
	"github.com/echobus/echo/transport"
)

// Stats is what happened on a transport since it was made, and how it is. All
// but the last three are counts.
type Stats struct {
	Sent       uint64 // messages that the server said it stored
	Refused    uint64 // messages surely not stored
	Unknown    uint64 // messages whose outcome is unknown: what P3 calls ambiguous
	Duplicates uint64 // messages that were to be stored once, and were there already
	Resent     uint64 // messages sent again because their outcome was unknown
	Unreplied  uint64 // messages stored, but on fewer replicas than asked for

	Received    uint64 // deliveries
	Redelivered uint64 // of these, second and later ones
	Acked       uint64 // acknowledged, and the server confirmed
	GivenBack   uint64 // given back for another delivery
	Moved       uint64 // moved to another topic
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
	sent, refused, unknown, duplicates, resent, unreplied             atomic.Uint64
	received, redelivered, acked, givenBack, moved, stale, leasesLost atomic.Uint64
	lost, setAside, groupsRecreated, trimmed, reconnects              atomic.Uint64
	connected                                                         atomic.Bool
	failure                                                           atomic.Pointer[failure]
}

type failure struct {
	text string
	at   time.Time
}

// event counts what became of a broadcast subscription's messages.
func (c *counters) event(e held.Event, n int) {
	switch e {
	case held.Received:
		c.received.Add(uint64(n))
	case held.Redelivered:
		c.redelivered.Add(uint64(n))
	case held.Acked:
		c.acked.Add(uint64(n))
	case held.GivenBack:
		c.givenBack.Add(uint64(n))
	case held.Stale:
		c.stale.Add(uint64(n))
	}
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
		Sent: c.sent.Load(), Refused: c.refused.Load(), Unknown: c.unknown.Load(), Duplicates: c.duplicates.Load(), Resent: c.resent.Load(), Unreplied: c.unreplied.Load(),
		Received: c.received.Load(), Redelivered: c.redelivered.Load(), Acked: c.acked.Load(), GivenBack: c.givenBack.Load(), Moved: c.moved.Load(),
		Stale: c.stale.Load(), LeasesLost: c.leasesLost.Load(),
		Lost: c.lost.Load(), SetAside: c.setAside.Load(), GroupsRecreated: c.groupsRecreated.Load(), Trimmed: c.trimmed.Load(), Reconnects: c.reconnects.Load(),
		Connected: c.connected.Load(),
	}
	if f := c.failure.Load(); f != nil {
		s.LastError, s.LastAt = f.text, f.at
	}
	return s
}

// GroupInfo is how far a group is in a topic.
type GroupInfo struct {
	Name      string
	Consumers int           // names in the group: members, those that died lately, and ~waiting once something was given back
	Pending   int64         // messages delivered and not settled
	Waiting   int64         // of these, given back: they wait to be delivered again
	Lag       int64         // messages not delivered yet, -1 where the server cannot tell
	Oldest    time.Duration // how long ago the oldest message that is pending or not delivered was stored; 0 if there is none
}

// Groups returns the groups of a topic; none if there is no such topic.
func (t *Transport) Groups(ctx context.Context, topic string) ([]GroupInfo, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return nil, err
	}
	key := t.key(topic)
	groups, err := t.groupsOf(ctx, key)
	if err != nil {
		return nil, describe("XINFO GROUPS", key, err)
	}
	now, err := t.serverTime(ctx, key)
	if err != nil {
		return nil, describe("TIME", key, err)
	}
	infos := make([]GroupInfo, len(groups))
	for i, g := range groups {
		infos[i] = GroupInfo{Name: g.text("name"), Consumers: int(g.number("consumers")), Pending: g.number("pending"), Lag: g.number("lag")}
		if err := t.oldest(ctx, key, g, now, &infos[i]); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// oldest fills in what a group's pending list and its place tell.
func (t *Transport) oldest(ctx context.Context, key string, g attributes, now time.Time, info *GroupInfo) error {
	var oldest any
	if info.Pending > 0 {
		v, err := t.command(ctx, 1, "XPENDING", key, info.Name)
		if err != nil {
			return describe("XPENDING", key, err)
		}
		if p, ok := v.([]any); ok && len(p) == 4 { // count, lowest, highest, consumers
			oldest = p[1]
			consumers, _ := p[3].([]any)
			for _, c := range consumers {
				if pair, ok := c.([]any); ok && len(pair) == 2 && pair[0] == waiting {
					text, _ := pair[1].(string)
					info.Waiting, _ = parseInt([]byte(text))
				}
			}
		}
	} else {
		v, err := t.command(ctx, 1, "XRANGE", key, "("+g.text("last-delivered-id"), "+", "COUNT", 1)
		if err != nil {
			return describe("XRANGE", key, err)
		}
		if list, ok := v.([]any); ok && len(list) == 1 {
			if entry, ok := list[0].([]any); ok && len(entry) > 0 {
				oldest = entry[0]
			}
		}
	}
	id, ok := oldest.(string)
	if !ok {
		return nil
	}
	p, err := parseID(id)
	if err != nil {
		return err
	}
	info.Oldest = max(0, now.Sub(time.UnixMilli(int64(p.Hi))))
	return nil
}
