package wsstream_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/wsstream"
)

// raw is a WebSocket client made of bytes, which does what it is told, right or wrong.
type raw struct {
	t testing.TB
	net.Conn
	r    *bufio.Reader
	said []object // read and not yet expected
}

const upgrade = "GET / HTTP/1.1\r\nHost: example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// request opens a connection, sends a request and returns the response.
func request(t testing.TB, addr, head string) (*raw, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = io.WriteString(conn, head)
	require.NoError(t, err)
	c := &raw{t: t, Conn: conn, r: bufio.NewReader(conn)}
	resp, err := http.ReadResponse(c.r, nil)
	require.NoError(t, err)
	return c, resp
}

// open opens a link in one of the forms, without a hello.
func openRaw(t testing.TB, addr, protocol string) *raw {
	t.Helper()
	c, resp := request(t, addr, upgrade+"Sec-WebSocket-Protocol: "+protocol+"\r\n\r\n")
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	require.Equal(t, protocol, resp.Header.Get("Sec-WebSocket-Protocol"))
	return c
}

const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
	fin            = 0x80
)

// frame is a masked frame.
func maskedFrame(head byte, payload []byte) []byte {
	b := []byte{head}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

func (c *raw) bytes(b ...byte) {
	c.t.Helper()
	c.Write(b) // if the link is gone, reading tells
}

func (c *raw) frame(head byte, payload string) {
	c.t.Helper()
	c.bytes(maskedFrame(head, []byte(payload))...)
}

// say sends frames of the JSON form in one message.
func (c *raw) say(frames ...string) {
	c.t.Helper()
	c.frame(fin|opText, strings.Join(frames, "\n"))
}

// read reads a frame.
func (c *raw) read() (op byte, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(c.r, head[:2]); err != nil {
		return 0, nil, err
	}
	if head[0]&0x70 != 0 || head[0]&fin == 0 || head[1]&0x80 != 0 {
		return 0, nil, fmt.Errorf("a frame with head %x %x", head[0], head[1])
	}
	op = head[0] & 0xf
	n := uint64(head[1])
	switch n {
	case 126:
		if _, err := io.ReadFull(c.r, head[:2]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(head[:2]))
	case 127:
		if _, err := io.ReadFull(c.r, head[:8]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(head[:8])
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.r, payload)
	return op, payload, err
}

type object = map[string]any

// hear reads one message and returns the frames in it.
func (c *raw) hear() []object {
	c.t.Helper()
	if said := c.said; len(said) > 0 {
		c.said = nil
		return said
	}
	op, payload, err := c.read()
	require.NoError(c.t, err)
	require.EqualValues(c.t, opText, op, "%q", payload)
	var frames []object
	for line := range bytes.Lines(payload) {
		var f object
		require.NoError(c.t, json.Unmarshal(line, &f), "%q", line)
		frames = append(frames, f)
	}
	return frames
}

// expect reads until a frame of a type comes.
func (c *raw) expect(typ string) object {
	c.t.Helper()
	for {
		for i, f := range c.said {
			if f["t"] == typ {
				c.said = c.said[i+1:]
				return f
			}
		}
		c.said = nil
		c.said = c.hear()
	}
}

// hello opens the link.
func (c *raw) hello() object {
	c.t.Helper()
	c.say(`{"t":"hello"}`)
	return c.expect("welcome")
}

// closed reads until the link is closed, and returns the close code, 0 if
// there was none.
func (c *raw) closed() (code int, reason string) {
	c.t.Helper()
	for {
		op, payload, err := c.read()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				c.t.Fatal("the link was not closed")
			}
			return 0, err.Error()
		}
		if op == opClose {
			if len(payload) < 2 {
				return 1005, ""
			}
			return int(binary.BigEndian.Uint16(payload)), string(payload[2:])
		}
	}
}

// serve starts a server over memory.
func serve(t testing.TB, opts ...wsstream.HandlerOption) (addr string, h *wsstream.Handler, mem *memstream.Transport) {
	t.Helper()
	mem = memstream.New()
	t.Cleanup(func() { mem.Close() })
	addr, h = serveOver(t, mem, opts...)
	return addr, h, mem
}

// serveOver starts a server over a transport.
func serveOver(t testing.TB, tr transport.Transport, opts ...wsstream.HandlerOption) (addr string, h *wsstream.Handler) {
	t.Helper()
	h = wsstream.NewHandler(tr, append([]wsstream.HandlerOption{wsstream.WithAnonymous(wsstream.Everything(""))}, opts...)...)
	require.NoError(t, h.Err())
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
		s.Close()
	})
	return s.Listener.Addr().String(), h
}

func send(t testing.TB, tr transport.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := tr.Send(t.Context(), topic, []transport.Message{{ID: id, Time: time.Now(), Type: "text/plain", Data: []byte("data of " + id)}})
		require.NoError(t, err)
	}
}

func TestHandshake(t *testing.T) {
	addr, _, _ := serve(t, wsstream.WithOrigins("https://app.example.org", "http://other.example.org:8080"))
	const protocol = "Sec-WebSocket-Protocol: echo.v1+json\r\n"
	without := func(s string) string {
		var b strings.Builder
		for line := range strings.Lines(upgrade) {
			if !strings.HasPrefix(line, s) {
				b.WriteString(line)
			}
		}
		return b.String()
	}
	for what, c := range map[string]struct {
		head   string
		status int
	}{
		"as it should be":            {upgrade + protocol, 101},
		"no sub-protocol":            {upgrade, 400},
		"another sub-protocol":       {upgrade + "Sec-WebSocket-Protocol: mqtt\r\n", 400},
		"among others":               {upgrade + "Sec-WebSocket-Protocol: mqtt, echo.v1+json\r\n", 101},
		"both forms":                 {upgrade + "Sec-WebSocket-Protocol: echo.v1+json, echo.v1+bin\r\n", 101},
		"a sub-protocol of 16 KB":    {upgrade + "Sec-WebSocket-Protocol: " + strings.Repeat(",", 16<<10) + "\r\n", 400},
		"a bad bearer":               {upgrade + "Sec-WebSocket-Protocol: echo.v1+json, echo.bearer.a=b\r\n", 400},
		"two tokens":                 {upgrade + "Authorization: Bearer x\r\nSec-WebSocket-Protocol: echo.v1+json, echo.bearer.eA\r\n", 400},
		"POST":                       {strings.Replace(upgrade, "GET", "POST", 1) + protocol, 405},
		"HTTP/1.0":                   {strings.Replace(upgrade, "HTTP/1.1", "HTTP/1.0", 1) + protocol, 426},
		"no Upgrade":                 {without("Upgrade") + protocol, 426},
		"no Connection":              {without("Connection") + protocol, 426},
		"no key":                     {without("Sec-WebSocket-Key") + protocol, 400},
		"two keys":                   {upgrade + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + protocol, 400},
		"a short key":                {without("Sec-WebSocket-Key") + "Sec-WebSocket-Key: dGhl\r\n" + protocol, 400},
		"version 8":                  {strings.Replace(upgrade, "Version: 13", "Version: 8", 1) + protocol, 400},
		"compression offered":        {upgrade + protocol + "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n", 101},
		"extensions that are none":   {upgrade + protocol + "Sec-WebSocket-Extensions: ;;=,,;\r\n", 101},
		"own origin":                 {upgrade + protocol + "Origin: http://example.org\r\n", 101},
		"own origin, default port":   {upgrade + protocol + "Origin: http://example.org:80\r\n", 101},
		"own origin, upper case":     {upgrade + protocol + "Origin: HTTP://EXAMPLE.org\r\n", 101},
		"own host over https":        {upgrade + protocol + "Origin: https://example.org\r\n", 403},
		"own host, another port":     {upgrade + protocol + "Origin: http://example.org:8080\r\n", 403},
		"an allowed origin":          {upgrade + protocol + "Origin: https://app.example.org\r\n", 101},
		"an allowed one with port":   {upgrade + protocol + "Origin: http://other.example.org:8080\r\n", 101},
		"allowed, but http":          {upgrade + protocol + "Origin: http://app.example.org\r\n", 403},
		"a part of an allowed one":   {upgrade + protocol + "Origin: https://example.org\r\n", 403},
		"an allowed one's subdomain": {upgrade + protocol + "Origin: https://evil.app.example.org\r\n", 403},
		"an allowed one as a prefix": {upgrade + protocol + "Origin: https://app.example.org.evil.com\r\n", 403},
		"an allowed one as a user":   {upgrade + protocol + "Origin: https://app.example.org@evil.com\r\n", 403},
		"null":                       {upgrade + protocol + "Origin: null\r\n", 403},
		"an origin that is none":     {upgrade + protocol + "Origin: %zz\r\n", 403},
		"two origins":                {upgrade + protocol + "Origin: https://app.example.org\r\nOrigin: https://app.example.org\r\n", 403},
	} {
		t.Run(what, func(t *testing.T) {
			want := c.status
			c, resp := request(t, addr, c.head+"\r\n")
			require.Equal(t, want, resp.StatusCode)
			require.NotContains(t, fmt.Sprint(resp.Header), "bearer")
			require.Empty(t, resp.Header.Get("Sec-WebSocket-Extensions"), "compression is off")
			if resp.StatusCode == 101 {
				require.Equal(t, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", resp.Header.Get("Sec-WebSocket-Accept"))
				require.Equal(t, "echo.v1+json", resp.Header.Get("Sec-WebSocket-Protocol"))
				c.hello()
			}
		})
	}
}
