package redisstream_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/redisstream"
	"github.com/echobus/echo/transport"
)

// script is a server that answers as a test says.
type script struct {
	l       net.Listener
	answer  func(args []string) string // "" means: what a good server would
	serving sync.WaitGroup

	mu   sync.Mutex
	seen [][]string
}

func scripted(t *testing.T, answer func(args []string) string) *script {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &script{l: l, answer: answer}
	s.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.serving.Go(func() {
				defer c.Close()
				s.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.serving.Wait()
	})
	return s
}

func (s *script) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		args, err := request(r)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, args)
		s.mu.Unlock()
		reply := s.answer(args)
		if reply == "" {
			reply = fine(args)
		}
		if err := say(c, reply); err != nil {
			return
		}
		if strings.HasSuffix(reply, "…") { // the rest never comes
			return
		}
	}
}

// request reads a command.
func request(r *bufio.Reader) (args []string, err error) {
	number := func(kind byte) (int, error) {
		line, err := r.ReadString('\n')
		if err != nil || line[0] != kind {
			return 0, fmt.Errorf("got %q: %w", line, err)
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number('*')
	for ; n > 0 && err == nil; n-- {
		var k int
		if k, err = number('$'); err != nil {
			break
		}
		b := make([]byte, k+2)
		if _, err = io.ReadFull(r, b); err == nil {
			args = append(args, string(b[:k]))
		}
	}
	return args, err
}

// fine is what a server with an empty stream answers.
func fine(args []string) string {
	switch strings.ToUpper(args[0]) {
	case "PING":
		return "+PONG\r\n"
	case "HELLO":
		return "-ERR unknown command 'HELLO'\r\n"
	case "XADD":
		return "$3\r\n1-1\r\n"
	case "CLIENT":
		return ":7\r\n"
	case "COMMAND":
		return "*1\r\n*-1\r\n"
	case "EVALSHA", "EVAL":
		return "*6\r\n:-1\r\n:0\r\n:0\r\n*0\r\n*0\r\n*0\r\n"
	case "XREADGROUP", "XREAD":
		time.Sleep(20 * time.Millisecond)
		return "*-1\r\n"
	case "XINFO":
		return "-ERR no such key\r\n"
	case "XACK":
		return ":1\r\n"
	}
	return "+OK\r\n"
}

func (s *script) options() *redis.Options { return &redis.Options{Addr: s.l.Addr().String()} }

func (s *script) commands(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, args := range s.seen {
		if strings.EqualFold(args[0], name) {
			n++
		}
	}
	return n
}

// A server that answers nonsense makes errors: no panic, no memory for what it
// only announces, no storm of commands.
func TestHostileServer(t *testing.T) {
	for what, reply := range map[string]string{
		"wrong type":           ":5\r\n",
		"status":               "+OK\r\n",
		"two streams":          "*2\r\n*2\r\n$1\r\na\r\n*0\r\n*2\r\n$1\r\nb\r\n*0\r\n",
		"no entries":           "*1\r\n*2\r\n$1\r\nt\r\n$1\r\nx\r\n",
		"an id that is none":   "*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*2\r\n$2\r\nxx\r\n*0\r\n",
		"a nil id":             "*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*2\r\n$-1\r\n*0\r\n",
		"five elements":        "*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*5\r\n$3\r\n1-1\r\n*0\r\n:1\r\n:2\r\n$1\r\nx\r\n",
		"more than asked for":  "*1\r\n*2\r\n$1\r\nt\r\n*200\r\n" + strings.Repeat("*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nm\r\n$11\r\n1 1 1 a b\nx\r\n", 200),
		"negative length":      "*1\r\n*2\r\n$-5\r\nt\r\n…",
		"negative array":       "*-7\r\n…",
		"a gigabyte announced": "$1073741824\r\nabc…",
		"an exabyte announced": "$1152921504606846976\r\nabc…",
		"a billion elements":   "*1000000000\r\n:1\r\n…",
		"deep":                 strings.Repeat("*1\r\n", 10_000) + ":1\r\n",
		"bottomless":           strings.Repeat("*1\r\n", 8_000_000),
		"cut off":              "*1\r\n*2\r\n$1\r\nt\r\n*1\r\n*2\r\n$3\r\n1-…",
		"garbage":              "\x00\xff\r\n…",
		"an error of no kind":  "-\r\n",
	} {
		for _, command := range []string{"XREADGROUP", "XREAD", "EVALSHA", "XADD", "XINFO"} {
			t.Run(command+" "+what, func(t *testing.T) {
				server := scripted(t, func(args []string) string {
					if strings.ToUpper(args[0]) == command {
						return reply
					}
					return ""
				})
				tr := open(t, server.options(), redisstream.WithSendTimeout(100*time.Millisecond))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
				defer cancel()
				if command == "XADD" {
					_, err := tr.Send(ctx, "t", []transport.Message{message("a"), message("b")})
					assert.Error(t, err)
				} else {
					group := "g"
					if command == "XREAD" || command == "XINFO" {
						group = ""
					}
					s, err := tr.Subscribe(ctx, "t", transport.Options{Group: group})
					if err == nil {
						defer s.Close()
						n, err := s.Receive(ctx, make([]transport.Message, 8))
						if n == 0 {
							assert.Error(t, err)
						}
					}
				}
				runtime.ReadMemStats(&after)
				assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
				assert.Less(t, server.commands(command), 40, "no storm")
			})
		}
	}
}

// On a server that knows idempotent producers, a message that is sent again is
// marked so that it is stored once; on others it is not.
func TestIdempotentProducers(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprint(known), func(t *testing.T) {
			adds := 0
			server := scripted(t, func(args []string) string {
				switch {
				case args[0] == "COMMAND" && known:
					return "*1\r\n*2\r\n$7\r\nxcfgset\r\n:-2\r\n"
				case args[0] == "XADD":
					if adds++; adds == 1 {
						return "…" // the connection ends without a reply
					}
				}
				return ""
			})
			tr := open(t, server.options(), redisstream.WithResend(1))
			n, err := tr.Send(t.Context(), "t", []transport.Message{message("m-1")})
			require.NoError(t, err)
			require.Equal(t, 1, n)
			server.mu.Lock()
			defer server.mu.Unlock()
			var marks []string
			for _, args := range server.seen {
				if args[0] == "XADD" {
					marks = append(marks, strings.Join(args[2:5], " "))
				}
			}
			require.Len(t, marks, 2)
			for _, m := range marks {
				if known {
					assert.Regexp(t, "^IDMP [^ ]+ m-1$", m)
				} else {
					assert.Regexp(t, `^\* m `, m)
				}
			}
			assert.Equal(t, marks[0][:10], marks[1][:10], "the same producer both times")
		})
	}
}

// say writes a reply piece by piece, so that a large one costs no memory of ours.
func say(c io.Writer, reply string) error {
	for len(reply) > 0 {
		n := min(len(reply), 4096)
		if _, err := io.WriteString(c, reply[:n]); err != nil {
			return err
		}
		reply = reply[n:]
	}
	return nil
}
