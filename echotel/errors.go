package echotel

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/echobus/echo"
)

// types are the values of error.type for errors that are known, the first one
// that matches.
var types = []struct {
	err  error
	name string
}{
	{echo.ErrTooLarge, "too_large"},
	{echo.ErrFull, "full"},
	{echo.ErrLeaseLost, "lease_lost"},
	{echo.ErrClosed, "closed"},
	{context.DeadlineExceeded, "deadline_exceeded"},
	{context.Canceled, "canceled"},
}

// errorType returns error.type for err: the name of a condition, or the error's
// type in Go.
func errorType(err error) attribute.KeyValue {
	if p, ok := errors.AsType[*echo.PanicError](err); ok {
		if p.Value == nil {
			return semconv.ErrorTypeKey.String("goexit")
		}
		return semconv.ErrorTypeKey.String("panic")
	}
	for _, t := range types {
		if errors.Is(err, t.err) {
			return semconv.ErrorTypeKey.String(t.name)
		}
	}
	return semconv.ErrorType(err)
}

// fail says in a span, if it is recorded, why its operation failed.
func fail(span trace.Span, err error, kind attribute.KeyValue) {
	if !span.IsRecording() {
		return
	}
	text, stack := err.Error(), ""
	if p, ok := errors.AsType[*echo.PanicError](err); ok {
		stack = string(p.Stack)
		if text = "runtime.Goexit was called"; p.Value != nil {
			text = fmt.Sprintf("panic: %v", p.Value)
		}
	}
	span.SetStatus(codes.Error, text)
	span.SetAttributes(kind)
	exception := []attribute.KeyValue{semconv.ExceptionType(fmt.Sprintf("%T", err)), semconv.ExceptionMessage(text)}
	if stack != "" {
		exception = append(exception, semconv.ExceptionStacktrace(stack))
	}
	span.AddEvent(semconv.ExceptionEventName, trace.WithAttributes(exception...))
}
