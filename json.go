package echo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
)

// JSON is the default codec, encoding/json. It refuses nesting deeper than 64
// and data after the value. Numbers decoded into an interface are float64.
var JSON Codec = jsonCodec{}

type jsonCodec struct{}

func (jsonCodec) ContentType() string          { return "application/json" }
func (jsonCodec) Encode(v any) ([]byte, error) { return json.Marshal(v) }

func (jsonCodec) Decode(data []byte, v any) error {
	if tooDeep(data) {
		return fmt.Errorf("json nests deeper than %d", maxDepth)
	}
	if decodersLast {
		d := jsonDecoders.Get().(*jsonDecoder)
		if d.decode(data, v) {
			jsonDecoders.Put(d)
			return nil
		}
		reflect.ValueOf(v).Elem().SetZero()
	}
	return json.Unmarshal(data, v) // which says what is wrong
}

// jsonDecoder is a json.Decoder used for many messages, which saves the
// decoder's state that json.Unmarshal makes for each.
type jsonDecoder struct {
	src  bytes.Reader
	dec  *json.Decoder
	done int64 // its offset after the last message
}

var jsonDecoders = sync.Pool{New: func() any { return newJSONDecoder() }}

func newJSONDecoder() *jsonDecoder {
	d := new(jsonDecoder)
	d.dec = json.NewDecoder(&d.src)
	return d
}

// A decoder that grew to a larger message is not kept.
const maxKept = 64 << 10

// decode decodes data and reports whether that was all there was to it and d
// may be used again.
func (d *jsonDecoder) decode(data []byte, v any) bool {
	d.src.Reset(data)
	err := d.dec.Decode(v)
	n := d.dec.InputOffset() - d.done
	d.done += n
	return err == nil && n == int64(len(data)) && n <= maxKept
}

// decodersLast reports whether a decoder can go on after it read its source to
// the end. That is so, but not documented, and not so with every version of
// encoding/json.
var decodersLast = func() bool {
	d := newJSONDecoder()
	var a, b int
	return d.decode([]byte("17"), &a) && d.decode([]byte("4"), &b) && a == 17 && b == 4
}()

const maxDepth = 64

// tooDeep reports whether JSON nests deeper than maxDepth. It need not be valid.
func tooDeep(data []byte) bool {
	if bytes.Count(data, []byte{'{'})+bytes.Count(data, []byte{'['}) <= maxDepth {
		return false
	}
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}
