package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/echobus/echo/transport"
)

// row is a message that waits.
type row struct {
	id    int64
	topic string
	msg   transport.Message
	bad   error // why msg cannot be told from what is in the row
}

// storable returns why a message cannot be stored as it is. A database would
// refuse some of it too, but PostgreSQL aborts the caller's transaction then.
func storable(m *transport.Message) error {
	switch {
	case m.Value != nil:
		return errors.New("it has a value in place of data")
	case !isText(m.ID):
		return fmt.Errorf("the ID is not UTF-8 without NUL")
	case m.Terms != nil && !isText(m.Terms.Once):
		return fmt.Errorf("the name %.80q is not UTF-8 without NUL", m.Terms.Once)
	case !isText(m.Type):
		return fmt.Errorf("the type %.80q is not UTF-8 without NUL", m.Type)
	}
	for name, value := range m.Header {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return fmt.Errorf("the header %.80q is not UTF-8", name)
		}
	}
	_, err := m.Time.UTC().MarshalText()
	return err
}

func isText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// rowsOf returns the values of msgs in the order of columns.
func rowsOf(topic string, msgs []transport.Message) ([]any, error) {
	args := make([]any, 0, len(msgs)*len(columns))
	for i := range msgs {
		m := &msgs[i]
		header := ""
		if len(m.Header) > 0 {
			b, err := json.Marshal(m.Header)
			if err != nil {
				return nil, err
			}
			header = string(b)
		}
		terms, err := termsOf(m)
		if err != nil {
			return nil, err
		}
		data := m.Data
		if data == nil {
			data = []byte{} // which is not NULL
		}
		// A key may have NUL, which text in PostgreSQL may not. The time is
		// text, as databases keep microseconds at best.
		args = append(args, topic, m.ID, []byte(m.Key), m.Time.UTC().Format(time.RFC3339Nano), m.Type, header, terms, data)
	}
	return args, nil
}

// scan reads the columns of a row that begins with its id. also takes what
// stands behind them.
func (r *row) scan(scan func(...any) error, also ...any) error {
	var key []byte
	var sent, header, asked string
	m := &r.msg
	err := scan(append([]any{&r.id, &r.topic, &m.ID, &key, &sent, &m.Type, &header, &asked, &m.Data}, also...)...)
	if err != nil {
		return err
	}
	m.Key = string(key)
	m.Time, r.bad = time.Parse(time.RFC3339Nano, sent)
	m.Time = m.Time.UTC()
	if header != "" && r.bad == nil {
		if err := json.Unmarshal([]byte(header), &m.Header); err != nil {
			r.bad = fmt.Errorf("header: %w", err)
		}
	}
	if asked != "" && r.bad == nil {
		if err := json.Unmarshal([]byte(asked), &m.Terms); err != nil {
			r.bad = fmt.Errorf("terms: %w", err)
		}
	}
	return nil
}

// termsOf returns what the publisher of a message asks for as JSON, "" for nothing.
func termsOf(m *transport.Message) (string, error) {
	if m.Terms == nil {
		return "", nil
	}
	b, err := json.Marshal(m.Terms)
	return string(b), err
}
