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
	suite     string
	command   string
	plan      plan
	machine   machine
	results   []result
	tuned     []result // information only
	latencies []latency
}

// table is a heading and rows of cells; it prints as text and as Markdown.
type table struct {
	head []string
	rows [][]string
}

const tunedNote = "For information: echo, JSON, against Watermill GoChannel tuned"

// print writes the tables and, last, the RATIO lines.
func (r *report) print(w io.Writer) {
	fmt.Fprintln(w)
	resultTable(r.results, result.who).text(w)
	if len(r.tuned) > 0 {
		fmt.Fprintf(w, "\n%s\n\n", tunedNote)
		tunedTable(r.tuned).text(w)
	}
	if len(r.latencies) > 0 {
		fmt.Fprintf(w, "\nLatency, one publisher, one subscriber, JSON\n\n")
		latencyTable(r.latencies).text(w)
	}
	fmt.Fprintln(w)
	for _, x := range r.results {
		fmt.Fprintf(w, "RATIO %s %.2f\n", x.name, x.ratio)
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

func tunedTable(rs []result) table {
	t := table{head: []string{"subscribers", "peer with", "ours ns/msg", "peer ns/msg", "ratio", "smallest–largest", "rounds"}}
	for _, r := range rs {
		t.rows = append(t.rows, append([]string{strconv.Itoa(r.subscribers), r.peer.name}, figures(r)...))
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
	t := table{head: []string{"who", "load", "messages/s", "p50 µs", "p99 µs", "messages"}}
	for _, l := range ls {
		t.rows = append(t.rows, []string{
			l.who,
			l.load,
			grouped(float64(time.Second) / float64(l.gap)),
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
	svg := strings.TrimSuffix(page, filepath.Ext(page)) + "-" + r.suite + ".svg"
	var text strings.Builder
	r.markdown(&text, filepath.Base(svg))
	if err := os.WriteFile(page, []byte(text.String()), 0o666); err != nil {
		return err
	}
	return os.WriteFile(svg, r.chart(), 0o666)
}

// chart shows what a message takes, ours and the peer's for each case.
func (r *report) chart() []byte {
	c := chart{title: "Time per message, in memory", note: "less is better; the figure at the right is how many times less time echo takes"}
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
	fmt.Fprintf(w, "# Performance\n\n")
	fmt.Fprintf(w, "What a message costs with echo and with its peers, measured side by side. The\n")
	fmt.Fprintf(w, "figures are one machine's on one day. The ratios carry over better than the\n")
	fmt.Fprintf(w, "nanoseconds; to see your own:\n\n")
	fmt.Fprintf(w, "    cd bench && %s\n\n", r.command)
	r.machine.table().markdown(w)
	fmt.Fprintf(w, "## In memory\n\n![Time per message of echo and its peers](%s)\n\n", svg)
	resultTable(r.results, func(x result) string { return x.what + " (" + x.who() + ")" }).markdown(w)
	r.method(w)
	if len(r.tuned) > 0 {
		fmt.Fprintf(w, "## Tuned peers\n\n%s", tunedText)
		tunedTable(r.tuned).markdown(w)
	}
	if len(r.latencies) > 0 {
		fmt.Fprintf(w, "## Latency\n\n%s", latencyText)
		latencyTable(r.latencies).markdown(w)
	}
}

// method says how the ratios were measured.
func (r *report) method(w io.Writer) {
	fmt.Fprintf(w, methodText, grouped(float64(goCloudMem.least)), r.plan.rounds, r.plan.round.Milliseconds())
}

const methodText = `The ratio says how many times less time a message takes with echo than with the
peer; smallest and largest are those of single rounds.

- One goroutine publishes single messages, one call after another, as fast as
  it can. A subscriber has one handler, which does nothing but look at a field.
- A message counts when its handler has returned and it is acknowledged, by all
  subscribers, on both sides: the time of a round includes the wait for the last
  one and closing, which sends the acknowledgements that are left.
- Everybody carries the same value of four fields. Where it travels as JSON,
  encoding and decoding are part of the time, with encoding/json on both sides.
- Everybody has its default configuration, and the publisher may be ahead of the
  subscribers: with echo by 65,536 messages, with Watermill by any number. That
  costs Watermill time, since it has goroutines for each of them.
- Watermill and Go Cloud have no way to carry a value by reference, so the cases
  by value compare with their JSON.
- Go Cloud's mempubsub looks for messages again 250 ms after it found none. In
  short rounds that pause would be most of the time. So its rounds have at least
  %s messages, which hides the pause behind the publishing, and no bound on
  what is unhandled, which would bring the pause back.
- The Go channel in the last case has room for 1,024 values, and four goroutines
  read it. It has no acknowledgements, no redelivery and no encoding: it is the
  most that there is to win.
- There are up to %d rounds of about %d ms of each side, by turns in one process,
  each with a new bus, a warm-up and a garbage collection before. The ratio is
  the median of the rounds' ratios, so a moment in which the machine was busy
  with other things hardly shows.

`

const tunedText = `These rows are for information. They compare echo as it comes, with JSON, with
Watermill's GoChannel under the options that bear on speed, and with a publisher
that waits while too much is unhandled: GoChannel has goroutines for every
such message, and is fastest when they are few.

`

const latencyText = `From just before Publish to the handler's entry, one publisher, one subscriber,
JSON. The first and the last row are each at a tenth of what it can carry
itself; the second row is echo at the peer's rate.

The load is an open loop: each message has a time at which it is due, whatever
became of those before it, and its latency counts from then. So a message that
was published late because of the system counts with the time it was late. The
publisher does not sleep in the gaps, which are too short for a timer; it yields
the processor to other goroutines and threads.

`
