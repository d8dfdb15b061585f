package migrate

import (
	"cmp"
	"context"
	"slices"

	"github.com/echobus/echo/transport"
)

// sum is the Inspector of two transports that adds up what they tell.
type sum struct{ old, new transport.Inspector }

// Inspect implements [transport.Inspector]. An old that is none adds nothing.
func (s sum) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	i, err := s.new.Inspect(ctx, topic)
	if err != nil || s.old == nil {
		return i, err
	}
	o, err := s.old.Inspect(ctx, topic)
	if err != nil {
		return transport.Info{}, err
	}
	i.Messages = add(i.Messages, o.Messages)
	i.Bytes = add(i.Bytes, o.Bytes)
	i.Delayed = add(i.Delayed, o.Delayed)
	i.Lost = add(i.Lost, o.Lost)
	i.Duplicates = add(i.Duplicates, o.Duplicates)
	i.Forgotten = add(i.Forgotten, o.Forgotten)
	for _, g := range o.Groups {
		i.Groups = addGroup(i.Groups, g)
	}
	slices.SortFunc(i.Groups, func(a, b transport.GroupInfo) int { return cmp.Compare(a.Name, b.Name) })
	return i, nil
}

func addGroup(groups []transport.GroupInfo, g transport.GroupInfo) []transport.GroupInfo {
	for k := range groups {
		if o := &groups[k]; o.Name == g.Name {
			o.Lag, o.Pending = add(o.Lag, g.Lag), add(o.Pending, g.Pending)
			if o.Oldest == transport.Unknown || g.Oldest == transport.Unknown {
				o.Oldest = transport.Unknown
			} else {
				o.Oldest = max(o.Oldest, g.Oldest)
			}
			return groups
		}
	}
	return append(groups, g)
}

func add(a, b int64) int64 {
	if a == transport.Unknown || b == transport.Unknown {
		return transport.Unknown
	}
	return a + b
}
