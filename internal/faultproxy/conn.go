package faultproxy

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

// conn is a client's connection and the one to the server that belongs to it.
type conn struct {
	proxy  *Proxy
	number int // in the order of acceptance
	client *net.TCPConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	storm  *time.Timer // guarded by the proxy's lock

	mu       sync.Mutex
	server   *net.TCPConn // nil until connected
	over     bool
	owed     []command       // forwarded, and the reply has not begun
	owing    int             // requests that were forwarded and their replies not
	dropping []chan struct{} // to be closed at the end
	last     bool            // the connection ends when nothing is owing
}

func (c *conn) run() {
	defer c.end(true)
	var d net.Dialer
	server, err := d.DialContext(c.ctx, "tcp", c.proxy.target)
	if err != nil || !c.connected(server.(*net.TCPConn)) {
		return
	}
	up := newDirection(c, c.client, (&upstream{conn: c}).forward)
	down := newDirection(c, c.server, (&downstream{conn: c}).forward)
	down.replies = true
	var running sync.WaitGroup
	running.Go(up.read)
	running.Go(up.write)
	running.Go(down.read)
	down.write()
	running.Wait()
}

// connected reports whether the connection to the server came in time.
func (c *conn) connected(server *net.TCPConn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		server.Close()
		return false
	}
	c.server = server
	return true
}

// end closes both sides, or resets them.
func (c *conn) end(reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.over = true
	c.cancel()
	for _, side := range []*net.TCPConn{c.client, c.server} {
		if side == nil {
			continue
		}
		if reset {
			side.SetLinger(0)
		}
		side.Close()
	}
	p := c.proxy
	p.mu.Lock()
	if c.storm != nil {
		c.storm.Stop()
	}
	if i := slices.Index(p.conns, c); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	p.mu.Unlock()
	for _, done := range c.dropping {
		close(done)
	}
}

// drop remembers a drop that happens to the connection.
func (c *conn) drop(done chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		close(done)
		return
	}
	c.dropping = append(c.dropping, done)
}

// asked is called with each request before its end is forwarded.
func (c *conn) asked(cmd command) {
	p := c.proxy
	p.mu.Lock()
	p.commands[cmd[0]]++
	p.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed = append(c.owed, cmd)
	c.owing++
}

// answering returns the command whose reply begins, empty if there was none.
func (c *conn) answering() (cmd command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.owed) > 0 {
		cmd = c.owed[0]
		c.owed = c.owed[1:]
	}
	return cmd
}

// answered is called when n replies were forwarded.
func (c *conn) answered(n int) {
	c.mu.Lock()
	c.owing = max(0, c.owing-n)
	end := c.last && c.owing == 0
	c.mu.Unlock()
	if end {
		c.end(true)
	}
}

// upstream forwards requests.
type upstream struct {
	*conn
	parser requests
}

func (u *upstream) forward(b []byte) bool {
	start := 0 // of the present request
	for i := 0; i < len(b); {
		n, found := u.parser.next(b[i:])
		i += n
		switch found {
		case named:
			if done := u.proxy.claim(false, u.parser.command); done != nil {
				u.drop(done)
				if u.write(u.server, b[:start]) {
					u.finish()
				}
				return false
			}
		case ended:
			u.asked(u.parser.command)
			start = i
		}
	}
	return u.write(u.server, b)
}

// downstream forwards replies.
type downstream struct {
	*conn
	parser   replies
	dropping bool // the present reply
}

func (d *downstream) forward(b []byte) bool {
	keep, whole := len(b), 0
	if d.dropping {
		keep = 0
	}
	for i := 0; i < len(b); {
		n, found := d.parser.next(b[i:])
		i += n
		switch found {
		case began:
			if done := d.proxy.claim(true, d.answering()); done != nil {
				d.drop(done)
				d.dropping, keep = true, i
			}
		case ended:
			if d.dropping {
				d.write(d.client, b[:keep])
				d.end(true)
				return false
			}
			whole++
		}
	}
	if !d.write(d.client, b[:keep]) {
		return false
	}
	d.answered(whole)
	return true
}

// write writes b and reports whether it could; otherwise the connection ends.
func (c *conn) write(to *net.TCPConn, b []byte) bool {
	if len(b) == 0 {
		return true
	}
	_, err := to.Write(b)
	if err != nil {
		c.end(true)
	}
	return err == nil
}

// finish ends the connection once what is owed to the client has been
// forwarded.
func (c *conn) finish() {
	c.mu.Lock()
	c.last = true
	end := c.owing == 0
	c.mu.Unlock()
	if end {
		c.end(true)
	}
}
