package wsstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/echobus/echo/transport"
)

// binaryCodec is the form echo.v1+bin. A batch is frames one after another:
//
//	frame = length type fields
//
// length is a uvarint, the number of bytes after it; type is one byte; fields
// are as their layout says. Fields missing at the end are zero, bytes after the
// last field are ignored.
type binaryCodec struct{}

func (binaryCodec) number() int { return 0 }

func (binaryCodec) append(batch []byte, f *frame) []byte {
	// A place for a length of one byte, as most are; longer frames are moved.
	start := len(batch)
	batch = append(batch, 0, byte(f.Type))
	fields := layouts[f.Type].fields
	for i := range fields {
		batch = fields[i].append(batch, f)
	}
	n := uint64(len(batch) - start - 1)
	if n < 0x80 {
		batch[start] = byte(n)
		return batch
	}
	var length [binary.MaxVarintLen64]byte
	return slices.Replace(batch, start, start+1, length[:binary.PutUvarint(length[:], n)]...)
}

func (d *field) append(b []byte, f *frame) []byte {
	switch {
	case d.number != nil:
		return binary.AppendUvarint(b, *d.number(f))
	case d.bool != nil:
		if *d.bool(f) {
			return append(b, 1)
		}
		return append(b, 0)
	case d.string != nil:
		return appendString(b, *d.string(f))
	case d.code != nil:
		return binary.AppendUvarint(b, uint64(*d.code(f)))
	case d.from != nil:
		return append(b, byte(*d.from(f)))
	case d.time != nil:
		t := *d.time(f)
		if t.IsZero() {
			return append(b, 0)
		}
		return binary.AppendVarint(b, t.UnixNano())
	case d.position != nil:
		return appendPosition(b, *d.position(f))
	case d.positions != nil:
		ps := *d.positions(f)
		b = binary.AppendUvarint(b, uint64(len(ps)))
		for _, p := range ps {
			b = appendPosition(b, p)
		}
		return b
	case d.numbers != nil:
		ns := *d.numbers(f)
		b = binary.AppendUvarint(b, uint64(len(ns)))
		for _, n := range ns {
			b = binary.AppendUvarint(b, n)
		}
		return b
	case d.header != nil:
		h := *d.header(f)
		b = binary.AppendUvarint(b, uint64(len(h)))
		if len(h) == 0 {
			return b
		}
		for _, k := range slices.Sorted(maps.Keys(h)) {
			b = appendString(appendString(b, k), h[k])
		}
		return b
	}
	return append(binary.AppendUvarint(b, uint64(len(*d.data(f)))), *d.data(f)...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendPosition(b []byte, p transport.Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, p.Hi), p.Lo)
}

func (binaryCodec) next(batch []byte, f *frame) ([]byte, error) {
	r := reader{b: batch}
	body := r.bytes()
	if r.bad || len(body) == 0 {
		return nil, fmt.Errorf("%w: it is missing, zero or more than the %d bytes that follow", errFraming, len(batch))
	}
	rest := r.b
	*f = frame{Type: frameType(body[0])}
	if f.Type == 0 || f.Type >= frameEnd {
		f.Type = 0
		return rest, nil
	}
	r = reader{b: body[1:]}
	fields := layouts[f.Type].fields
	for i := range fields {
		if len(r.b) == 0 {
			break
		}
		if err := fields[i].read(&r, f); err != nil {
			return rest, fmt.Errorf("%v: field %d: %w", f.Type, i+1, err)
		}
	}
	return rest, nil
}

// errFraming says that nobody knows where the next frame begins.
var errFraming = errors.New("a frame's length")

var errCut = errors.New("cut off, or a number out of range")

// read reads one field.
func (d *field) read(r *reader, f *frame) error {
	switch {
	case d.number != nil:
		*d.number(f) = r.number()
	case d.bool != nil:
		n := r.number()
		if n > 1 {
			return fmt.Errorf("%d is neither 0 nor 1", n)
		}
		*d.bool(f) = n == 1
	case d.string != nil:
		*d.string(f) = string(r.bytes())
	case d.code != nil:
		*d.code(f) = Code(min(r.number(), 1<<16-1))
	case d.from != nil:
		n := r.number()
		if n >= uint64(len(froms)) {
			return fmt.Errorf("start %d: no such kind", n)
		}
		*d.from(f) = from(n)
	case d.time != nil:
		if ns := r.signed(); ns != 0 {
			*d.time(f) = time.Unix(0, ns).UTC()
		}
	case d.position != nil:
		*d.position(f) = r.position()
	case d.positions != nil:
		n := r.count(2)
		ps := make([]transport.Position, n)
		for i := range ps {
			ps[i] = r.position()
		}
		*d.positions(f) = ps
	case d.numbers != nil:
		n := r.count(1)
		ns := make([]uint64, n)
		for i := range ns {
			ns[i] = r.number()
		}
		*d.numbers(f) = ns
	case d.header != nil:
		n := r.count(2)
		if n == 0 {
			break
		}
		h := make(map[string]string, min(n, 16)) // one name may come often
		for range n {
			k := string(r.bytes())
			h[k] = string(r.bytes())
		}
		*d.header(f) = h
	default:
		*d.data(f) = r.bytes()
	}
	if r.bad {
		return errCut
	}
	return nil
}

// reader takes values off the front of b. After the first that is not there it
// is bad and returns zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	n, k := binary.Uvarint(r.b)
	if k <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[k:]
	return n
}

func (r *reader) signed() int64 {
	n, k := binary.Varint(r.b)
	if k <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[k:]
	return n
}

// bytes returns a run of bytes with its length before it.
func (r *reader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// count returns the number of things that follow, each of size bytes at least,
// so that nobody makes room for what is not there.
func (r *reader) count(size int) int {
	n := r.number()
	if n > uint64(len(r.b)/size) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) position() transport.Position {
	hi := r.number()
	return transport.Position{Hi: hi, Lo: r.number()}
}
