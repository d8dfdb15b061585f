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
	// fields appends the names and values of m's fields. They may refer to m.Data.
	fields(args []any, m *transport.Message) ([]any, error)
	// message makes a message of an entry. It may refer to the entry's memory.
	message(e *entry, m *transport.Message) error
}

// native is the format of this package. An entry has the fields
//
//	id    what Message.ID is; unique
//	time  nanoseconds since 1970, decimal
//	type  the media type of data
//	data  the encoded value
//	key   Message.Key, if not empty
//	head  the headers, if any, in the form of a URL's query
//
// in any order; others are ignored. A format that this one's readers must not
// misread says so by a field v with another value than 1.
type native struct{}

func (native) key(prefix, topic string) string { return prefix + ":{" + topic + "}" }

func (native) fields(args []any, m *transport.Message) ([]any, error) {
	args = append(args,
		"id", m.ID,
		"time", strconv.FormatInt(m.Time.UnixNano(), 10),
		"type", m.Type,
		"data", m.Data)
	if m.Key != "" {
		args = append(args, "key", m.Key)
	}
	if len(m.Header) > 0 {
		args = append(args, "head", encodeHeader(m.Header))
	}
	return args, nil
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
	var have struct{ id, time, typ, data bool }
	for i := 0; i+1 < len(e.fields); i += 2 {
		value := e.fields[i+1]
		switch string(e.fields[i]) {
		case "id":
			m.ID, have.id = string(value), true
		case "time":
			ns, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil {
				return fmt.Errorf("field time: %.40q is no count of nanoseconds", value)
			}
			m.Time, have.time = time.Unix(0, ns).UTC(), true
		case "type":
			if have.typ = true; m.Type != string(value) {
				m.Type = string(value)
			}
		case "data":
			m.Data, have.data = value, true
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
	for _, f := range []struct {
		name string
		have bool
	}{{"id", have.id}, {"time", have.time}, {"type", have.typ}, {"data", have.data}} {
		if !f.have {
			return fmt.Errorf("%w: it has no field %s", errForeign, f.name)
		}
	}
	return nil
}

// crystal is the format of the Crystal shard Echo: the stream is named after
// the message's type, here the topic, and the one field, payload, is the
// message as a JSON object in URL-safe Base64, with _id and _time among its members.
type crystal struct{}

func (crystal) key(_, topic string) string { return topic }

func (crystal) fields(args []any, m *transport.Message) ([]any, error) {
	if m.Key != "" || len(m.Header) > 0 {
		return nil, fmt.Errorf("Crystal Echo's format has no room for a key and headers: %w", errors.ErrUnsupported)
	}
	body := bytes.TrimSpace(m.Data)
	if len(body) < 2 || body[0] != '{' || !json.Valid(body) {
		return nil, fmt.Errorf("Crystal Echo's format carries JSON objects alone, not %.20q: %w", m.Data, errors.ErrUnsupported)
	}
	id, err := json.Marshal(m.ID)
	if err != nil {
		return nil, err
	}
	object := fmt.Appendf(nil, `{"_id":%s,"_time":%q`, id, m.Time.UTC().Format(time.RFC3339Nano))
	if rest := bytes.TrimSpace(body[1:]); rest[0] != '}' {
		object = append(object, ',')
	}
	object = append(object, body[1:]...)
	return append(args, "payload", base64.URLEncoding.EncodeToString(object)), nil
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
