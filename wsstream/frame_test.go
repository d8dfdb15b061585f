package wsstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/echobus/echo/transport"
)

// kind is what the specification calls a field's kind.
func (d *field) kind() string {
	switch {
	case d.number != nil:
		return "number"
	case d.bool != nil:
		return "bool"
	case d.string != nil:
		return "string"
	case d.code != nil:
		return "code"
	case d.from != nil:
		return "start"
	case d.time != nil:
		return "time"
	case d.position != nil:
		return "position"
	case d.positions != nil:
		return "list of positions"
	case d.numbers != nil:
		return "list of numbers"
	case d.header != nil:
		return "header"
	}
	return "bytes"
}

// name is a field's name in JSON: the one that appears when it alone is set.
func (d *field) name(t *testing.T) string {
	f := frame{Type: framePing}
	switch {
	case d.number != nil:
		*d.number(&f) = 1
	case d.bool != nil:
		*d.bool(&f) = true
	case d.string != nil:
		*d.string(&f) = "x"
	case d.code != nil:
		*d.code(&f) = 1
	case d.from != nil:
		*d.from(&f) = 1
	case d.time != nil:
		*d.time(&f) = time.Unix(1, 0)
	case d.position != nil:
		*d.position(&f) = transport.Position{Lo: 1}
	case d.positions != nil:
		*d.positions(&f) = []transport.Position{{Lo: 1}}
	case d.numbers != nil:
		*d.numbers(&f) = []uint64{1}
	case d.header != nil:
		*d.header(&f) = map[string]string{"a": "b"}
	default:
		return "data"
	}
	var m map[string]any
	require.NoError(t, json.Unmarshal(jsonCodec{}.append(nil, &f), &m))
	delete(m, "t")
	require.Len(t, m, 1)
	for name := range m {
		return name
	}
	return ""
}

// The table of frames in the specification is the one in the code.
func TestSpecificationListsTheFrames(t *testing.T) {
	page, err := os.ReadFile("../docs/websocket-protocol.md")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(page), "<!-- frames: begin -->")
	table, _, ok := strings.Cut(rest, "<!-- frames: end -->")
	require.True(t, ok)
	var got []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| `") {
			got = append(got, cells[0]+" "+cells[2]+": "+strings.Trim(cells[3], " –"))
		}
	}
	ms := regexp.MustCompile(` ms\b`)
	var want []string
	for typ := frameHello; typ < frameEnd; typ++ {
		var fields []string
		for i := range layouts[typ].fields {
			d := &layouts[typ].fields[i]
			fields = append(fields, fmt.Sprintf("`%s` %s", d.name(t), d.kind()))
		}
		want = append(want, fmt.Sprintf("| `%v` %d: %s", typ, typ, strings.Join(fields, ", ")))
	}
	for i := range got {
		got[i] = ms.ReplaceAllString(got[i], " number")
	}
	require.Equal(t, strings.Join(want, "\n"), strings.Join(got, "\n"))
}

// frames draws frames as both forms can carry.
var frames = rapid.Custom(func(t *rapid.T) frame {
	f := frame{Type: frameType(rapid.IntRange(int(frameHello), int(frameEnd)-1).Draw(t, "type"))}
	number := rapid.Uint64Range(0, 1<<53-1)
	position := rapid.Custom(func(t *rapid.T) transport.Position {
		return transport.Position{Hi: rapid.Uint64().Draw(t, "hi"), Lo: rapid.Uint64().Draw(t, "lo")}
	})
	for i := range layouts[f.Type].fields {
		d := &layouts[f.Type].fields[i]
		if rapid.IntRange(0, 3).Draw(t, "zero") == 0 {
			continue
		}
		switch {
		case d.number != nil:
			*d.number(&f) = number.Draw(t, "number")
		case d.bool != nil:
			*d.bool(&f) = rapid.Bool().Draw(t, "bool")
		case d.string != nil:
			*d.string(&f) = rapid.String().Draw(t, "string")
		case d.code != nil:
			*d.code(&f) = Code(rapid.Uint16().Draw(t, "code"))
		case d.from != nil:
			*d.from(&f) = from(rapid.IntRange(0, len(froms)-1).Draw(t, "from"))
		case d.time != nil:
			*d.time(&f) = time.Unix(0, rapid.Int64Range(1, 1<<61).Draw(t, "time")).UTC()
		case d.position != nil:
			*d.position(&f) = position.Draw(t, "position")
		case d.positions != nil:
			*d.positions(&f) = rapid.SliceOfN(position, 1, 5).Draw(t, "positions")
		case d.numbers != nil:
			*d.numbers(&f) = rapid.SliceOfN(number, 1, 5).Draw(t, "numbers")
		case d.header != nil:
			*d.header(&f) = rapid.MapOfN(rapid.String(), rapid.String(), 1, 4).Draw(t, "header")
		default:
			*d.data(&f) = rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "data")
		}
	}
	return f
})

// normal is f with nothing where a form has nothing or an empty list.
func normal(f frame) frame {
	if len(f.Ns) == 0 {
		f.Ns = nil
	}
	if len(f.At) == 0 {
		f.At = nil
	}
	if len(f.Data) == 0 {
		f.Data = nil
	}
	return f
}

func TestFormsSayTheSame(t *testing.T) {
	for _, c := range []codec{jsonCodec{}, binaryCodec{}} {
		t.Run(fmt.Sprintf("%T", c), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				sent := rapid.SliceOfN(frames, 1, 4).Draw(t, "frames")
				var batch []byte
				for i := range sent {
					batch = c.append(batch, &sent[i])
				}
				for i := range sent {
					var got frame
					rest, err := c.next(batch, &got)
					if err != nil {
						t.Fatal(err)
					}
					if !reflect.DeepEqual(normal(got), normal(sent[i])) {
						t.Fatalf("got  %+v\nwant %+v", got, sent[i])
					}
					batch = rest
				}
				if len(batch) > 0 {
					t.Fatalf("%d bytes are left", len(batch))
				}
			})
		})
	}
}

func TestDataInJSON(t *testing.T) {
	for _, c := range []struct {
		media, data, want, back string
	}{
		{"application/json", "{\n \"a\": 1 }", `"data":{"a":1}`, `{"a":1}`},
		{"application/json; version=2", `"x"`, `"data":"x"`, `"x"`},
		{"application/problem+json", `null`, `"data":null`, `null`},
		{"application/json", "{bad", `"base64":"e2JhZA=="`, "{bad"},
		{"text/plain", "<b>\n\u2028", `"string":"<b>\n\u2028"`, "<b>\n\u2028"},
		{"text/plain", "\x00", `"base64":"AA=="`, "\x00"},
		{"text/plain", "\xff", `"base64":"/w=="`, "\xff"},
		{"", "x", `"string":"x"`, "x"},
		{"application/json", "", "", ""},
	} {
		b := jsonCodec{}.append(nil, &frame{Type: frameMsg, Media: c.media, Data: []byte(c.data)})
		assert.Contains(t, string(b), c.want)
		assert.Equal(t, 1, bytes.Count(b, []byte("\n")), "%s", b)
		var f frame
		_, err := jsonCodec{}.next(b, &f)
		require.NoError(t, err)
		assert.Equal(t, c.back, string(f.Data))
	}
}

func FuzzBinary(f *testing.F) { fuzz(f, binaryCodec{}) }

func FuzzJSON(f *testing.F) { fuzz(f, jsonCodec{}) }

// fuzz checks that nothing makes a codec fail but with an error, and that what
// was read can be written and read again.
func fuzz(f *testing.F, c codec) {
	for typ := frameHello; typ < frameEnd; typ++ {
		f.Add(c.append(nil, &frame{
			Type: typ, Rid: 300, Sid: 2, Count: 3, Topic: "t", Group: "g", ID: "id", Key: "k", Media: "application/json",
			Data: []byte(`{"a":[1]}`), Header: map[string]string{"a": "b"}, Ns: []uint64{1, 2}, Time: time.Unix(1, 5),
			Pos: transport.Position{Hi: 1, Lo: 2}, At: []transport.Position{{Hi: 3, Lo: 4}}, Token: "x", Code: 404, From: 5,
		}))
	}
	f.Fuzz(func(t *testing.T, batch []byte) {
		for len(batch) > 0 {
			var got, again frame
			rest, err := c.next(batch, &got)
			if err != nil {
				return
			}
			if len(rest) >= len(batch) {
				t.Fatal("nothing was taken off")
			}
			batch = rest
			if got.Type == 0 {
				continue
			}
			b := c.append(nil, &got)
			if _, err := c.next(b, &again); err != nil {
				t.Fatalf("%+v was written as %q, which cannot be read: %v", got, b, err)
			}
			if b2 := c.append(nil, &again); !bytes.Equal(b, b2) {
				t.Fatalf("%q, read and written: %q", b, b2)
			}
		}
	})
}
