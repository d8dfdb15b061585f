package redisstream

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/echobus/echo/transport"
)

// cursor reads a reply of the Redis serialization protocol (RESP, version 2;
// https://redis.io/docs/latest/develop/reference/protocol-spec) that is wholly
// in memory. What it returns refers to that memory.
type cursor struct{ rest []byte }

func (c *cursor) fail(want string) error {
	return fmt.Errorf("%w: %.20q where %s was expected", errMalformed, c.rest, want)
}

// line takes a line that starts with one of kinds.
func (c *cursor) line(kind byte, want string) ([]byte, error) {
	end := bytes.IndexByte(c.rest, '\r')
	if end < 1 || c.rest[0] != kind || end+1 >= len(c.rest) || c.rest[end+1] != '\n' {
		return nil, c.fail(want)
	}
	line := c.rest[1:end]
	c.rest = c.rest[end+2:]
	return line, nil
}

func (c *cursor) number(kind byte, want string) (int64, error) {
	at := *c
	line, err := c.line(kind, want)
	if err != nil {
		return 0, err
	}
	n, ok := parseInt(line)
	if !ok {
		return 0, at.fail(want)
	}
	return n, nil
}

// integer takes an integer.
func (c *cursor) integer() (int64, error) { return c.number(':', "an integer") }

// array takes the head of an array and returns its length, -1 for nil. A
// length that what follows cannot have is refused.
func (c *cursor) array() (int, error) {
	at := *c
	n, err := c.number('*', "an array")
	if err == nil && (n < -1 || n > int64(len(c.rest)/3)) { // the shortest element is ":0\r\n", or a nil of five bytes
		return 0, at.fail("an array of a sound length")
	}
	return int(n), err
}

// bulk takes a string, nil for nil.
func (c *cursor) bulk() ([]byte, error) {
	at := *c
	n, err := c.number('$', "a string")
	if err != nil || n == -1 {
		return nil, err
	}
	if n < 0 || n+2 > int64(len(c.rest)) || c.rest[n] != '\r' || c.rest[n+1] != '\n' {
		return nil, at.fail("a string of a sound length")
	}
	s := c.rest[:n:n]
	c.rest = c.rest[n+2:]
	return s, nil
}

// entry is an entry of a stream as it was read.
type entry struct {
	id      transport.Position
	fields  [][]byte // names and values by turns
	deleted bool     // it is in the group's accounts only
}

// entry takes an entry into e and reuses e.fields.
func (c *cursor) entry(e *entry) error {
	at := *c
	n, err := c.array()
	if err != nil {
		return err
	}
	if n < 2 {
		return at.fail("an entry")
	}
	id, err := c.bulk()
	if err != nil {
		return err
	}
	if e.id, err = parseID(id); err != nil {
		return err
	}
	e.fields, e.deleted = e.fields[:0], false
	k, err := c.array()
	if err != nil {
		return err
	}
	if k < 0 {
		e.deleted = true
	}
	for range k {
		f, err := c.bulk()
		if err != nil {
			return err
		}
		e.fields = append(e.fields, f)
	}
	for range n - 2 { // of newer servers
		if _, err := c.integer(); err != nil {
			return err
		}
	}
	return nil
}

// stream takes the head of the reply to a read of one stream and returns the
// number of its entries.
func (c *cursor) stream() (int, error) {
	at := *c
	n, err := c.array()
	if err != nil || n == -1 {
		return 0, err
	}
	if n != 1 {
		return 0, at.fail("one stream")
	}
	if n, err = c.array(); err != nil {
		return 0, err
	}
	if n != 2 {
		return 0, at.fail("a name and entries")
	}
	if _, err := c.bulk(); err != nil {
		return 0, err
	}
	n, err = c.array()
	return max(n, 0), err
}

// parseID reads an entry's ID.
func parseID[T string | []byte](id T) (transport.Position, error) {
	hyphen := 0
	for hyphen < len(id) && id[hyphen] != '-' {
		hyphen++
	}
	hi, ok := parseUint(id[:hyphen])
	if ok && hyphen < len(id) {
		if lo, ok := parseUint(id[hyphen+1:]); ok {
			return transport.Position{Hi: hi, Lo: lo}, nil
		}
	}
	return transport.Position{}, fmt.Errorf("%w: %.60q where an entry's ID was expected", errMalformed, string(id))
}

func parseUint[T string | []byte](digits T) (n uint64, ok bool) {
	if len(digits) == 0 || len(digits) > 20 {
		return 0, false
	}
	for i := range len(digits) {
		d := digits[i]
		if d < '0' || d > '9' {
			return 0, false
		}
		next := n*10 + uint64(d-'0')
		if n > (1<<64-1)/10 || next < n*10 {
			return 0, false
		}
		n = next
	}
	return n, true
}

func parseInt(digits []byte) (int64, bool) {
	if len(digits) > 1 && digits[0] == '-' {
		n, ok := parseUint(digits[1:])
		return -int64(n), ok && n <= 1<<63
	}
	n, ok := parseUint(digits)
	return int64(n), ok && n < 1<<63
}

// appendID appends an entry's ID.
func appendID(b []byte, p transport.Position) []byte {
	b = strconv.AppendUint(b, p.Hi, 10)
	b = append(b, '-')
	return strconv.AppendUint(b, p.Lo, 10)
}
