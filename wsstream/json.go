package wsstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"
	"unicode/utf8"
)

// jsonCodec is the form echo.v1+json. A batch is JSON objects, a newline after
// each; the field "t" names the type. Names and values that are not UTF-8, which
// only the binary form can carry, have their bad bytes replaced by U+FFFD. The
// data of a message is in one of three fields:
//
//   - data, a JSON value, if the message's type is JSON and the data is,
//   - string, if the data is UTF-8 without control characters but tab,
//     newline and carriage return, and its type is not JSON,
//   - base64, for everything else.
type jsonCodec struct{}

// jsonFrame is a frame with its data.
type jsonFrame struct {
	*frame
	JSON   json.RawMessage `json:"data,omitempty"`
	Text   *string         `json:"string,omitempty"`
	Base64 []byte          `json:"base64,omitempty"`
}

func (jsonCodec) number() int { return 1 }

func (jsonCodec) append(batch []byte, f *frame) []byte {
	j := jsonFrame{frame: f}
	switch {
	case len(f.Data) == 0:
	case isJSON(f.Media) && json.Valid(f.Data):
		j.JSON = f.Data // which Encode compacts
	case !isJSON(f.Media) && isText(f.Data):
		s := string(f.Data)
		j.Text = &s
	default:
		j.Base64 = f.Data
	}
	w := bytes.NewBuffer(batch)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(&j); err != nil {
		panic("wsstream: encoding a frame: " + err.Error()) // there is nothing in a frame that can fail
	}
	return w.Bytes()
}

func (jsonCodec) next(batch []byte, f *frame) ([]byte, error) {
	line, rest, _ := bytes.Cut(batch, []byte{'\n'})
	if line = bytes.TrimSpace(line); len(line) == 0 {
		*f = frame{}
		return rest, nil
	}
	if !utf8.Valid(line) {
		*f = frame{}
		return rest, errors.New("a frame is not UTF-8")
	}
	*f = frame{}
	j := jsonFrame{frame: f}
	if err := json.Unmarshal(line, &j); err != nil {
		return rest, fmt.Errorf("a frame is not the JSON expected: %w", err)
	}
	switch {
	case j.JSON != nil:
		f.Data = j.JSON
	case j.Text != nil:
		f.Data = []byte(*j.Text)
	case j.Base64 != nil:
		f.Data = j.Base64
	}
	return rest, nil
}

// isJSON reports whether a media type is JSON's or built on it.
func isJSON(media string) bool {
	if media == "application/json" {
		return true
	}
	if !strings.Contains(media, "json") && !strings.Contains(media, "JSON") {
		return false
	}
	t, _, err := mime.ParseMediaType(media)
	return err == nil && (t == "application/json" || strings.HasSuffix(t, "+json"))
}

// isText reports whether data reads well as a JSON string.
func isText(data []byte) bool {
	if !utf8.Valid(data) {
		return false
	}
	for _, c := range data {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f {
			return false
		}
	}
	return true
}
