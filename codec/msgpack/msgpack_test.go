package msgpack

import (
	"bytes"
	"context"
	"math"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/echobus/echo"
)

type order struct {
	ID    string
	Lines []line
	Tags  map[string]string
	At    time.Time
	Raw   []byte
	Total float64
}

type line struct {
	SKU string
	N   int64
}

func TestValuesArriveAsTheyWere(t *testing.T) {
	want := order{
		ID: "o-1", Lines: []line{{"a", 1}, {"b", math.MinInt64}}, Tags: map[string]string{"x": strings.Repeat("y", 300)},
		At: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC), Raw: []byte{0, 1, 0xc1}, Total: 12.5,
	}
	ctx := t.Context()
	bus := echo.New(echo.WithCodec(Codec))
	defer bus.Close(context.Background())
	topic := echo.NewTopic[order]("orders")
	c, err := echo.Subscribe(ctx, bus, topic)
	require.NoError(t, err)
	require.NoError(t, echo.NewProducer(bus, topic).Publish(ctx, want))
	for m, err := range c.Messages(ctx) {
		require.NoError(t, err)
		m.Value.At = m.Value.At.UTC()
		assert.Equal(t, want, m.Value)
		break
	}
}

func TestHostileDataIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"an array of four billion in five bytes":    {[]byte{0xdd, 0xff, 0xff, 0xff, 0xff}, errTruncated},
		"a map of four billion in five bytes":       {[]byte{0xdf, 0xff, 0xff, 0xff, 0xff}, errTruncated},
		"a string of four gigabytes":                {[]byte{0xdb, 0xff, 0xff, 0xff, 0xff, 'a'}, errTruncated},
		"binary data of four gigabytes":             {[]byte{0xc6, 0xff, 0xff, 0xff, 0xff}, errTruncated},
		"an extension of four gigabytes":            {[]byte{0xc9, 0xff, 0xff, 0xff, 0xff, 1}, errExtension},
		"an unknown extension":                      {[]byte{0xd4, 1, 0}, errExtension},
		"an extension that hides a map":             {[]byte{0xd7, 1, 0xdf, 0xff, 0xff, 0xff, 0xff, 0, 0, 0}, errExtension},
		"a timestamp of no such nanosecond":         {[]byte{0xc7, 12, 0xff, 0xdf, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0}, errExtension},
		"a timestamp that is cut off":               {[]byte{0xd7, 0xff, 0xdf, 0xff, 0xff, 0xff}, errTruncated},
		"a length that is cut off":                  {[]byte{0xdc, 0x01}, errTruncated},
		"half a number":                             {[]byte{0xcf, 1, 2, 3}, errTruncated},
		"no value":                                  {nil, errTruncated},
		"a map without its last value":              {[]byte{0x81, 0xa1, 'a'}, errTruncated},
		"nesting as deep as a message is long":      {bytes.Repeat([]byte{0x91}, 1<<20), errDeep},
		"nesting one deeper than allowed":           {append(bytes.Repeat([]byte{0x91}, maxDepth+1), 0xc0), errDeep},
		"the byte that means nothing":               {[]byte{0xc1}, errInvalid},
		"the byte that means nothing, in a map key": {[]byte{0x81, 0xc1, 0xc0}, errInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocated()
			for _, v := range []any{new(any), new([]int64), new(map[string]any), new(string)} {
				assert.ErrorIs(t, Codec.Decode(c.data, v), c.want)
			}
			assert.Less(t, allocated()-before, uint64(1<<20), "bytes allocated")
		})
	}
	assert.ErrorContains(t, Codec.Decode([]byte{0xc0, 0xc0}, new(any)), "after the value")
	assert.NoError(t, Codec.Decode(append(bytes.Repeat([]byte{0x91}, maxDepth), 0xc0), new(any)), "nesting as deep as allowed")
}

// The library takes an extension where it expects a map for the map. This
// timestamp of 1970 made it allocate a map of four billion entries.
func TestTimestampsHideNoMaps(t *testing.T) {
	data := []byte{0xd7, 0xff, 0xdf, 0xff, 0xff, 0xfc, 0, 0, 0, 1}
	_, err := checked(data)
	require.NoError(t, err, "a timestamp")
	for _, v := range []any{new(map[string]any), new(map[any]any), new(map[string]string)} {
		before := allocated()
		assert.Error(t, Codec.Decode(data, v))
		assert.Less(t, allocated()-before, uint64(1<<20), "bytes allocated for a %T", v)
	}
}

// Times arrive whatever their bytes look like.
func TestTimesArrive(t *testing.T) {
	for _, nanos := range []int{0, 1, 540_000_000, 939_000_000, 999_999_999} {
		for _, sec := range []int64{0, 1, 1 << 31, 0xdf << 24, 1 << 33, 1 << 35, -1} {
			want := map[string]any{"at": time.Unix(sec, int64(nanos)), "then": "x"}
			data, err := Codec.Encode(want)
			require.NoError(t, err)
			got := map[string]any{}
			require.NoError(t, Codec.Decode(data, &got))
			assert.True(t, want["at"].(time.Time).Equal(got["at"].(time.Time)), "got %v, want %v", got, want)
			assert.Equal(t, "x", got["then"])
		}
	}
}

func TestPanicsOfTheLibraryAreErrors(t *testing.T) {
	assert.ErrorContains(t, Codec.Decode([]byte("\x96\xc0\xc0\xc0\xc0\x00\x00"), new(order)), "panicked")
}

func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	var deep any
	for range maxDepth + 1 {
		deep = []any{deep}
	}
	_, err := Codec.Encode(deep)
	assert.ErrorIs(t, err, errDeep)
}

// allocated returns how many bytes were ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// What the library encodes passes the walk, and what passes it makes the
// library allocate no more than its size allows.
func FuzzWalk(f *testing.F) {
	seed, _ := msgpack.Marshal(order{ID: "o", Lines: []line{{"a", 1}}, Tags: map[string]string{"a": "b"}, At: time.Unix(1, 2)})
	f.Add(seed)
	f.Add([]byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x81, 0xa1, 'a', 0xc7, 1, 5, 0})
	f.Add([]byte{0xd6, 0xff, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := allocated()
		_, err := checked(data)
		ok := err == nil
		for _, v := range []any{new(any), new(order), new([]order), new(map[string]int), new(map[string]any)} {
			if err := Codec.Decode(data, v); err == nil {
				if !ok {
					t.Fatalf("decoded %x, which the walk refuses", data)
				}
				again, err := Codec.Encode(v)
				if err != nil {
					t.Fatalf("%x decoded to %v, which cannot be encoded: %v", data, v, err)
				}
				if _, err := checked(again); err != nil {
					t.Fatalf("the encoding %x of %v: %v", again, v, err)
				}
			}
		}
		if spent := allocated() - before; spent > 1<<20+uint64(len(data))*4096 {
			t.Fatalf("%d bytes made the decoder allocate %d", len(data), spent)
		}
	})
}
