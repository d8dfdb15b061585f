package redisstream

import (
	"context"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// The names of topics are a set beside their streams. Each transport notes what
// it uses there, again from time to time: the set may be lost.
const noteEvery = time.Minute

func (t *Transport) registry() string { return t.cfg.prefix + ":topics" }

// note sees to it that a topic is in the set before anything is in the topic.
func (t *Transport) note(ctx context.Context, topic string) error {
	if transport.IsInbox(topic) || t.cfg.format != format(native{}) {
		return nil
	}
	now := clock()
	if at, ok := t.noted.Load(topic); ok && now-at.(time.Duration) < noteEvery {
		return nil
	}
	_, err := t.command(ctx, 1, "SADD", t.registry(), topic)
	if faultOf(err) == rejected { // who may not is in no pattern, and does without
		t.cfg.logger.Warn("redisstream: noting a topic failed, patterns do not find it", "topic", topic, "error", err)
		err = nil
	}
	if err == nil {
		t.noted.Store(topic, now)
	}
	return err
}

// Topics implements [transport.Lister].
func (t *Transport) Topics(ctx context.Context, pattern string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.usable(); err != nil {
		return nil, err
	}
	if err := transport.CheckPattern(pattern); err != nil {
		return nil, err
	}
	var all any
	_, err := t.retrying(ctx, settleMost, func(ctx context.Context) (err error) {
		all, err = t.command(ctx, 1, "SMEMBERS", t.registry())
		return err
	})
	if err != nil {
		return nil, describe("SMEMBERS", t.registry(), err)
	}
	var names []string
	list, _ := all.([]any)
	for _, v := range list {
		if name, ok := v.(string); ok && transport.MatchTopic(pattern, name) && transport.CheckName("topic", name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
