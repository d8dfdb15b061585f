package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found out.
type report struct {
	suite
	plan     plan
	command  string
	machine  machine
	results  []result
	sections []section
	lines    []string // printed last
}

// section is a table beside that of the ratios.
type section struct {
	heading string // on the page
	caption string // of the printed table
	text    string // on the page, above the table
	table   table
}

// table is a heading and rows of cells; it prints as text and as Markdown.
type table struct {
	head []string
	rows [][]string
}

// print writes the tables and, last, the RATIO lines.
func (r *report) print(w io.Writer) {
	fmt.Fprintln(w)
	resultTable(r.results, result.who).text(w)
	for _, s := range r.sections {
		fmt.Fprintf(w, "\n%s\n\n", s.caption)
		s.table.text(w)
	}
	fmt.Fprintln(w)
	for _, x := range r.results {
		fmt.Fprintf(w, "RATIO %s %.2f\n", x.name, x.ratio)
	}
	for _, l := range r.lines {
		fmt.Fprintln(w, l)
	}
}

func (r result) who() string { return r.ours.name + " / " + r.peer.name }

// resultTable has a row for each case, which compared tells about.
func resultTable(rs []result, compared func(result) string) table {
	t := table{head: []string{"case", "compared", "ours ns/msg", "peer ns/msg", "ratio", "smallest–largest", "rounds"}}
	for _, r := range rs {
		t.rows = append(t.rows, append([]string{r.name, compared(r)}, figures(r)...))
	}
	return t
}

func figures(r result) []string {
	return []string{
		grouped(r.oursNS),
		grouped(r.peerNS),
		fmt.Sprintf("%.2f", r.ratio),
		fmt.Sprintf("%.2f–%.2f", r.spread[0], r.spread[1]),
		strconv.Itoa(r.rounds),
	}
}

func latencyTable(ls []latency) table {
	t := table{head: []string{"who", "load", "due/s", "carried/s", "p50 µs", "p99 µs", "messages"}}
	for _, l := range ls {
		t.rows = append(t.rows, []string{
			l.name,
			l.load,
			grouped(float64(time.Second) / float64(l.gap)),
			grouped(l.carried),
			micros(l.p50),
			micros(l.p99),
			grouped(float64(l.messages)),
		})
	}
	return t
}

func micros(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/1e3) }

// grouped is a number without decimals, its thousands apart.
func grouped(x float64) string {
	s := strconv.FormatFloat(x, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// numeric are the columns, from this one on, that are aligned to the right.
const numeric = 2

func (t table) text(w io.Writer) {
	left := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer left.Flush()
	widths := t.widths()
	for _, row := range append([][]string{t.head}, t.rows...) {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = c
			if i >= numeric {
				cells[i] = fmt.Sprintf("%*s", widths[i], c)
			}
		}
		fmt.Fprintln(left, strings.Join(cells, "\t"))
	}
}

// widths are how many characters the columns need.
func (t table) widths() []int {
	ws := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, c := range row {
			ws[i] = max(ws[i], len([]rune(c)))
		}
	}
	return ws
}

func (t table) markdown(w io.Writer) {
	fmt.Fprintf(w, "| %s |\n|", strings.Join(t.head, " | "))
	for i := range t.head {
		if i < numeric {
			fmt.Fprint(w, "---|")
		} else {
			fmt.Fprint(w, "---:|")
		}
	}
	fmt.Fprintln(w)
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Fprintln(w)
}

// write writes the page, and the chart beside it.
func (r *report) write(page string) error {
	base := strings.TrimSuffix(page, filepath.Ext(page))
	svg := strings.TrimSuffix(base, "-"+r.name) + "-" + r.name + ".svg"
	var text strings.Builder
	r.markdown(&text, filepath.Base(svg))
	if err := os.WriteFile(page, []byte(text.String()), 0o666); err != nil {
		return err
	}
	return os.WriteFile(svg, r.draw(), 0o666)
}

// draw draws what a message takes, ours and the peer's for each case.
func (r *report) draw() []byte {
	c := chart{title: r.chart, note: "less is better; the figure at the right is how many times less time echo takes"}
	for _, x := range r.results {
		c.groups = append(c.groups, group{
			title: x.what,
			note:  fmt.Sprintf("%.2f×", x.ratio),
			bars:  [2]bar{{x.ours.name, x.oursNS}, {x.peer.name, x.peerNS}},
		})
	}
	return c.svg()
}

func (r *report) markdown(w io.Writer, svg string) {
	fmt.Fprintf(w, "# %s\n\n", r.title)
	fmt.Fprintf(w, "What a message costs with echo and with its peers, measured side by side. The\n")
	fmt.Fprintf(w, "figures are one machine's on one day. The ratios carry over better than the\n")
	fmt.Fprintf(w, "nanoseconds; to see your own:\n\n")
	fmt.Fprintf(w, "    cd bench && %s\n\n", r.command)
	r.machine.table().markdown(w)
	fmt.Fprintf(w, "## %s\n\n![%s](%s)\n\n", r.heading, r.chart, svg)
	resultTable(r.results, func(x result) string { return x.what + " (" + x.who() + ")" }).markdown(w)
	fmt.Fprint(w, r.method(r.plan))
	for _, s := range r.sections {
		fmt.Fprintf(w, "## %s\n\n%s", s.heading, s.text)
		s.table.markdown(w)
	}
}

const openLoopText = `The load is an open loop: each message has a time at which it is due, whatever
became of those before it, and its latency counts from then. So a message that
was published late because of the system counts with the time it was late. The
publisher does not sleep in the gaps, which are too short for a timer; it yields
the processor to other goroutines and threads.

`
