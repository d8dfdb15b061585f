package redisstream

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/echobus/echo/transport"
)

// Inspect implements [transport.Inspector]. Bytes and Lost are not known. The lag
// of a group is not known while it is more than 100 and the server cannot tell
// it, as entries were deleted one by one. Ages go by the clock of the server.
func (t *Transport) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	if err := ctx.Err(); err != nil {
		return transport.Info{}, err
	}
	if err := t.usable(); err != nil {
		return transport.Info{}, err
	}
	if err := transport.CheckName("topic", topic); err != nil {
		return transport.Info{}, err
	}
	var info transport.Info
	ctx, cancel := context.WithTimeout(ctx, settleMost)
	defer cancel()
	_, err := t.retrying(ctx, settleMost, func(ctx context.Context) (err error) {
		info, err = t.inspect(ctx, topic)
		return err
	})
	if err != nil {
		return transport.Info{}, describe("inspecting", t.key(topic), err)
	}
	return info, nil
}

func (t *Transport) inspect(ctx context.Context, topic string) (transport.Info, error) {
	key := t.key(topic)
	info := transport.Info{Bytes: transport.Unknown, Lost: transport.Unknown}
	n, err := t.command(ctx, 1, "XLEN", key)
	if err != nil {
		return info, err
	}
	info.Messages, _ = n.(int64)
	later, err := t.command(ctx, 1, "ZCARD", t.sideKey(topic, "later"))
	if err != nil {
		return info, err
	}
	info.Delayed, _ = later.(int64)
	for what, n := range map[string]*int64{"duplicates": &info.Duplicates, "forgotten": &info.Forgotten} {
		v, err := t.command(ctx, 1, "HGET", t.sideKey(topic, "counts"), what)
		if err != nil {
			return info, err
		}
		if text, ok := v.(string); ok {
			*n, _ = strconv.ParseInt(text, 10, 64)
		}
	}
	now, err := t.serverTime(ctx, key)
	if err != nil {
		return info, err
	}
	groups, err := t.groupsOf(ctx, key)
	if err != nil {
		return info, err
	}
	for _, g := range groups {
		i, err := t.inspectGroup(ctx, key, g, now)
		if err != nil {
			return info, err
		}
		info.Groups = append(info.Groups, i)
	}
	slices.SortFunc(info.Groups, func(a, b transport.GroupInfo) int { return cmp.Compare(a.Name, b.Name) })
	return info, nil
}

func (t *Transport) inspectGroup(ctx context.Context, key string, g attributes, now time.Time) (transport.GroupInfo, error) {
	i := transport.GroupInfo{Name: g.text("name"), Lag: g.number("lag"), Pending: g.number("pending")}
	if i.Lag == transport.Unknown {
		const most = 100 // of them, whole entries come
		rest, err := t.command(ctx, 1, "XRANGE", key, "("+g.text("last-delivered-id"), "+", "COUNT", most)
		if err != nil {
			return i, err
		}
		if list, ok := rest.([]any); ok && len(list) < most {
			i.Lag = int64(len(list))
		}
	}
	if i.Pending == 0 {
		return i, nil
	}
	summary, err := t.command(ctx, 1, "XPENDING", key, i.Name)
	if err != nil {
		return i, err
	}
	if list, ok := summary.([]any); ok && len(list) > 1 {
		if id, ok := list[1].(string); ok {
			if p, err := parseID([]byte(id)); err == nil {
				i.Oldest = max(0, now.Sub(time.UnixMilli(int64(p.Hi))))
			}
		}
	}
	return i, nil
}
