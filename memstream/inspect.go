package memstream

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// Inspect implements [transport.Inspector]. The age of what is pending goes by
// [transport.Message.Time].
func (t *Transport) Inspect(ctx context.Context, name string) (transport.Info, error) {
	if err := ctx.Err(); err != nil {
		return transport.Info{}, err
	}
	if err := transport.CheckName("topic", name); err != nil {
		return transport.Info{}, err
	}
	t.mu.RLock()
	tp, closed := t.topics[name], t.closed
	t.mu.RUnlock()
	switch {
	case t.err != nil:
		return transport.Info{}, t.err
	case closed:
		return transport.Info{}, transport.ErrClosed
	case tp == nil:
		return transport.Info{}, nil
	}
	return tp.inspect(time.Now()), nil
}

func (t *topic) inspect(now time.Time) transport.Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	info := transport.Info{
		Messages: int64(t.log.len()),
		Bytes:    int64(t.log.bytes()),
		Delayed:  int64(len(t.later.queue)),
		Lost:     int64(t.stats.Lost),

		Duplicates: int64(t.stats.Duplicates),
		Forgotten:  int64(t.stats.Overflowed),
	}
	for name, g := range t.named {
		info.Groups = append(info.Groups, transport.GroupInfo{
			Name:    name,
			Lag:     int64(t.log.next - max(g.next, t.log.first)),
			Pending: int64(g.pending()),
			Oldest:  g.oldest(now),
		})
	}
	slices.SortFunc(info.Groups, func(a, b transport.GroupInfo) int { return cmp.Compare(a.Name, b.Name) })
	return info
}

// pending counts the messages that were given out and are not settled.
func (g *group) pending() int {
	n := len(g.parked)
	for _, r := range g.flight {
		n += int(r.end - r.first)
	}
	return n
}

// oldest is the age of the oldest of them.
func (g *group) oldest(now time.Time) (age time.Duration) {
	for _, p := range g.parked {
		age = max(age, now.Sub(p.msg.Time))
	}
	if len(g.flight) > 0 {
		age = max(age, now.Sub(g.topic.log.at(g.flight[0].first).Time))
	}
	return age
}

// Topics implements [transport.Lister].
func (t *Transport) Topics(ctx context.Context, pattern string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := transport.CheckPattern(pattern); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	switch {
	case t.err != nil:
		return nil, t.err
	case t.closed:
		return nil, transport.ErrClosed
	}
	var names []string
	for name := range t.topics {
		if transport.MatchTopic(pattern, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
