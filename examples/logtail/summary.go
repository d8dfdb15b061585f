package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// summary counts what the workers parsed and draws it while it changes.
type summary struct {
	size  int64 // of the log, 0 when it is not known
	live  bool  // standard output is a terminal
	begin time.Time
	bytes atomic.Int64 // read

	mu    sync.Mutex // guards the rest
	seen  int
	kinds map[string]int
	drawn time.Time
	want  int
	all   chan struct{}
}

// Kinds beyond these are counted together, so that no log fills the memory.
const maxKinds = 1000

func (s *summary) read(n int) { s.bytes.Add(int64(n)) }

func (s *summary) add(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.kinds[kind]; !known && len(s.kinds) >= maxKinds {
		kind = "(other)"
	}
	s.kinds[kind]++
	s.seen++
	if now := time.Now(); s.live && now.Sub(s.drawn) > 100*time.Millisecond {
		s.drawn = now
		fmt.Fprintf(os.Stdout, "\r\x1b[K%s", s.bar())
	}
	s.check()
}

// reached returns a channel that is closed when n lines were seen.
func (s *summary) reached(n int) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(chan struct{})
	s.want, s.all = n, all
	s.check()
	return all
}

func (s *summary) check() {
	if s.all != nil && s.seen >= s.want {
		close(s.all)
		s.all = nil
	}
}

// bar is the line that is drawn: how far, how fast, and mostly what.
func (s *summary) bar() string {
	rate := float64(s.seen) / max(time.Since(s.begin).Seconds(), 0.001)
	progress := "reading"
	if s.size > 0 {
		const width = 24
		part := min(float64(s.bytes.Load())/float64(s.size), 1)
		full := int(part * width)
		progress = fmt.Sprintf("[%s%s] %3.0f%%", strings.Repeat("#", full), strings.Repeat("·", width-full), 100*part)
	}
	var line strings.Builder
	fmt.Fprintf(&line, "%s  %d lines  %.0f/s ", progress, s.seen, rate)
	for _, k := range s.top(2) {
		fmt.Fprintf(&line, " %s %d", k, s.kinds[k])
	}
	return line.String()
}

// top returns the n most frequent kinds.
func (s *summary) top(n int) []string {
	kinds := slices.SortedFunc(maps.Keys(s.kinds), func(a, b string) int {
		return cmp.Or(s.kinds[b]-s.kinds[a], strings.Compare(a, b))
	})
	return kinds[:min(n, len(kinds))]
}

// print writes the counts.
func (s *summary) print(w io.Writer, r *reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live {
		fmt.Fprintf(w, "\r\x1b[K%s\n", s.bar())
	}
	for _, k := range s.top(10) {
		fmt.Fprintf(w, "%8d %s\n", s.kinds[k], k)
	}
	if n := len(s.kinds) - 10; n > 0 {
		fmt.Fprintf(w, "         and %d other kinds\n", n)
	}
	if r.shortened > 0 {
		fmt.Fprintf(w, "%d lines were longer than %d bytes; their beginnings were parsed\n", r.shortened, maxLine)
	}
	if r.partial {
		fmt.Fprintln(w, "the last line has no newline; wc -l does not count it")
	}
	fmt.Fprintf(w, "lines published %d, parsed and seen %d, wc -l %d\n", r.lines, s.seen, r.newlines)
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
