// Command bench compares echo with its peers, side by side in one run.
//
//	go run . -suite memory -quick
//
// Every case runs ours and the peer's by turns, several rounds of each, and
// prints the median of the rounds' ratios: how many times less time a message
// takes with ours. A message counts when its handler has returned and it is
// acknowledged, on both sides.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	var o options
	flag.StringVar(&o.suite, "suite", "memory", "the `name` of the comparison: "+suiteNames())
	flag.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds, done within about a minute in place of\n5 or 6, and no tuned peers")
	flag.StringVar(&o.page, "o", "", "write the results to this Markdown `file` too, with a chart\nbeside it, such as ../docs/"+memorySuite.page+" or ../docs/"+redisSuite.page+"\nor ../docs/"+wsSuite.page)
	flag.Usage = usage
	flag.Parse()
	o.command = strings.Join(append([]string{"go", "run", "."}, os.Args[1:]...), " ")
	if err := run(os.Stdout, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprint(flag.CommandLine.Output(), `Bench compares echo with its peers, side by side in one run.

	go run . [flags]

It prints its progress, tables of the results, and for each case a line

	RATIO <case> <x>

which says that a message takes x times less time with echo than with the peer.
The suite redis needs a redis-server to start. It also prints lines

	IDLE <subscription> <x>

which say how many commands per second a subscription without messages sends. The
suite ws prints a line SLOW, how many times longer messages take when some sockets
are slow. The suite policy compares echo with itself, without policies, and prints lines
LATE, how late delayed messages are. The suite flow compares flows with the same work written
by hand, and prints what a step of a sequence costs.

`)
	flag.PrintDefaults()
}

type options struct {
	suite   string
	quick   bool
	page    string
	command string // what was run, for the page
}

func run(w io.Writer, o options, rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("arguments %q: there are only flags", rest)
	}
	i := slices.IndexFunc(suites, func(s suite) bool { return s.name == o.suite })
	if i < 0 {
		return fmt.Errorf("no suite %q; there are: %s", o.suite, suiteNames())
	}
	s := suites[i]
	if o.page != "" { // learn now, not in minutes, that it cannot be written
		if err := os.MkdirAll(filepath.Dir(o.page), 0o777); err != nil {
			return err
		}
	}
	r := &report{suite: s, plan: s.full, command: o.command, machine: thisMachine(s.peers)}
	if o.quick {
		r.plan = s.quick
	}
	if err := s.measure(w, r); err != nil {
		return err
	}
	r.print(w)
	if o.page == "" {
		return nil
	}
	return r.write(o.page)
}

// suite is comparisons that belong together.
type suite struct {
	name        string
	page        string // what it is called in docs
	title       string // of the page
	heading     string // of the ratios on it
	chart       string // what its chart shows
	peers       []peer
	quick, full plan
	measure     func(io.Writer, *report) error // tells its progress and fills in the report
	method      func(plan) string              // says how the ratios were measured
}

// peer is a module whose version goes on the page.
type peer struct{ name, module string }

var suites = []suite{memorySuite, redisSuite, wsSuite, policySuite, flowSuite}

func suiteNames() string {
	names := make([]string, len(suites))
	for i, s := range suites {
		names[i] = s.name
	}
	return strings.Join(names, " or ")
}
