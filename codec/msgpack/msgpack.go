// Package msgpack is a codec for MessagePack: more compact than JSON, and quicker
// for large values.
//
//	bus := echo.New(echo.WithCodec(msgpack.Codec))
//
// Values are encoded by [github.com/vmihailenco/msgpack/v5] under its rules
// for struct tags. That library trusts the lengths it reads: five bytes can
// make it allocate gigabytes, and nesting is limited by nothing but the stack.
// So this codec walks the bytes first and refuses, before anything is
// allocated, data whose declared lengths exceed what is there, that nests
// deeper than 32, or that is not one value. Of MessagePack's extension types
// it knows the timestamp alone; the others are refused, by Encode too.
package msgpack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/echobus/echo"
)

// Codec encodes values as MessagePack, content type application/vnd.msgpack.
var Codec echo.Codec = codec{}

type codec struct{}

func (codec) ContentType() string { return "application/vnd.msgpack" }

func (codec) Encode(v any) ([]byte, error) {
	data, err := msgpack.Marshal(v)
	if err != nil {
		return nil, err
	}
	if _, err := checked(data); err != nil {
		return nil, fmt.Errorf("msgpack: the encoding of %T %w", v, err)
	}
	return data, nil
}

func (codec) Decode(data []byte, v any) (err error) {
	if data, err = checked(data); err != nil {
		return fmt.Errorf("msgpack: data %w", err)
	}
	defer func() {
		if p := recover(); p != nil { // such as for nil in place of a time.Time
			err = fmt.Errorf("msgpack: decoding into %T panicked: %v", v, p)
		}
	}()
	return msgpack.Unmarshal(data, v)
}

const maxDepth = 32

var (
	errDeep      = fmt.Errorf("nests deeper than %d", maxDepth)
	errTruncated = errors.New("declares more than it holds")
	errInvalid   = errors.New("has the byte 0xc1, which means nothing")
	errExtension = errors.New("has an extension type other than a valid timestamp")
)

// checked returns data, which must be exactly one value, in a form that is
// safe to decode.
func checked(data []byte) ([]byte, error) {
	w := walker{data: data}
	if err := w.value(0); err != nil {
		return nil, err
	}
	if rest := len(data) - w.at; rest > 0 {
		return nil, fmt.Errorf("goes on for %d bytes after the value", rest)
	}
	if w.out == nil {
		return data, nil
	}
	return append(w.out, data[w.copied:]...), nil
}

// walker walks over data, knowing the formats of the MessagePack
// specification, https://github.com/msgpack/msgpack/blob/master/spec.md.
type walker struct {
	data []byte
	at   int

	out    []byte // a copy with some timestamps rewritten, when there are any
	copied int    // how much of data is in out
}

// value walks over one value.
func (w *walker) value(depth int) error {
	if w.at == len(w.data) {
		return errTruncated
	}
	if depth > maxDepth {
		return errDeep
	}
	begin := w.at
	c := w.data[begin]
	w.at++
	switch {
	case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // fixint, nil, false, true
		return nil
	case c <= 0x8f: // fixmap
		return w.elements(2*uint64(c&0x0f), depth)
	case c <= 0x9f: // fixarray
		return w.elements(uint64(c&0x0f), depth)
	case c <= 0xbf: // fixstr
		return w.skip(uint64(c & 0x1f))
	}
	switch c {
	case 0xc4, 0xc5, 0xc6: // bin 8, 16, 32
		return w.sized(1 << (c - 0xc4))
	case 0xca, 0xcb: // float 32, 64
		return w.skip(4 << (c - 0xca))
	case 0xcc, 0xcd, 0xce, 0xcf: // uint 8, 16, 32, 64
		return w.skip(1 << (c - 0xcc))
	case 0xd0, 0xd1, 0xd2, 0xd3: // int 8, 16, 32, 64
		return w.skip(1 << (c - 0xd0))
	case 0xd9, 0xda, 0xdb: // str 8, 16, 32
		return w.sized(1 << (c - 0xd9))
	case 0xdc, 0xdd: // array 16, 32
		return w.counted(2<<(c-0xdc), 1, depth)
	case 0xde, 0xdf: // map 16, 32
		return w.counted(2<<(c-0xde), 2, depth)
	case 0xd6, 0xd7: // fixext 4, 8
		return w.timestamp(begin, 4<<(c-0xd6))
	case 0xc7: // ext 8
		n, err := w.length(1)
		if err != nil {
			return err
		}
		return w.timestamp(begin, int(n))
	case 0xc1:
		return errInvalid
	}
	return errExtension
}

// timestamp walks over the type and the n bytes of an extension, which must be
// a timestamp, and rewrites it in the form of 12 bytes.
//
// Where the library expects a map and finds an extension, it skips the header
// and takes what follows for the map, which nobody has walked over then. The
// long form begins with nanoseconds, and so with a byte that begins no map.
func (w *walker) timestamp(begin, n int) error {
	if n >= len(w.data)-w.at {
		return errTruncated
	}
	kind, payload := w.data[w.at], w.data[w.at+1:w.at+1+n]
	w.at += 1 + n
	var seconds, nanos uint64
	switch {
	case kind != 0xff: // -1 is the timestamp
		return errExtension
	case n == 4:
		seconds = uint64(binary.BigEndian.Uint32(payload))
	case n == 8:
		both := binary.BigEndian.Uint64(payload)
		seconds, nanos = both&(1<<34-1), both>>34
	case n == 12:
		nanos, seconds = uint64(binary.BigEndian.Uint32(payload)), binary.BigEndian.Uint64(payload[4:])
	default:
		return errExtension
	}
	if nanos >= 1e9 {
		return errExtension
	}
	if n < 12 {
		w.out = append(w.out, w.data[w.copied:begin]...)
		w.out = append(w.out, 0xc7, 12, 0xff)
		w.out = binary.BigEndian.AppendUint32(w.out, uint32(nanos))
		w.out = binary.BigEndian.AppendUint64(w.out, seconds)
		w.copied = w.at
	}
	return nil
}

// elements walks over n values inside another one. Each takes a byte at least.
func (w *walker) elements(n uint64, depth int) error {
	if n > uint64(len(w.data)-w.at) {
		return errTruncated
	}
	for range n {
		if err := w.value(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

// counted walks over as many times each values as a count of the given width says.
func (w *walker) counted(width int, each uint64, depth int) error {
	n, err := w.length(width)
	if err != nil {
		return err
	}
	return w.elements(each*n, depth)
}

// sized skips a length of the given width, and so many bytes.
func (w *walker) sized(width int) error {
	n, err := w.length(width)
	if err != nil {
		return err
	}
	return w.skip(n)
}

// length reads an unsigned big-endian number of 1, 2 or 4 bytes.
func (w *walker) length(width int) (uint64, error) {
	if width > len(w.data)-w.at {
		return 0, errTruncated
	}
	b := w.data[w.at : w.at+width]
	w.at += width
	switch width {
	case 1:
		return uint64(b[0]), nil
	case 2:
		return uint64(binary.BigEndian.Uint16(b)), nil
	}
	return uint64(binary.BigEndian.Uint32(b)), nil
}

func (w *walker) skip(n uint64) error {
	if n > uint64(len(w.data)-w.at) {
		return errTruncated
	}
	w.at += int(n)
	return nil
}
