package wsstream

import (
	"context"
	"errors"
	"time"

	"github.com/echobus/echo/transport"
)

// WithKickTopic lets [Handler.KickSubject] reach the other handlers over the
// same transport that name the same topic. Clients may neither read it nor
// publish to it, whatever their rights.
func WithKickTopic(topic string) HandlerOption {
	return handlerOption(func(c *serverConfig) {
		if err := transport.CheckName("topic", topic); err != nil {
			c.errs = append(c.errs, err)
		}
		c.kicks = topic
	})
}

// nodeHeader is the header of a kick that names the handler it comes from.
const nodeHeader = "node"

// KickSubject is [Handler.Kick] for one subject, here and at all handlers that
// share a topic for it, see [WithKickTopic]; they follow within moments. An error
// says that they may not have been told.
func (h *Handler) KickSubject(ctx context.Context, subject string) error {
	h.Kick(func(s string) bool { return s == subject })
	if h.cfg.kicks == "" {
		return nil
	}
	_, err := h.t.Send(ctx, h.cfg.kicks, []transport.Message{{
		ID: random(), Time: time.Now().UTC(), Type: "text/plain", Header: map[string]string{nodeHeader: h.id}, Data: []byte(subject),
	}})
	return err
}

// follow kicks whom other handlers kick, until Close.
func (h *Handler) follow() {
	start := transport.Start{From: transport.Newest}
	for h.ctx.Err() == nil {
		err := h.followFrom(&start)
		if h.ctx.Err() != nil {
			return
		}
		h.cfg.logger.Error("wsstream: what other handlers kick is not known for now", "topic", h.cfg.kicks, "error", err)
		select {
		case <-time.After(time.Second):
		case <-h.ctx.Done():
		}
	}
}

// followFrom reads the topic from start, which it moves on.
func (h *Handler) followFrom(start *transport.Start) error {
	sub, at, err := h.subscribe(h.ctx, h.cfg.kicks, *start)
	if err != nil {
		return err
	}
	defer sub.Close()
	dst := make([]transport.Message, 64)
	for {
		*start = transport.Start{From: transport.AfterPosition, Position: at.Position()}
		n, err := sub.Receive(h.ctx, dst)
		if _, lost := errors.AsType[*transport.LostError](err); lost {
			h.cfg.logger.Error("wsstream: kicks by other handlers were lost", "topic", h.cfg.kicks, "error", err)
			continue
		}
		if err != nil {
			return err
		}
		for i := range dst[:n] {
			if m := &dst[i]; m.Header[nodeHeader] != h.id {
				subject := string(m.Data)
				h.Kick(func(s string) bool { return s == subject })
			}
		}
		if err := acknowledge(h.ctx, sub, dst[:n]); err != nil {
			return err
		}
	}
}
