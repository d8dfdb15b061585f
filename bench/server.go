package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/internal/redistest"
)

// server is a redis-server of the program's own, without persistence.
type server struct{ *redistest.Server }

func startServer() (*server, error) {
	s, err := redistest.New()
	if err != nil {
		return nil, err
	}
	return &server{s}, nil
}

// dial returns a client with everything at its default, for a contender to
// use. The server's own is for what is not measured.
func (s *server) dial() *redis.Client { return redis.NewClient(&redis.Options{Addr: s.Addr()}) }

// empty removes what is in the server.
func (s *server) empty() error { return s.Client().FlushAll(context.Background()).Err() }

// version is what the server says that it is.
func (s *server) version() (string, error) {
	info, err := s.Client().Info(context.Background(), "server").Result()
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(l, "redis_version:"); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return unknown, nil
}

// awaitPending waits until a stream's group has not more messages than left
// that are delivered and unacknowledged.
func (s *server) awaitPending(stream string, left int) error {
	const long = 10 * time.Second
	for begin := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		p, err := s.Client().XPending(context.Background(), stream, redisGroup).Result()
		if err != nil || p.Count <= int64(left) {
			return err
		}
		if time.Since(begin) > long {
			return fmt.Errorf("%d messages of %s are not acknowledged after %v, want %d", p.Count, stream, long, left)
		}
	}
}
