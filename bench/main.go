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
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.suite, "suite", "memory", "the `name` of the comparison; there is: memory")
	flag.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds, done within 50 s in place of 5 min,\nand no tuned peers")
	flag.StringVar(&o.page, "o", "", "write the results to this Markdown `file` too, with a chart\nbeside it, such as ../docs/performance.md")
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
	if o.suite != "memory" {
		return fmt.Errorf("no suite %q; there is: memory", o.suite)
	}
	if o.page != "" { // learn now, not in minutes, that it cannot be written
		if err := os.MkdirAll(filepath.Dir(o.page), 0o777); err != nil {
			return err
		}
	}
	r := &report{suite: o.suite, command: o.command, plan: newPlan(o.quick), machine: thisMachine()}
	if err := memory(w, r); err != nil {
		return err
	}
	r.print(w)
	if o.page == "" {
		return nil
	}
	return r.write(o.page)
}

func newPlan(quick bool) plan {
	if quick {
		return plan{rounds: 11, round: 150 * time.Millisecond, pace: 1500 * time.Millisecond, budget: 40 * time.Second}
	}
	return plan{rounds: 15, round: 500 * time.Millisecond, pace: 5 * time.Second, budget: 5 * time.Minute, tuned: true}
}
