package wsstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/echobus/echo/transport"
)

// inspect answers a client that asks how a topic is. It is told of the groups
// that it may be a member of.
func (c *conn) inspect(f *frame) bool {
	if transport.IsPattern(f.Topic) {
		return c.list(f)
	}
	topic := f.Topic
	i, ok := transport.As[transport.Inspector](c.h.t)
	switch {
	case f.Rid == 0:
		return c.refuse(f, CodeBadFrame, "rid is missing")
	case transport.CheckName("topic", topic) != nil || !c.h.maySubscribe(c.grant, topic, ""):
		return c.refuse(f, CodeForbidden, "")
	case !ok:
		return c.refuse(f, CodeUnsupported, "the transport is no transport.Inspector")
	}
	grant := c.grant
	return c.answering(f, func(ctx context.Context) (any, error) {
		info, err := i.Inspect(ctx, topic)
		info.Groups = slices.DeleteFunc(info.Groups, func(g transport.GroupInfo) bool { return !c.h.maySubscribe(grant, topic, g.Name) })
		return info, err
	})
}

// list answers a client that asks which topics match a pattern. It is told of
// those that it may subscribe to.
func (c *conn) list(f *frame) bool {
	pattern := f.Topic
	l, ok := transport.As[transport.Lister](c.h.t)
	switch {
	case f.Rid == 0:
		return c.refuse(f, CodeBadFrame, "rid is missing")
	case transport.CheckPattern(pattern) != nil:
		return c.refuse(f, CodeBadFrame, "topic is no pattern")
	case !ok:
		return c.refuse(f, CodeUnsupported, "the transport is no transport.Lister")
	}
	grant := c.grant
	return c.answering(f, func(ctx context.Context) (any, error) {
		names, err := l.Topics(ctx, pattern)
		return slices.DeleteFunc(names, func(name string) bool { return !c.h.maySubscribe(grant, name, "") }), err
	})
}

// Topics implements [transport.Lister]: it asks the server, which tells of the
// topics that the client may subscribe to without a group.
func (t *Transport) Topics(ctx context.Context, pattern string) (names []string, err error) {
	if err := transport.CheckPattern(pattern); err != nil {
		return nil, err
	}
	if !transport.IsPattern(pattern) {
		pattern += ".#" // which the server takes for one
		defer func() {
			names = slices.DeleteFunc(names, func(name string) bool { return name+".#" != pattern })
		}()
	}
	err = t.askJSON(ctx, frame{Type: frameInspect, Topic: pattern}, &names)
	return names, err
}

// inspectsMost is how many questions of a link are under way at a time. Clients
// keep to it.
const inspectsMost = 4

// answering answers a question with what f finds out, as JSON.
func (c *conn) answering(f *frame, find func(context.Context) (any, error)) bool {
	rid := f.Rid
	if c.inspects.Add(1) > inspectsMost {
		c.inspects.Add(-1)
		return c.refuse(f, CodeTooMany, "too many questions at a time")
	}
	c.spawn(func() {
		answer := c.answer(find)
		answer.Rid = rid
		c.inspects.Add(-1) // before the answer, after which there is room for another question
		c.out.send(answer)
	})
	return true
}

// Inspect implements [transport.Inspector]: it asks the server, and needs the
// right to subscribe to the topic. Without a link it waits for one.
func (t *Transport) Inspect(ctx context.Context, topic string) (transport.Info, error) {
	if err := transport.CheckName("topic", topic); err != nil {
		return transport.Info{}, err
	}
	var info transport.Info
	err := t.askJSON(ctx, frame{Type: frameInspect, Topic: topic}, &info)
	return info, err
}

// askJSON asks until there is an answer, and reads it into v.
func (t *Transport) askJSON(ctx context.Context, f frame, v any) error {
	for {
		data, err := t.ask(ctx, f)
		if errors.Is(err, errLinkLost) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err != nil {
			return fmt.Errorf("wsstream: %s %s: %w", f.Type, f.Topic, err)
		}
		return nil
	}
}

var errLinkLost = errors.New("the link broke")

// ask sends a question that ends with the link, and returns the data of the
// answer. The server may still be at one that nobody waits for, so it counts
// among those under way.
func (t *Transport) ask(ctx context.Context, f frame) ([]byte, error) {
	c := &call{count: 1, frames: []frame{f}, question: true}
	if err := t.await(ctx, func() bool { return t.asked < inspectsMost }); err != nil {
		return nil, err
	}
	t.asked++
	t.add(c)
	t.mu.Unlock()
	select {
	case <-c.done:
		if c.got == 0 {
			return nil, errLinkLost
		}
		return c.data, c.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.ctx.Done():
		return nil, transport.ErrClosed
	}
}

// Ping implements [transport.Pinger]: it asks the server, not the transport
// behind it. Without a link it waits for one.
func (t *Transport) Ping(ctx context.Context) error {
	for {
		if err := t.await(ctx, func() bool { return true }); err != nil {
			return err
		}
		l, answer := t.link, make(chan struct{})
		t.pinged++
		n := t.pinged
		t.pings[n] = answer
		l.out.send(frame{Type: framePing, N: n})
		t.mu.Unlock()
		var err error
		broken := false
		select {
		case <-answer:
		case <-l.done:
			broken = true
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-t.ctx.Done():
			err = transport.ErrClosed
		}
		t.mu.Lock()
		delete(t.pings, n)
		t.mu.Unlock()
		if !broken {
			return err
		}
	}
}

// ponged tells who pinged that the server answered.
func (t *Transport) ponged(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if answer := t.pings[n]; answer != nil {
		delete(t.pings, n)
		close(answer)
	}
}

// answer is what find finds out, or why it does not.
func (c *conn) answer(find func(context.Context) (any, error)) frame {
	ctx, cancel := context.WithTimeout(c.h.ctx, c.h.cfg.sendFor)
	defer cancel()
	end, ok := c.h.inspects.begin(ctx)
	if !ok {
		return frame{Type: frameErr, Code: CodeOverloaded}
	}
	defer end()
	v, err := find(ctx)
	if err != nil {
		return frame{Type: frameErr, Code: subCode(err), Text: subText(err)}
	}
	data, _ := json.Marshal(v)
	return frame{Type: frameInfo, Media: "application/json", Data: data}
}
