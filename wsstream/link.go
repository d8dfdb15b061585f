package wsstream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errSlow   = errors.New("the peer does not read")
	errClosed = errors.New("the link is closed")
)

// link is the connection under a WebSocket at the server. The library reads
// from it, and writes control frames; messages go out here, as frames that are
// made once and written whole, with deadlines that need no timer per write. It
// is what the library is given when it hijacks the connection.
type link struct {
	net.Conn
	left  []byte // read with the request and not yet by the library
	stall time.Duration
	heard *atomic.Int64 // when something was read, in Unix nanoseconds; set before that

	mu       sync.Mutex // held while a frame is written
	deadline time.Time  // of writing, as last set
	ended    bool       // a close frame was written: nothing may follow
	closed   bool
}

// hijacker gives the library a link in place of the connection.
type hijacker struct {
	http.ResponseWriter
	stall time.Duration
	link  *link
}

// Hijack implements [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // the server's own timeouts
		conn.Close()
		return nil, nil, err
	}
	left, _ := brw.Reader.Peek(brw.Reader.Buffered())
	h.link = &link{Conn: conn, left: append([]byte(nil), left...), stall: h.stall}
	// Small buffers, as there is one pair per link: the reader is passed by
	// where much is read, the writer has control frames alone.
	return h.link, bufio.NewReadWriter(bufio.NewReaderSize(h.link, 512), bufio.NewWriterSize(h.link, 256)), nil
}

func (l *link) Read(p []byte) (int, error) {
	if len(l.left) > 0 {
		n := copy(p, l.left)
		if l.left = l.left[n:]; len(l.left) == 0 {
			l.left = nil
		}
		return n, nil
	}
	n, err := l.Conn.Read(p)
	if n > 0 && l.heard != nil {
		l.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write writes a control frame of the library, which is always given whole.
func (l *link) Write(p []byte) (int, error) {
	const opClose = 8
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return 0, errClosed
	}
	if len(p) > 0 && p[0]&0xf == opClose {
		l.ended = true
	}
	if err := l.hurry(); err != nil {
		return 0, err
	}
	return l.Conn.Write(p)
}

// Close closes the connection. After a close frame it first takes in what the
// peer still sends, for a moment: else the peer's system might throw the frame away.
func (l *link) Close() error {
	l.mu.Lock()
	linger := l.ended && !l.closed
	l.closed = true
	l.mu.Unlock()
	if c, ok := l.Conn.(interface{ CloseWrite() error }); ok && linger && c.CloseWrite() == nil {
		l.Conn.SetReadDeadline(time.Now().Add(lingerFor))
		io.Copy(io.Discard, l.Conn)
	}
	return l.Conn.Close()
}

const lingerFor = 500 * time.Millisecond

// writeMessage writes what b has after its headroom as one message.
func (l *link) writeMessage(b []byte, opcode byte) error {
	n := len(b) - headroom
	from := headroom - 2
	switch {
	case n < 126:
		b[headroom-1] = byte(n)
	case n <= 0xffff:
		from = headroom - 4
		b[from+1] = 126
		binary.BigEndian.PutUint16(b[from+2:], uint16(n))
	default:
		from = headroom - 10
		b[from+1] = 127
		binary.BigEndian.PutUint64(b[from+2:], uint64(n))
	}
	b[from] = 0x80 | opcode
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errClosed
	}
	for rest := b[from:]; len(rest) > 0; { // a large one takes its time, as long as it is read
		n := min(len(rest), batchBytes+headroom)
		if err := l.hurry(); err != nil {
			return err
		}
		if _, err := l.Conn.Write(rest[:n]); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		rest = rest[n:]
	}
	return nil
}

// hurry sees to it that a write ends within the stall limit, or a quarter
// later, as it looks at the clock and sets no timer most times. The caller holds mu.
func (l *link) hurry() error {
	now := time.Now()
	if l.deadline.Sub(now) >= l.stall {
		return nil
	}
	l.deadline = now.Add(l.stall + l.stall/4)
	return l.Conn.SetWriteDeadline(l.deadline)
}
