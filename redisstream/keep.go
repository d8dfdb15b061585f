package redisstream

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Retention is seen to so often, and consumers that died are removed after so long.
const (
	trimEvery = 2 * time.Second
	deadAfter = 24 * time.Hour
)

// retain sees to it that a topic's stream is kept within its bounds.
func (t *Transport) retain(topic string) {
	if len(t.cfg.keep) == 0 {
		return
	}
	if _, ok := t.retention(topic); !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.topics[topic] = true
	if !t.keeper && !t.ended {
		t.keeper = true
		t.work.Go(t.trimAll)
	}
}

func (t *Transport) retention(topic string) (Retention, bool) {
	r, ok := t.cfg.keep[topic]
	if !ok {
		r, ok = t.cfg.keep[""]
	}
	return r, ok && r != Retention{}
}

// trimAll trims all topics from time to time until the transport is closed.
func (t *Transport) trimAll() {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.ctx.Done():
			return
		}
		t.mu.Lock()
		var topics []string
		for topic := range t.topics {
			topics = append(topics, topic)
		}
		t.mu.Unlock()
		for _, topic := range topics {
			if err := t.Trim(t.ctx, topic); err != nil && t.ctx.Err() == nil {
				t.failed(err)
				t.cfg.logger.Warn("redisstream: trimming failed", "topic", topic, "error", err)
			}
		}
	}
}

// Trim removes what a topic's retention does not keep, now. Without a
// retention it does nothing. It is called from time to time by itself.
func (t *Transport) Trim(ctx context.Context, topic string) error {
	if err := t.usable(); err != nil {
		return err
	}
	r, ok := t.retention(topic)
	if !ok {
		return nil
	}
	age, most := "", ""
	key := t.key(topic)
	ctx, cancel := context.WithTimeout(ctx, settleMost)
	defer cancel()
	if r.MaxAge > 0 {
		now, err := t.serverTime(ctx, key)
		if err != nil {
			return describe("TIME", key, err)
		}
		age = strconv.FormatInt(max(0, now.Add(-r.MaxAge).UnixMilli()), 10) + "-0"
	}
	if r.MaxLen > 0 {
		most = strconv.FormatInt(r.MaxLen, 10)
	}
	for {
		var reply sink
		_, err := within(ctx, func() error {
			return t.run(ctx, trimScript, []string{key, t.sideKey(topic, "lost")}, &reply, age, most, flag(r.Acknowledged), flag(r.Unacknowledged))
		})
		if err != nil {
			return describe("trimming", key, err)
		}
		c := cursor{reply.b}
		if _, err := c.array(); err != nil {
			return err
		}
		n, err1 := c.integer()
		_, err2 := c.integer()
		more, err3 := c.integer()
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		t.count.trimmed.Add(uint64(max(n, 0)))
		if n == 0 || more == 0 {
			return nil
		}
	}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// serverTime is the time of the server that has key.
func (t *Transport) serverTime(ctx context.Context, key string) (time.Time, error) {
	n, err := node(ctx, t.clients.command(), key)
	if err != nil {
		return time.Time{}, err
	}
	var reply sink
	if _, err := within(ctx, func() error { return raw(ctx, n, &reply, 0, []any{"TIME"}) }); err != nil {
		return time.Time{}, err
	}
	c := cursor{reply.b}
	if k, err := c.array(); err != nil || k != 2 {
		return time.Time{}, c.fail("seconds and microseconds")
	}
	var parts [2]int64 // seconds, microseconds
	for i := range parts {
		text, err := c.bulk()
		if err != nil {
			return time.Time{}, err
		}
		n, ok := parseInt(text)
		if !ok {
			return time.Time{}, c.fail("seconds and microseconds")
		}
		parts[i] = n
	}
	return time.Unix(parts[0], parts[1]*1000), nil
}

// sweep removes a group's consumers that died long ago and hold nothing.
func (t *Transport) sweep(key, group string) {
	ctx, cancel := context.WithTimeout(t.ctx, settleMost)
	defer cancel()
	if err := t.run(ctx, sweepScript, []string{key}, nil, group, deadAfter.Milliseconds()); err != nil && t.ctx.Err() == nil {
		t.failed(err)
	}
}

// look asks a server that answers for the first time, or again, what it can do
// beyond the least. The first time it tells the logger if the server may lose
// data, as far as that lets its configuration be seen.
func (t *Transport) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if t.cfg.resends > 0 {
		t.idempotent.Store(t.knows(ctx, "XCFGSET")) // which came with XADD IDMP
	}
	if t.looked.Swap(true) {
		return
	}
	reply, err := t.command(ctx, 0, "INFO")
	info, ok := reply.(string)
	if err != nil || !ok {
		return
	}
	have := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			have[name] = value
		}
	}
	if p := have["maxmemory_policy"]; p != "" && p != "noeviction" {
		t.cfg.logger.Warn("redisstream: the server may evict streams with all their messages and groups; set maxmemory-policy to noeviction", "policy", p)
	}
	if have["aof_enabled"] == "0" {
		t.cfg.logger.Warn("redisstream: the server has no append-only file: a restart loses what came since its last snapshot, if it makes any", "appendonly", "no")
	}
}

// knows reports whether the server has a command.
func (t *Transport) knows(ctx context.Context, command string) bool {
	v, err := t.command(ctx, 0, "COMMAND", "INFO", command)
	list, _ := v.([]any)
	return err == nil && len(list) == 1 && list[0] != nil
}
