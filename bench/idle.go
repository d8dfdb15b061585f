package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	watermillredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"

	"github.com/echobus/echo"
)

// idleCost is what a subscription without messages asks of the server, in
// commands per second.
type idleCost struct {
	name     string
	sent     float64 // by the client
	executed float64 // by the server, with those that scripts call
}

// idler is a subscription to be left alone.
type idler struct {
	name string
	open func(*server, []handler) (batcher, error)
}

var idlers = []idler{
	{"echo/group", func(s *server, hs []handler) (batcher, error) { return s.openEcho(hs, echo.WithGroup(redisGroup)) }},
	{"echo/broadcast", func(s *server, hs []handler) (batcher, error) { return s.openEcho(hs) }},
	{"watermill/group", func(s *server, hs []handler) (batcher, error) {
		return s.openWatermill(hs, watermillredis.SubscriberConfig{ConsumerGroup: redisGroup})
	}},
	{"watermill/broadcast", func(s *server, hs []handler) (batcher, error) {
		return s.openWatermill(hs, watermillredis.SubscriberConfig{})
	}},
}

// idleCosts watches all idlers at once, each with a server of its own, for so long.
func idleCosts(d time.Duration) ([]idleCost, error) {
	costs := make([]idleCost, len(idlers))
	errs := make([]error, len(idlers))
	var watching sync.WaitGroup
	for i, idler := range idlers {
		watching.Go(func() {
			if costs[i], errs[i] = idler.cost(d); errs[i] != nil {
				errs[i] = fmt.Errorf("idle: %s: %w", idler.name, errs[i])
			}
		})
	}
	watching.Wait()
	return costs, errors.Join(errs...)
}

func (i idler) cost(d time.Duration) (c idleCost, err error) {
	s, err := startServer()
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b, err := i.open(s, []handler{check})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	// Until its first message a subscriber of Watermill waits without end, later
	// for 100 ms at a time. A broadcast one misses what comes before its first
	// read, which may be after Subscribe returned; so one message may not do.
	for b.total() == 0 {
		if err := b.publish(sample); err != nil {
			return c, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	sent, inner, err := s.monitor(d)
	return idleCost{i.name, float64(sent) / d.Seconds(), float64(sent+inner) / d.Seconds()}, err
}

// monitor counts the commands that clients send to the server, and those that
// scripts call, for so long.
func (s *server) monitor(d time.Duration) (sent, inner int, err error) {
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("MONITOR\r\n")); err != nil {
		return 0, 0, err
	}
	conn.SetReadDeadline(time.Now().Add(d))
	lines := bufio.NewScanner(conn)
	lines.Scan()
	if lines.Text() != "+OK" {
		return 0, 0, fmt.Errorf("MONITOR: %q", lines.Text())
	}
	for lines.Scan() { // +1700000000.123456 [0 127.0.0.1:40000] "XREADGROUP" …, or [0 lua]
		if _, rest, _ := strings.Cut(lines.Text(), "["); strings.HasPrefix(rest, "0 lua]") {
			inner++
		} else {
			sent++
		}
	}
	if err := lines.Err(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, 0, fmt.Errorf("MONITOR ended: %w", err)
	}
	return sent, inner, nil
}

func idleSection(costs []idleCost) section {
	t := table{head: []string{"who", "subscription", "commands sent/s", "commands executed/s"}}
	for _, c := range costs {
		who, what, _ := strings.Cut(c.name, "/")
		t.rows = append(t.rows, []string{who, what, fmt.Sprintf("%.2f", c.sent), fmt.Sprintf("%.2f", c.executed)})
	}
	return section{heading: "Idle", caption: "An idle subscription, commands per second", text: idleText, table: t}
}
