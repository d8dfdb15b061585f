package echo

import (
	"bytes"
	"fmt"
	"maps"
	"mime"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Codec turns values into bytes and back. Its content type travels with each
// message and decides who decodes it, so that a topic may change its codec
// while messages of the old one are still under way. A Codec is safe for
// concurrent use.
//
// A codec that cannot serve every type has a method CheckType(reflect.Type)
// error; a topic it cannot serve is refused at its first use.
type Codec interface {
	// ContentType is the media type of what Encode returns, without parameters.
	ContentType() string
	// Encode returns the encoding of v in memory that nobody else uses.
	Encode(v any) ([]byte, error)
	// Decode stores what data encodes in v, which is a pointer. It neither
	// changes data nor lets v refer to it.
	Decode(data []byte, v any) error
}

// Bytes is the codec of topics whose values are byte slices: they travel as they are.
var Bytes Codec = bytesCodec{}

// Text is the codec of topics whose values are strings: they travel as UTF-8.
var Text Codec = textCodec{}

type bytesCodec struct{}

func (bytesCodec) ContentType() string { return "application/octet-stream" }

func (bytesCodec) CheckType(t reflect.Type) error {
	if t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Uint8 {
		return fmt.Errorf("codec Bytes carries byte slices, not %v", t)
	}
	return nil
}

func (bytesCodec) Encode(v any) ([]byte, error) {
	if b, ok := v.([]byte); ok {
		return bytes.Clone(b), nil
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice && r.Type().Elem().Kind() == reflect.Uint8 {
		return bytes.Clone(r.Bytes()), nil
	}
	return nil, fmt.Errorf("codec Bytes carries byte slices, not %T", v)
}

func (c bytesCodec) Decode(data []byte, v any) error {
	if b, ok := v.(*[]byte); ok {
		*b = bytes.Clone(data)
		return nil
	}
	r := reflect.ValueOf(v).Elem()
	if err := c.CheckType(r.Type()); err != nil {
		return err
	}
	r.SetBytes(bytes.Clone(data))
	return nil
}

type textCodec struct{}

func (textCodec) ContentType() string { return "text/plain" }

func (textCodec) CheckType(t reflect.Type) error {
	if t.Kind() != reflect.String {
		return fmt.Errorf("codec Text carries strings, not %v", t)
	}
	return nil
}

func (textCodec) Encode(v any) ([]byte, error) {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.String {
		return nil, fmt.Errorf("codec Text carries strings, not %T", v)
	}
	if !utf8.ValidString(r.String()) {
		return nil, fmt.Errorf("text %.20q is not UTF-8", r.String())
	}
	return []byte(r.String()), nil
}

func (c textCodec) Decode(data []byte, v any) error {
	r := reflect.ValueOf(v).Elem()
	if err := c.CheckType(r.Type()); err != nil {
		return err
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("text %.20q is not UTF-8", data)
	}
	r.SetString(string(data))
	return nil
}

// WithCodec sets the codec: of a bus, for all topics that name none; of a
// topic, for its messages. Messages that arrive are decoded by their content
// type: by c, by one of more, or by [JSON], [Bytes] or [Text].
func WithCodec(c Codec, more ...Codec) interface {
	BusOption
	TopicOption
} {
	return codecOption{c, more}
}

type codecOption struct {
	codec Codec
	also  []Codec
}

func (o codecOption) err() error {
	if o.codec == nil {
		return fmt.Errorf("WithCodec: the codec is nil")
	}
	for _, c := range append([]Codec{o.codec}, o.also...) {
		if c == nil {
			return fmt.Errorf("WithCodec: a further codec is nil")
		}
		if t, params, err := mime.ParseMediaType(c.ContentType()); err != nil || len(params) > 0 || t != c.ContentType() {
			return fmt.Errorf("WithCodec: content type %q of %T is not a media type in lower case without parameters", c.ContentType(), c)
		}
	}
	return nil
}

func (o codecOption) applyBus(c *busConfig) {
	c.codec, c.also = o.codec, o.also
	c.fail(o.err())
}

func (o codecOption) applyTopic(c *topicConfig) {
	c.codec, c.also = o.codec, o.also
	if err := o.err(); err != nil {
		c.codec, c.err = nil, err
	}
}

// decoders finds the codec and the schema version of a message by its type.
type decoders struct {
	own        string // the type this program's producers write, found without a search
	ownCodec   Codec
	ownVersion int
	byType     map[string]Codec
	upcasts    []upcast
}

func newDecoders(b *Bus, topic topicConfig, codec Codec) decoders {
	d := decoders{own: typeOf(codec, topic.version), ownCodec: codec, ownVersion: topic.version, byType: b.decoders, upcasts: topic.upcasts}
	if topic.codec != nil {
		d.byType = maps.Clone(d.byType)
		addCodecs(d.byType, append([]Codec{codec}, topic.also...))
	}
	return d
}

func addCodecs(byType map[string]Codec, list []Codec) {
	for _, c := range slices.Backward(list) { // the first one wins
		if c != nil {
			byType[c.ContentType()] = c
		}
	}
}

// typeOf is the media type of messages: the codec's, and the schema version as
// its parameter.
func typeOf(c Codec, version int) string {
	if version == 0 {
		return c.ContentType()
	}
	return c.ContentType() + "; version=" + strconv.Itoa(version)
}

func (d *decoders) find(mediaType string) (Codec, int, error) {
	if mediaType == d.own {
		return d.ownCodec, d.ownVersion, nil
	}
	name, params, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return nil, 0, fmt.Errorf("content type %.80q: %w", mediaType, err)
	}
	c := d.byType[name]
	if c == nil {
		return nil, 0, fmt.Errorf("no codec for content type %.80q", name)
	}
	version := 0
	if v := params["version"]; v != "" {
		if version, err = strconv.Atoi(v); err != nil || version < 0 || strings.HasPrefix(v, "+") {
			return nil, 0, fmt.Errorf("content type %.80q: version is not a number", mediaType)
		}
	}
	return c, version, nil
}
