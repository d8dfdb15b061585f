// Command bench compares echo with its peers, side by side in one run.
//
//	go run . -suite memory -quick
//
// Every case runs ours and the peer's by turns, several rounds of each, and
// prints the ratio of the medians: how many times less time a message takes
// with ours. A message counts when its handler has returned and it is
// acknowledged, on both sides.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	suite := flag.String("suite", "memory", "which comparison to run: memory")
	quick := flag.Bool("quick", false, "fewer rounds, done within 50 s")
	page := flag.String("o", "", "write the table and a chart (.svg beside it) into this Markdown page")
	flag.Parse()
	if err := run(os.Stdout, *suite, *quick, *page); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, suite string, quick bool, page string) error {
	plan := plan{rounds: 15, round: 500e6, pace: 5e9}
	if quick {
		plan.rounds, plan.round, plan.pace = 11, 120e6, 1.5e9
	}
	var r *report
	var err error
	switch suite {
	case "memory":
		r, err = memory(w, plan)
	default:
		return fmt.Errorf("no suite %q; there is: memory", suite)
	}
	if err != nil {
		return err
	}
	r.print(w)
	if page != "" {
		return r.write(page)
	}
	return nil
}
