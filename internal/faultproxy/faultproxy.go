// Package faultproxy is a TCP proxy that does to a Redis connection what
// networks and crashes do.
package faultproxy

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy forwards connections to a Redis server. Its methods may be called at
// any time, from any goroutine; what they set holds for present and future
// connections.
type Proxy struct {
	target   string
	listener *net.TCPListener
	running  sync.WaitGroup
	set      atomic.Pointer[settings]

	mu       sync.Mutex
	closed   bool
	refuse   bool
	storm    *storm // nil when there is none
	conns    []*conn
	accepted int
	commands map[string]int
	drops    map[drop][]chan struct{} // not yet done
}

// settings say how bytes are forwarded.
type settings struct {
	blackhole, blackholeReplies bool
	delay, jitter               time.Duration
	chunk, bandwidth            int
	changed                     chan struct{} // closed when others replace these
}

// drop says what to drop.
type drop struct {
	reply   bool // or the request
	command string
}

type storm struct {
	least, most time.Duration
	rand        *rand.Rand
}

func (s *storm) lifetime() time.Duration {
	return s.least + time.Duration(s.rand.Int64N(int64(s.most-s.least)+1))
}

// New listens on a free loopback port and forwards to target.
func New(target string) (*Proxy, error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	p := &Proxy{
		target:   target,
		listener: l,
		commands: make(map[string]int),
		drops:    make(map[drop][]chan struct{}),
	}
	p.set.Store(&settings{changed: make(chan struct{})})
	p.running.Go(p.accept)
	return p, nil
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			if p.isClosed() {
				return
			}
			time.Sleep(5 * time.Millisecond) // no more files, or the client is gone
			continue
		}
		c := &conn{proxy: p, client: client}
		c.ctx, c.cancel = context.WithCancel(context.Background())
		if !p.add(c) {
			client.Close()
			continue
		}
		p.running.Go(c.run)
	}
}

// add counts a connection and reports whether it is to be served.
func (p *Proxy) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accepted++
	c.number = p.accepted
	if p.closed || p.refuse {
		return false
	}
	p.conns = append(p.conns, c)
	p.expose(c)
	return true
}

// Addr returns the host and port that clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close resets all connections and returns when nothing of the proxy runs.
func (p *Proxy) Close() error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.mu.Unlock()
	var err error
	if !again {
		err = p.listener.Close()
	}
	p.Cut()
	p.running.Wait()
	return err
}

func (p *Proxy) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Cut resets all present connections. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.end(true)
	}
}

// Refuse resets all present connections and closes new ones at once, until it
// is switched off.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	p.refuse = on
	p.mu.Unlock()
	if on {
		p.Cut()
	}
}

// Blackhole keeps all connections open and forwards nothing, neither bytes nor
// the news that a side is gone. What was sent meanwhile is delivered when it is
// switched off.
func (p *Proxy) Blackhole(on bool) { p.change(func(s *settings) { s.blackhole = on }) }

// BlackholeReplies is Blackhole for what the server sends. Requests pass.
func (p *Proxy) BlackholeReplies(on bool) { p.change(func(s *settings) { s.blackholeReplies = on }) }

// Delay makes everything arrive later, in each direction, by d and a random
// part of jitter. Nothing overtakes.
func (p *Proxy) Delay(d, jitter time.Duration) {
	p.change(func(s *settings) { s.delay, s.jitter = d, jitter })
}

// Chunk limits every write to n bytes, or does not if n is 0.
func (p *Proxy) Chunk(n int) { p.change(func(s *settings) { s.chunk = n }) }

// Bandwidth limits each direction of each connection, or does not if the limit
// is 0.
func (p *Proxy) Bandwidth(bytesPerSecond int) {
	p.change(func(s *settings) { s.bandwidth = bytesPerSecond })
}

func (p *Proxy) change(f func(*settings)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.set.Load()
	s := *old
	s.changed = make(chan struct{})
	f(&s)
	p.set.Store(&s)
	close(old.changed)
}

// Storm resets every connection after a random time between least and most:
// present ones from now on, new ones from when they are accepted. The times
// follow from seed and the order of the connections. Storm(0, 0, 0) ends it.
func (p *Proxy) Storm(least, most time.Duration, seed uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.storm = nil
	if most = max(least, most); most > 0 {
		p.storm = &storm{least, most, rand.New(rand.NewPCG(seed, seed))}
	}
	for _, c := range p.conns {
		p.expose(c)
	}
}

// expose exposes a connection to the present storm, instead of any earlier one.
func (p *Proxy) expose(c *conn) {
	if c.storm != nil {
		c.storm.Stop()
		c.storm = nil
	}
	if p.storm != nil {
		c.storm = time.AfterFunc(p.storm.lifetime(), func() { c.end(true) })
	}
}

// DropReply swallows the next reply to a command and resets its connection: the
// server did it, the client does not know. The replies before it in a pipeline
// are still forwarded. The channel is closed when it has happened.
//
// The command is its name, such as "XADD", or its first two words, such as
// "XGROUP CREATE" or "EVALSHA" and a hash. Commands are not recognised in TLS,
// nor in a connection that subscribes or monitors. Several drops of the same
// command happen one after the other.
func (p *Proxy) DropReply(command string) <-chan struct{} { return p.drop(true, command) }

// DropRequest does not forward the next request with a command and resets its
// connection: the server did not do it. Earlier requests of the pipeline are
// still answered. The rest is as with DropReply.
func (p *Proxy) DropRequest(command string) <-chan struct{} { return p.drop(false, command) }

func (p *Proxy) drop(reply bool, command string) <-chan struct{} {
	done := make(chan struct{})
	d := drop{reply, strings.ToUpper(strings.Join(strings.Fields(command), " "))}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drops[d] = append(p.drops[d], done)
	return done
}

// claim returns the channel of a drop that is to happen to a request with this
// command, or to its reply. It returns nil if there is none.
func (p *Proxy) claim(reply bool, c command) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.drops) == 0 {
		return nil
	}
	for _, text := range []string{c[0], c[0] + " " + c[1]} {
		d := drop{reply, text}
		if waiting := p.drops[d]; len(waiting) > 1 {
			p.drops[d] = waiting[1:]
			return waiting[0]
		} else if len(waiting) == 1 {
			delete(p.drops, d)
			return waiting[0]
		}
	}
	return nil
}

// Conns returns the number of open connections.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Accepted returns the number of connections that were accepted, including
// those that Refuse closed.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Commands returns how many requests of each command were forwarded. The names
// are in upper case.
func (p *Proxy) Commands() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.commands)
}
