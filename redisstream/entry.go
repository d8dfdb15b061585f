package redisstream

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/echobus/echo/transport"
)

// format is how messages are written as entries.
type format interface {
	// key is the name of a topic's stream.
	key(prefix, topic string) string
	// fields appends the names and values of m's fields to an XADD.
	fields(x *xadds, m *transport.Message) error
	// message makes a message of an entry. It may refer to the entry's memory.
	message(e *entry, m *transport.Message) error
}

// native is the format of this package. An entry has the fields
//
//	m     "<time> <n> <k> <id> <type>" and, after a newline, the encoded value:
//	      when the message was published, in nanoseconds since 1970; how many
//	      bytes its ID and its media type have; its ID; its media type
//	key   the key, if it has one
//	head  the headers, if any, in the form of a URL's query
//
// in any order; others are ignored. One field for what every message has, and
// not four, makes a stream a third faster. A format that this one's readers
// must not misread says so by a field v with another value than 1.
type native struct{}

// fieldNames are variables, so that arguments can point to them.
var fieldNames = struct{ m, key, head, payload string }{"m", "key", "head", "payload"}

// key keeps a topic and its dead letters in one slot of a cluster.
func (native) key(prefix, topic string) string {
	dead := ""
	for of, ok := transport.CutDead(topic); ok; of, ok = transport.CutDead(topic) {
		topic, dead = of, dead+":dead"
	}
	return prefix + ":{" + topic + "}" + dead
}

func (native) fields(x *xadds, m *transport.Message) error {
	b := strconv.AppendInt(x.begin(&fieldNames.m), m.Time.UnixNano(), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(m.ID)), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(m.Type)), 10)
	b = append(b, ' ')
	b = append(b, m.ID...)
	b = append(b, ' ')
	b = append(b, m.Type...)
	b = append(b, '\n')
	x.end(append(b, m.Data...))
	if m.Key != "" {
		x.end(append(x.begin(&fieldNames.key), m.Key...))
	}
	if len(m.Header) > 0 {
		x.end(append(x.begin(&fieldNames.head), encodeHeader(m.Header)...))
	}
	return nil
}

// decode reads the field m.
func decode(b []byte, m *transport.Message) error {
	bad := func() error {
		return fmt.Errorf("field m: %.60q is not a time, two lengths, an ID, a type and a value", b)
	}
	when, rest, ok1 := bytes.Cut(b, []byte(" "))
	n, rest, ok2 := bytes.Cut(rest, []byte(" "))
	k, rest, ok3 := bytes.Cut(rest, []byte(" "))
	ns, ok4 := parseInt(when)
	id, ok5 := parseUint(n)
	typ, ok6 := parseUint(k)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 {
		return bad()
	}
	most := uint64(len(rest))
	if id >= most || typ >= most || id+typ+2 > most || rest[id] != ' ' || rest[id+1+typ] != '\n' {
		return bad()
	}
	m.Time, m.ID = time.Unix(0, ns).UTC(), string(rest[:id])
	if t := rest[id+1 : id+1+typ]; m.Type != string(t) {
		m.Type = string(t)
	}
	m.Data = rest[id+typ+2:]
	return nil
}

func encodeHeader(h map[string]string) string {
	v := make(url.Values, len(h))
	for name, value := range h {
		v[name] = []string{value}
	}
	return v.Encode()
}

func decodeHeader(s string) (map[string]string, error) {
	v, err := url.ParseQuery(s)
	if err != nil {
		return nil, fmt.Errorf("field head: %w", err)
	}
	h := make(map[string]string, len(v))
	for name, values := range v {
		if len(values) != 1 {
			return nil, fmt.Errorf("field head has the header %.40q %d times", name, len(values))
		}
		h[name] = values[0]
	}
	return h, nil
}

var (
	errDeleted = errors.New("the entry was deleted")
	errForeign = errors.New("not an entry of this format")
)

func (native) message(e *entry, m *transport.Message) error {
	*m = transport.Message{Type: m.Type} // to be used again, most likely
	whole := false
	for i := 0; i+1 < len(e.fields); i += 2 {
		value := e.fields[i+1]
		switch string(e.fields[i]) {
		case "m":
			if err := decode(value, m); err != nil {
				return err
			}
			whole = true
		case "key":
			m.Key = string(value)
		case "head":
			h, err := decodeHeader(string(value))
			if err != nil {
				return err
			}
			m.Header = h
		case "v":
			if string(value) != "1" {
				return fmt.Errorf("field v: version %.20q of the format is not known", value)
			}
		}
	}
	if !whole {
		return fmt.Errorf("%w: it has no field m", errForeign)
	}
	return nil
}

// crystal is the format of the Crystal shard Echo: the stream is named after
// the message's type, here the topic, and the one field, payload, is the
// message as a JSON object in URL-safe Base64, with _id and _time among its members.
type crystal struct{}

func (crystal) key(_, topic string) string { return topic }

func (crystal) fields(x *xadds, m *transport.Message) error {
	if m.Key != "" || len(m.Header) > 0 {
		return fmt.Errorf("the format of Crystal Echo has no room for a key and headers: %w", errors.ErrUnsupported)
	}
	body := bytes.TrimSpace(m.Data)
	if len(body) < 2 || body[0] != '{' || !json.Valid(body) {
		return fmt.Errorf("the format of Crystal Echo carries JSON objects alone, not %.20q: %w", m.Data, errors.ErrUnsupported)
	}
	id, err := json.Marshal(m.ID)
	if err != nil {
		return err
	}
	object := fmt.Appendf(nil, `{"_id":%s,"_time":%q`, id, m.Time.UTC().Format(time.RFC3339Nano))
	if rest := bytes.TrimSpace(body[1:]); rest[0] != '}' {
		object = append(object, ',')
	}
	object = append(object, body[1:]...)
	x.end(base64.URLEncoding.AppendEncode(x.begin(&fieldNames.payload), object))
	return nil
}

func (crystal) message(e *entry, m *transport.Message) error {
	*m = transport.Message{Type: "application/json"}
	for i := 0; i+1 < len(e.fields); i += 2 {
		if string(e.fields[i]) != "payload" {
			continue
		}
		text := bytes.TrimRight(e.fields[i+1], "=\n")
		data := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
		if _, err := base64.RawURLEncoding.Decode(data, text); err != nil {
			return fmt.Errorf("field payload: %w", err)
		}
		var own struct {
			ID   string    `json:"_id"`
			Time time.Time `json:"_time"`
		}
		if err := json.Unmarshal(data, &own); err != nil {
			return fmt.Errorf("field payload: %w", err)
		}
		m.ID, m.Time, m.Data = own.ID, own.Time, data
		return nil
	}
	return fmt.Errorf("%w: it has no field payload", errForeign)
}
