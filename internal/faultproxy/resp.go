package faultproxy

import (
	"bytes"
	"strconv"
	"strings"
)

// event is what a parser found.
type event int

const (
	nothing event = iota // but the end of the input
	began                // a reply begins at the next byte
	named                // the command of a request is known
	ended                // a request or reply is complete
)

// Longer lines than this are not of RESP, or need not be understood.
const maxLine = 64 << 10

// requests follows what a client sends: arrays of bulk strings, or lines.
type requests struct {
	command command // of the present request
	line    []byte  // so far, without its end
	words   int     // that the present request still lacks
	seen    int     // words of it
	word    []byte  // the present one, if it is among the first two
	payload int     // bytes of the present word that are missing
	state   int
	opaque  bool // it is not RESP, maybe TLS
}

// The states of requests.
const (
	atStart   = iota // of a request
	inLine           // a request that is a line
	inCount          // of words
	inLength         // of a word
	inWord           // its bytes
	afterWord        // the line end that follows
)

// command is the first two words of a request, in upper case. The second is
// empty if there is none.
type command [2]string

// next reads b up to an event, and returns how many bytes it read and the
// event.
func (r *requests) next(b []byte) (int, event) {
	for i := 0; i < len(b) && !r.opaque; {
		switch r.state {
		case atStart:
			r.command, r.line, r.seen = command{}, r.line[:0], 0
			switch c := b[i]; {
			case c == '*':
				r.state = inCount
				i++
			case c == '\r' || c == '\n':
				i++
			case c >= ' ' && c <= '~':
				r.state = inLine
			default:
				r.opaque = true
			}
		case inLine:
			n, whole := r.readLine(b[i:])
			if whole && r.command[0] == "" {
				words := strings.Fields(strings.ToUpper(string(r.line)))
				if copy(r.command[:], words) > 0 {
					// Again from the line's end, when the caller has seen the name.
					return i + n - 1, named
				}
			}
			i += n
			if whole {
				r.state = atStart
				if r.command[0] != "" {
					return i, ended
				}
			}
		case inCount, inLength:
			n, whole := r.readLine(b[i:])
			i += n
			if !whole {
				continue
			}
			line, ok := r.line, true
			if r.state == inLength {
				line, ok = bytes.CutPrefix(line, []byte("$"))
			}
			count, isCount := number(line)
			r.line = r.line[:0]
			switch {
			case !ok || !isCount:
				r.opaque = true
			case r.state == inLength:
				r.payload, r.word, r.state = max(0, count), r.word[:0], inWord
			case count <= 0: // Redis passes over it
				r.state = atStart
			default:
				r.words, r.state = count, inLength
			}
		case inWord:
			n := min(r.payload, len(b)-i)
			if room := 256 - len(r.word); r.seen < len(r.command) && room > 0 {
				r.word = append(r.word, b[i:i+min(n, room)]...)
			}
			i += n
			if r.payload -= n; r.payload > 0 {
				continue
			}
			r.payload, r.state = 2, afterWord
			r.words--
			if r.seen < len(r.command) {
				r.command[r.seen] = strings.ToUpper(string(r.word))
				r.seen++
				if r.seen == len(r.command) || r.words == 0 {
					return i, named
				}
			}
		case afterWord:
			n := min(r.payload, len(b)-i)
			i += n
			if r.payload -= n; r.payload > 0 {
				continue
			}
			if r.words > 0 {
				r.state = inLength
				continue
			}
			r.state = atStart
			return i, ended
		}
	}
	return len(b), nothing
}

// readLine reads b up to the end of the present line, and reports whether it
// is there.
func (r *requests) readLine(b []byte) (n int, whole bool) {
	n, whole = readLine(&r.line, b)
	if len(r.line) > maxLine {
		r.opaque = true
	}
	return n, whole
}

func readLine(line *[]byte, b []byte) (n int, whole bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		*line = append(*line, b...)
		return len(b), false
	}
	*line = bytes.TrimSuffix(append(*line, b[:i]...), []byte("\r"))
	return i + 1, true
}

// number reads a length or count.
func number(b []byte) (int, bool) {
	n, err := strconv.Atoi(string(b))
	return n, err == nil && n <= 1<<30
}

// replies follows what a server sends, in RESP2 or RESP3.
type replies struct {
	line    []byte // of the present item, so far
	payload int    // bytes of the present string that are missing
	open    []int  // how many items each array around the present item lacks
	state   int
	push    bool // it is no reply but a message nobody asked for
	opaque  bool // it is not RESP
}

// The states of replies.
const (
	between  = iota // replies
	inHeader        // the line that each item begins with
	inString        // and its line end
)

// next reads b up to an event, and returns how many bytes it read and the
// event.
func (r *replies) next(b []byte) (int, event) {
	for i := 0; i < len(b) && !r.opaque; {
		switch r.state {
		case between:
			r.state, r.line, r.open = inHeader, r.line[:0], r.open[:0]
			if r.push = b[i] == '>'; !r.push {
				return i, began
			}
		case inHeader:
			n, whole := readLine(&r.line, b[i:])
			i += n
			if len(r.line) > maxLine {
				r.opaque = true
			}
			if whole && r.header() && r.complete() {
				return i, ended
			}
		case inString:
			n := min(r.payload, len(b)-i)
			i += n
			if r.payload -= n; r.payload == 0 {
				r.state = inHeader
				if r.complete() {
					return i, ended
				}
			}
		}
	}
	return len(b), nothing
}

// header reads the header of an item and reports whether it is all of it.
func (r *replies) header() bool {
	line := r.line
	r.line = r.line[:0]
	if len(line) == 0 {
		r.opaque = true
		return false
	}
	kind := line[0]
	switch kind {
	case '+', '-', ':', '_', '#', ',', '(':
		return true
	}
	n, ok := number(line[1:])
	if !ok {
		r.opaque = true
		return false
	}
	switch kind {
	case '$', '!', '=':
		if n < 0 {
			return true
		}
		r.payload, r.state = n+2, inString
		return false
	case '*', '~', '>':
	case '%':
		n *= 2
	case '|': // attributes, and the item that they are of
		n = 2*n + 1
	default:
		r.opaque = true
		return false
	}
	if n > 0 {
		r.open = append(r.open, n)
	}
	return n <= 0
}

// complete is called with every complete item and reports whether a reply ends
// with it.
func (r *replies) complete() bool {
	for len(r.open) > 0 {
		last := len(r.open) - 1
		if r.open[last]--; r.open[last] > 0 {
			return false
		}
		r.open = r.open[:last]
	}
	r.state = between
	return !r.push
}
