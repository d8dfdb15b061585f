package echotel

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/echobus/echo"
	"github.com/echobus/echo/transport"
)

// Observe has what [echo.Bus.Inspect] tells of some topics measured whenever
// metrics are collected, until stop is called, which must be before the bus is
// closed. A figure that the transport cannot tell is not measured; a topic that
// cannot be inspected is an error of the collection. The figures are the
// transport's, so one process of several measures enough.
func (t *Telemetry) Observe(b *echo.Bus, topics ...string) (stop func() error, err error) {
	if b == nil || len(topics) == 0 {
		return nil, errors.New("echotel: observe: the bus is nil, or there are no topics")
	}
	o, err := newGauges(t.meter)
	if err != nil {
		return nil, fmt.Errorf("echotel: observe: %w", err)
	}
	r, err := t.meter.RegisterCallback(func(ctx context.Context, to metric.Observer) error {
		var errs error
		for _, topic := range topics {
			i, err := b.Inspect(ctx, topic)
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			o.observe(to, topic, &i)
		}
		return errs
	}, o.all()...)
	if err != nil {
		return nil, fmt.Errorf("echotel: observe: %w", err)
	}
	return r.Unregister, nil
}

// gauges are what is measured of a topic and of its groups.
type gauges struct {
	messages, bytes, delayed, dead, lost, duplicates, forgotten metric.Int64ObservableGauge
	lag, pending                                                metric.Int64ObservableGauge
	oldest                                                      metric.Float64ObservableGauge
}

func newGauges(m metric.Meter) (*gauges, error) {
	var errs error
	gauge := func(name, unit, what string) metric.Int64ObservableGauge {
		g, err := m.Int64ObservableGauge("messaging.echo."+name, metric.WithUnit(unit), metric.WithDescription(what))
		errs = errors.Join(errs, err)
		return g
	}
	g := &gauges{
		messages:   gauge("topic.messages", "{message}", "Number of messages that the topic keeps."),
		bytes:      gauge("topic.size", "By", "Size of the messages that the topic keeps."),
		delayed:    gauge("topic.delayed", "{message}", "Number of messages that are not due yet."),
		dead:       gauge("topic.dead_letters", "{message}", "Number of dead letters that were not sent home."),
		lost:       gauge("topic.lost", "{message}", "Number of messages that some subscription did not get, so far."),
		duplicates: gauge("topic.duplicates", "{message}", "Number of publishes that were there already, so far."),
		forgotten:  gauge("topic.forgotten", "{message}", "Number of messages that were to be stored once and may be stored again, so far."),
		lag:        gauge("group.lag", "{message}", "Number of messages that no member of the group was given yet."),
		pending:    gauge("group.pending", "{message}", "Number of messages that were given to the group and are not settled."),
	}
	oldest, err := m.Float64ObservableGauge("messaging.echo.group.oldest_pending", metric.WithUnit("s"), metric.WithDescription("Age of the oldest pending message."))
	g.oldest = oldest
	return g, errors.Join(errs, err)
}

func (g *gauges) all() []metric.Observable {
	return []metric.Observable{g.messages, g.bytes, g.delayed, g.dead, g.lost, g.duplicates, g.forgotten, g.lag, g.pending, g.oldest}
}

func (g *gauges) observe(to metric.Observer, topic string, i *echo.Inspection) {
	of := []attribute.KeyValue{semconv.MessagingSystemKey.String(system), semconv.MessagingDestinationName(topic)}
	whole := metric.WithAttributes(of...)
	tell := func(gauge metric.Int64Observable, n int64, opt metric.ObserveOption) {
		if n != transport.Unknown {
			to.ObserveInt64(gauge, n, opt)
		}
	}
	tell(g.messages, i.Messages, whole)
	tell(g.bytes, i.Bytes, whole)
	tell(g.delayed, i.Delayed, whole)
	tell(g.dead, i.DeadLetters, whole)
	tell(g.lost, i.Lost, whole)
	tell(g.duplicates, i.Duplicates, whole)
	tell(g.forgotten, i.Forgotten, whole)
	for _, group := range i.Groups {
		one := metric.WithAttributes(append(of[:len(of):len(of)], inGroup(group.Name)...)...)
		tell(g.lag, group.Lag, one)
		tell(g.pending, group.Pending, one)
		if group.Oldest != transport.Unknown {
			to.ObserveFloat64(g.oldest, group.Oldest.Seconds(), one)
		}
	}
}
