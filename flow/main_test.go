package flow_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/echobus/echo"
	"github.com/echobus/echo/internal/redistest"
	"github.com/echobus/echo/redisstream"
)

var server *redistest.Server // of all tests over Redis

func TestMain(m *testing.M) {
	if url := os.Getenv(childOf); url != "" {
		if err := beKilled(context.Background(), url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var err error
	if server, err = redistest.New(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Close()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var prefixes atomic.Int64

// overEach runs a test in memory and over Redis.
func overEach(t *testing.T, f func(p *plumbing)) {
	t.Run("memory", func(t *testing.T) { f(plumb(t)) })
	t.Run("redis", func(t *testing.T) {
		client := server.Client()
		defer client.Close()
		prefix := fmt.Sprint("flow", prefixes.Add(1))
		f(plumb(t, echo.WithTransport(redisstream.New(client, redisstream.WithPrefix(prefix)))))
	})
}
