package faultproxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// eachSplit calls f with b in pieces of every size.
func eachSplit(b string, f func(pieces []string)) {
	for size := 1; size <= len(b); size++ {
		var pieces []string
		for rest := b; rest != ""; {
			n := min(size, len(rest))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		f(pieces)
	}
}

func bulks(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}

func TestRequestsAreFoundHoweverTheyAreSplit(t *testing.T) {
	stream := bulks("PING") + bulks("xadd", "s", "*", "f", "a\r\n*1\r\n") + "\r\nget  k\r\n" + "*0\r\n" + "  \r\n" +
		bulks("SET", "", strings.Repeat("x", 300)) + "ping\n" + bulks("XGROUP", "create")
	want := []string{"PING ", "XADD S", "GET K", "SET ", "PING ", "XGROUP CREATE"}
	eachSplit(stream, func(pieces []string) {
		var r requests
		var names, ends []string
		for _, piece := range pieces {
			for b := []byte(piece); len(b) > 0; {
				n, found := r.next(b)
				b = b[n:]
				switch text := r.command[0] + " " + r.command[1]; found {
				case named:
					names = append(names, text)
				case ended:
					ends = append(ends, text)
					require.Equal(t, names, ends, "a name comes before its end")
				}
			}
		}
		require.Equal(t, want, ends)
		require.False(t, r.opaque)
	})
}

func TestRepliesAreFoundHoweverTheyAreSplit(t *testing.T) {
	replies := []string{
		"+OK\r\n", "-ERR no\r\n", ":12\r\n", "$-1\r\n", "$0\r\n\r\n", "$4\r\na\r\nb\r\n", "*-1\r\n", "*0\r\n",
		"*2\r\n*1\r\n$1\r\na\r\n*0\r\n", "*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nf\r\n$-1\r\n",
		"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n", "~1\r\n#t\r\n", ",1.5\r\n", "(123\r\n", "=5\r\ntxt:a\r\n", "!2\r\nno\r\n",
		"|1\r\n+ttl\r\n:1\r\n*1\r\n:2\r\n",
	}
	// After every reply comes a message that is none.
	stream := strings.Join(replies, ">2\r\n+message\r\n$1\r\na\r\n")
	eachSplit(stream, func(pieces []string) {
		var r parsedReplies
		for _, piece := range pieces {
			r.read(piece)
		}
		require.Equal(t, replies, r.whole)
		require.False(t, r.parser.opaque)
	})
}

// parsedReplies collects replies.
type parsedReplies struct {
	parser  replies
	present strings.Builder
	inside  bool
	whole   []string
}

func (r *parsedReplies) read(piece string) {
	for b := []byte(piece); len(b) > 0; {
		n, found := r.parser.next(b)
		if r.inside {
			r.present.Write(b[:n])
		}
		b = b[n:]
		switch found {
		case began:
			r.inside = true
		case ended:
			r.whole = append(r.whole, r.present.String())
			r.present.Reset()
			r.inside = false
		}
	}
}

func TestWhatIsNotRESPIsLeftAlone(t *testing.T) {
	for _, text := range []string{"\x16\x03\x01", "*x\r\n", "*1\r\n+a\r\n", "*1\r\n$99999999999999999999\r\n", strings.Repeat("x", maxLine+1)} {
		var r requests
		n, found := r.next([]byte(text))
		require.Equal(t, len(text), n, "%.20q", text)
		require.Equal(t, nothing, found, "%.20q", text)
		require.True(t, r.opaque, "%.20q", text)
	}
	for _, text := range []string{"\x16\x03\r\n", "\r\n", "$?\r\n", "*9223372036854775807\r\n"} {
		var r replies
		_, found := r.next([]byte(text))
		require.Equal(t, began, found, "%q", text)
		n, found := r.next([]byte(text))
		require.Equal(t, len(text), n, "%q", text)
		require.Equal(t, nothing, found, "%q", text)
		require.True(t, r.opaque, "%q", text)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add([]byte("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"), uint(1))
	f.Add([]byte("*2\r\n$-1\r\n|1\r\n+a\r\n:1\r\n+b\r\n"), uint(3))
	f.Fuzz(func(t *testing.T, b []byte, size uint) {
		var up requests
		var down replies
		for _, next := range []func([]byte) (int, event){up.next, down.next} {
			calls := 0
			for rest := b; len(rest) > 0; {
				n, _ := next(rest[:min(len(rest), int(size%64)+1)])
				rest = rest[n:]
				if calls++; calls > 3*len(b)+3 {
					t.Fatal("the parser does not advance")
				}
			}
		}
	})
}
