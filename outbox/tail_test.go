package outbox_test

import (
	"log/slog"
	"testing"
	"time"
)

// tail hands out what is logged, line by line.
type tail struct{ lines chan string }

func newTail() *tail { return &tail{lines: make(chan string, 100)} }

func (l *tail) Write(p []byte) (int, error) {
	l.lines <- string(p)
	return len(p), nil
}

func (l *tail) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *tail) line(t testing.TB) string {
	t.Helper()
	select {
	case s := <-l.lines:
		return s
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is logged")
		return ""
	}
}
