package redisstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/transport"
)

// asReply is what a server answers to a read of a stream with one entry, made
// of the fields of an XADD.
func asReply(id string, fields []any) []byte {
	var b bytes.Buffer
	bulk := func(s string) { fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(s), s) }
	b.WriteString("*1\r\n*2\r\n")
	bulk("echo:{t}")
	b.WriteString("*1\r\n*2\r\n")
	bulk(id)
	fmt.Fprintf(&b, "*%d\r\n", len(fields))
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			bulk(f)
		case []byte:
			bulk(string(f))
		default:
			panic(fmt.Sprintf("a field of type %T", f))
		}
	}
	return b.Bytes()
}

// fieldsOf are the names and values that a format makes of a message.
func fieldsOf(f format, m *transport.Message) ([]any, error) {
	var x xadds
	if err := f.fields(&x, m); err != nil {
		return nil, err
	}
	x.ends = []int{len(x.args)}
	var fields []any
	x.seal(context.Background())
	for _, arg := range x.cmds[0].Args() {
		switch arg := arg.(type) {
		case *string:
			fields = append(fields, *arg)
		case *piece:
			fields = append(fields, string(*arg))
		}
	}
	return fields, nil
}

// readBack reads a reply with one entry.
func readBack(t testing.TB, f format, reply []byte) (transport.Message, error) {
	c := cursor{reply}
	n, err := c.stream()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	tr := &Transport{cfg: config{format: f}}
	var bad error
	dst := make([]transport.Message, 1)
	_, err = tr.messages(&c, n, dst, func(_ *entry, err error) { bad = err })
	require.NoError(t, err)
	require.Empty(t, c.rest)
	return dst[0], bad
}

func FuzzMessageSurvivesItsEntry(f *testing.F) {
	f.Add("id-1", int64(1767225600000000001), "application/json; version=2", []byte(`{"a":1}`), "key", "traceparent", "00-abc")
	f.Add("", int64(-1), "", []byte{}, "", "", "")
	f.Add("\r\n*1\r\n", int64(0), "$5", []byte("\x00\xff"), "a:b{c}", "a=b&c", "\xff\r\n")
	f.Fuzz(func(t *testing.T, id string, ns int64, typ string, data []byte, key, name, value string) {
		want := transport.Message{ID: id, Time: time.Unix(0, ns).UTC(), Type: typ, Data: data, Key: key}
		if name != "" || value != "" {
			want.Header = map[string]string{name: value}
		}
		fields, err := fieldsOf(native{}, &want)
		require.NoError(t, err)
		got, err := readBack(t, native{}, asReply("1526919030474-55", fields))
		require.NoError(t, err)
		require.Equal(t, transport.Position{Hi: 1526919030474, Lo: 55}, got.Position)
		require.True(t, got.Time.Equal(want.Time))
		require.True(t, bytes.Equal(got.Data, want.Data))
		require.True(t, maps.Equal(got.Header, want.Header))
		require.Equal(t, []string{want.ID, want.Type, want.Key}, []string{got.ID, got.Type, got.Key})
	})
}

// FuzzReplies feeds replies to everything that reads them. It must neither
// panic nor allocate for more than is there.
func FuzzReplies(f *testing.F) {
	fields, _ := fieldsOf(native{}, &transport.Message{ID: "a", Data: []byte("b"), Time: time.Now()})
	good := asReply("1-2", fields)
	f.Add(good)
	f.Add([]byte("*-1\r\n"))
	f.Add([]byte("*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*2\r\n$3\r\n1-2\r\n*-1\r\n")) // deleted
	f.Add([]byte("*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*4\r\n$3\r\n1-2\r\n*-1\r\n:5\r\n:6\r\n"))
	f.Add([]byte("*1000000000\r\n"))
	f.Add([]byte("*1\r\n$1000000000\r\n"))
	f.Add([]byte("*6\r\n:-1\r\n:0\r\n:3\r\n*1\r\n$3\r\n1-2\r\n*1\r\n:4\r\n*1\r\n*2\r\n$3\r\n1-2\r\n*0\r\n"))
	f.Fuzz(func(t *testing.T, reply []byte) {
		tr := &Transport{cfg: defaults()}
		for _, fm := range []format{native{}, crystal{}} {
			tr.cfg.format = fm
			c := cursor{reply}
			if n, err := c.stream(); err == nil {
				dst := make([]transport.Message, min(n, 100))
				if _, err := tr.messages(&c, n, dst, func(*entry, error) {}); err != nil && !errors.Is(err, errMalformed) {
					t.Errorf("error %v does not say that the reply is malformed", err)
				}
			} else if !errors.Is(err, errMalformed) {
				t.Errorf("error %v does not say that the reply is malformed", err)
			}
		}
		s := &member{t: tr, group: &group{t: tr}}
		c := cursor{reply}
		if n, err := c.array(); err == nil && n == 6 {
			c.integer()
			c.integer()
			c.integer()
			s.attempts(&c)
		}
	})
}

func TestEntriesThatAreNoMessages(t *testing.T) {
	whole := []any{"m", "1 1 10 a text/plain\nx"}
	with := func(name string, value any) []any {
		fields := append([]any{}, whole...)
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == name {
				fields[i+1] = value
				return fields
			}
		}
		return append(fields, name, value)
	}
	for _, c := range []struct {
		fields []any
		says   string
	}{
		{nil, "it has no field m"},
		{[]any{"data", "x"}, "it has no field m"},
		{with("m", ""), `field m: "" is not`},
		{with("m", "noon 1 1 a b\nx"), "field m: "},
		{with("m", "1 2 1 a b\nx"), "field m: "},
		{with("m", "1 1 2 a b\nx"), "field m: "},
		{with("m", "1 99999999999999999999999 1 a b\nx"), "field m: "},
		{with("m", "1 18446744073709551615 18446744073709551615 a b\nx"), "field m: "},
		{with("m", "1 1 1 a b"), "field m: "},
		{with("m", "1 1 1 a"), "field m: "},
		{with("head", "%zz"), "field head: "},
		{with("head", "a=1&a=2"), `field head has the header "a" 2 times`},
		{with("v", "2"), `field v: version "2" of the format is not known`},
	} {
		_, err := readBack(t, native{}, asReply("1-1", c.fields))
		assert.ErrorContains(t, err, c.says)
	}
	for _, fine := range [][]any{whole, with("v", "1"), with("colour", "blue"), with("m", "1 0 0  \n")} {
		_, err := readBack(t, native{}, asReply("1-1", fine))
		assert.NoError(t, err)
	}
}

func TestCrystalFormat(t *testing.T) {
	m := transport.Message{ID: "7c9e6679-7425-40de-944b-e07fc1f90ae7", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Type: "application/json", Data: []byte(` {"name":"World","n":[1]} `)}
	fields, err := fieldsOf(crystal{}, &m)
	require.NoError(t, err)
	require.Len(t, fields, 2)
	require.Equal(t, "payload", fields[0])
	data, err := base64.URLEncoding.DecodeString(fields[1].(string))
	require.NoError(t, err)
	require.JSONEq(t, `{"_id":"7c9e6679-7425-40de-944b-e07fc1f90ae7","_time":"2026-01-02T03:04:05Z","name":"World","n":[1]}`, string(data))

	got, err := readBack(t, crystal{}, asReply("5-0", fields))
	require.NoError(t, err)
	require.Equal(t, m.ID, got.ID)
	require.True(t, m.Time.Equal(got.Time))

	// As the shard writes it: padding and all, members in its order, a local offset.
	theirs := base64.URLEncoding.EncodeToString([]byte(`{"name":"??>>","_id":"x","_time":"2026-01-02T05:04:05+02:00"}`))
	got, err = readBack(t, crystal{}, asReply("5-1", []any{"payload", theirs}))
	require.NoError(t, err)
	require.Equal(t, "x", got.ID)
	require.True(t, m.Time.Equal(got.Time))

	empty := transport.Message{ID: "a", Data: []byte("{}")}
	fields, err = fieldsOf(crystal{}, &empty)
	require.NoError(t, err)
	_, err = readBack(t, crystal{}, asReply("5-2", fields))
	require.NoError(t, err)

	for _, bad := range []transport.Message{
		{ID: "a", Data: []byte("{}"), Key: "k"},
		{ID: "a", Data: []byte("{}"), Header: map[string]string{"a": "b"}},
		{ID: "a", Data: []byte("[1]")},
		{ID: "a", Data: []byte("{")},
		{ID: "a"},
	} {
		_, err := fieldsOf(crystal{}, &bad)
		assert.ErrorIs(t, err, errors.ErrUnsupported, "%+v", bad)
	}
	for _, payload := range []string{"", "!!", base64.URLEncoding.EncodeToString([]byte("[]"))} {
		_, err := readBack(t, crystal{}, asReply("5-3", []any{"payload", payload}))
		assert.Error(t, err, payload)
	}
	_, err = readBack(t, crystal{}, asReply("5-4", []any{"other", "x"}))
	assert.ErrorIs(t, err, errForeign)
}

func TestIDs(t *testing.T) {
	for _, good := range []string{"0-0", "1-2", "18446744073709551615-18446744073709551615"} {
		p, err := parseID([]byte(good))
		require.NoError(t, err, good)
		require.Equal(t, good, string(appendID(nil, p)))
	}
	for _, bad := range []string{"", "-", "1", "1-", "-1", "1-2-3", "a-1", "18446744073709551616-0", "1-99999999999999999999999", "+1-1"} {
		_, err := parseID([]byte(bad))
		assert.ErrorIs(t, err, errMalformed, bad)
	}
	assert.Equal(t, transport.Position{Hi: 4, Lo: 1<<64 - 1}, before(transport.Position{Hi: 5}))
	assert.Equal(t, transport.Position{}, before(transport.Position{}))
	var x xadds
	x.ids([]transport.Receipt{{Position: transport.Position{Hi: 1, Lo: 2}}, {Position: transport.Position{Hi: 3, Lo: 4}}})
	require.Len(t, x.args, 2)
	assert.Equal(t, "1-2", string(*x.args[0].(*piece)))
	assert.Equal(t, "3-4", string(*x.args[1].(*piece)))
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]fault{
		"NOGROUP No such key 'echo:{t}' or consumer group 'g' in XREADGROUP with GROUP option":          lostGroup,
		"NOGROUP the consumer group this client was blocked on no longer exists":                        lostGroup,
		"UNBLOCKED the stream key no longer exists":                                                     lostGroup,
		"UNBLOCKED client unblocked via CLIENT UNBLOCK":                                                 refused,
		"ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -NOGROUP No such key": lostGroup,
		"LOADING Redis is loading the dataset in memory":                                                refused,
		"READONLY You can't write against a read only replica.":                                         refused,
		"NOREPLICAS Not enough good replicas to write.":                                                 refused,
		"MASTERDOWN Link with MASTER is down":                                                           refused,
		"CLUSTERDOWN The cluster is down":                                                               refused,
		"TRYAGAIN Multiple keys request during rehashing of slot":                                       refused,
		"OOM command not allowed when used memory > 'maxmemory'.":                                       refused,
		"MISCONF Errors writing to the AOF file: No space left on device":                               refused,
		"ERR max number of clients reached":                                                             refused,
		"WRONGTYPE Operation against a key holding the wrong kind of value":                             rejected,
		"NOPERM this user has no permissions to run the 'xadd' command":                                 rejected,
		"NOAUTH Authentication required.":                                                               rejected,
		"WRONGPASS invalid username-password pair or user is disabled.":                                 rejected,
		"ERR unknown command 'XADD'":                                                                    rejected,
		"MOVED 3999 127.0.0.1:6381":                                                                     moved,
		"ASK 3999 127.0.0.1:6381":                                                                       moved,
	} {
		assert.Equal(t, want, faultOf(describe("XADD", "k", replyError(text))), text)
	}
	assert.Equal(t, ambiguous, faultOf(errors.New("EOF")))
	assert.Equal(t, rejected, faultOf(errMalformed))
	assert.Equal(t, none, faultOf(nil))
}

func TestBackoffGrowsWithJitterUpToABound(t *testing.T) {
	var b backoff
	for i := range 20 {
		d := b.next()
		most := min(firstPause<<i, lastPause)
		if i < 10 {
			assert.GreaterOrEqual(t, d, most/2)
			assert.LessOrEqual(t, d, most)
		}
		assert.LessOrEqual(t, d, lastPause)
	}
}

func TestDialKeepsPasswordsToItself(t *testing.T) {
	for url, says := range map[string]string{
		"redis://user:s3cr%40t@host:1/0?wrong=1":               "wrong",
		"http://user:s3cr%40t@host":                            `scheme "http"`,
		"redis+raft://user:s3cr%40t@host":                      `scheme "redis+raft"`,
		"redis+sentinel://user:s3cr%40t@host:1/0":              "master_name",
		"redis://user:s3cr%40t@ho st":                          "",
		"redis://user:s3cr%40t@host:port":                      "",
		"redis+cluster://user:s3cr%40t@host:1?dial_timeout=xx": "",
		"user:s3cr%40t@host":                                   "does not begin with redis://",
	} {
		_, err := Dial(url)
		require.Error(t, err, url)
		assert.Contains(t, err.Error(), says, url)
		for _, secret := range []string{"s3cr%40t", "s3cr@t"} {
			assert.False(t, strings.Contains(err.Error(), secret), "%s: error %q has the password", url, err)
		}
	}
	for _, url := range []string{"redis://localhost", "rediss://user:pw@host:6380/2?pool_size=7", "unix:///tmp/s",
		"redis+sentinel://a:26379/0?master_name=m&addr=b:26379", "rediss+cluster://a:1?addr=b:1"} {
		c, err := Dial(url)
		require.NoError(t, err, url)
		c.Close()
	}
}

func TestDialEnv(t *testing.T) {
	env := func(kv ...string) func(string) string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return func(k string) string { return m[k] }
	}
	client := func(kv ...string) *redisOptions {
		c, err := dialEnv(env(kv...))
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return optionsOf(c)
	}
	assert.Equal(t, "localhost:6379", client().Addr)
	o := client("REDIS_HOST", "h", "REDIS_PORT", "7", "REDIS_PASSWORD", "p", "REDIS_USERNAME", "u", "REDIS_DB", "3", "REDIS_POOL_SIZE", "4", "REDIS_TIMEOUT", "5")
	assert.Equal(t, redisOptions{"h:7", "u", "p", 3, 4, 5 * time.Second}, *o)
	o = client("REDIS_URL", "redis://u:p@x:9/2", "REDIS_HOST", "not this one", "REDIS_POOL_SIZE", "11")
	assert.Equal(t, redisOptions{"x:9", "u", "p", 2, 11, o.wait}, *o)
	for _, bad := range [][]string{{"REDIS_PORT", "x"}, {"REDIS_DB", "-1"}, {"REDIS_POOL_SIZE", "0"}, {"REDIS_TIMEOUT", "5s"}, {"REDIS_URL", "ftp://u:secret@x"}} {
		_, err := dialEnv(env(bad...))
		require.ErrorContains(t, err, bad[0])
		assert.NotContains(t, err.Error(), "secret")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		opts []Option
		says string
	}{
		{[]Option{WithPrefix("a{b}")}, "WithPrefix"},
		{[]Option{WithPrefix("")}, "WithPrefix"},
		{[]Option{WithName("a b")}, "WithName"},
		{[]Option{WithName("")}, "WithName"},
		{[]Option{WithLease(time.Microsecond)}, "WithLease"},
		{[]Option{WithSendTimeout(0)}, "WithSendTimeout"},
		{[]Option{WithResend(-1)}, "WithResend"},
		{[]Option{WithReplicas(0, time.Second)}, "WithReplicas"},
		{[]Option{WithGroupLost(7)}, "WithGroupLost"},
		{[]Option{WithLogger(nil)}, "WithLogger"},
		{[]Option{WithRetention(Retention{MaxLen: -1})}, "WithRetention"},
		{[]Option{WithRetention(Retention{Unacknowledged: true})}, "WithRetention"},
		{nil, "client is nil"},
	} {
		tr := New(nil, c.opts...)
		require.ErrorContains(t, tr.Err(), c.says)
		n, err := tr.Send(t.Context(), "t", make([]transport.Message, 1))
		assert.Zero(t, n)
		assert.ErrorIs(t, err, transport.ErrNotPublished)
		assert.ErrorContains(t, err, c.says)
		_, err = tr.Subscribe(t.Context(), "t", transport.Options{})
		assert.ErrorContains(t, err, c.says)
		assert.NoError(t, tr.Close())
	}
}
