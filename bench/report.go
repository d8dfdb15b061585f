package main

import (
	"fmt"
	"io"
)

type report struct{ results []result }

func newReport(a, b string, p plan) *report              { return &report{} }
func (r *report) latencies(p plan, a, b contender) error { return nil }
func (r *report) write(p string) error                   { return nil }
func (r *report) print(w io.Writer) {
	for _, x := range r.results {
		fmt.Fprintf(w, "%-35s %8.0f %8.0f  %.2f %v\n", x.name, x.oursNS, x.peerNS, x.ratio, x.spread)
	}
}
