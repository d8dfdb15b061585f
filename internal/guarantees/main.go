// Command guarantees runs the suites of every transport, transporttest of what a
// driver promises and policytest of what echo promises on top, and writes their
// results as tables into a Markdown page, each between two marks.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// A table has the results of a suite: a row for each promise, a column for each
// test that runs it.
type table struct {
	name string // of its marks
	runs []run
}

type run struct{ name, pkg, test string }

var tables = []table{
	{"results", []run{
		{"memory", "./memstream", "TestConformance"},
		{"Redis Streams", "./redisstream", "TestConformance"},
		{"WebSocket over memory", "./wsstream", "TestConformance"},
		{"WebSocket over Redis", "./wsstream", "TestConformanceOverRedis"},
	}},
	{"policies", []run{
		{"memory", ".", "TestPolicies"},
		{"Redis Streams", "./redisstream", "TestPolicies"},
		{"WebSocket over memory", "./wsstream", "TestPolicies"},
		{"WebSocket over Redis", "./wsstream", "TestPoliciesOverRedis"},
	}},
}

// marks are what a table stands between.
func marks(name string) (begin, end string) {
	return "<!-- " + name + ": begin -->", "<!-- " + name + ": end -->"
}

func main() {
	page := flag.String("o", "docs/guarantees.md", "the page to write into")
	flag.Parse()
	if err := write(*page); err != nil {
		fmt.Fprintln(os.Stderr, "guarantees:", err)
		os.Exit(1)
	}
}

// write writes the tables into a page.
func write(page string) error {
	data, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text := string(data)
	for _, t := range tables {
		head, _, tail, err := cut(text, t.name)
		if err != nil {
			return fmt.Errorf("%s: %w", page, err)
		}
		rows, err := t.fill()
		if err != nil {
			return err
		}
		text = head + "\n" + rows + tail
	}
	return os.WriteFile(page, []byte(text), 0o644)
}

// cut returns what is before a table, its rows, and what is after it. The marks
// are outside.
func cut(text, name string) (head, rows, tail string, err error) {
	begin, end := marks(name)
	head, rest, ok1 := strings.Cut(text, begin)
	rows, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", "", "", fmt.Errorf("there are no marks %q and %q", begin, end)
	}
	return head + begin, rows, end + tail, nil
}

// fill runs the suites and returns the table.
func (t *table) fill() (string, error) {
	var promises []string // in the order of the suite
	results := map[string]map[string]string{}
	for _, r := range t.runs {
		err := outcomes(r.pkg, r.test, func(promise, outcome string) {
			if results[promise] == nil {
				promises = append(promises, promise)
				results[promise] = map[string]string{}
			}
			results[promise][r.name] = outcome
		})
		if err != nil {
			return "", err
		}
	}
	var b strings.Builder
	b.WriteString("| promise |")
	for _, r := range t.runs {
		fmt.Fprintf(&b, " %s |", r.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(t.runs)) + "\n")
	for _, promise := range promises {
		fmt.Fprintf(&b, "| %s |", promise)
		for _, r := range t.runs {
			fmt.Fprintf(&b, " %s |", results[promise][r.name])
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// said is how the end of a test is told. Its start is told, too, as tests that
// run in parallel end in any order.
var said = map[string]string{"run": "", "pass": "✓", "fail": "**broken**", "skip": "not applicable"}

// outcomes runs a suite and tells the outcome of each promise.
func outcomes(pkg, test string, tell func(promise, outcome string)) error {
	out, err := exec.Command("go", "test", "-count=1", "-json", "-run", "^"+test+"$", pkg).Output()
	failed := false
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var event struct{ Action, Test string }
		if err := dec.Decode(&event); err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		_, name, sub := strings.Cut(event.Test, "/")
		outcome, ok := said[event.Action]
		if !sub || !ok {
			continue
		}
		failed = failed || event.Action == "fail"
		tell(strings.ReplaceAll(name, "_", " "), outcome)
	}
	if failed {
		return fmt.Errorf("%s of %s breaks promises", test, pkg)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: %w: %s", pkg, err, exit.Stderr)
	}
	return err
}
