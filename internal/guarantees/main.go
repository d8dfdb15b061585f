// Command guarantees runs the conformance suite of every transport and writes
// its results as a table into a Markdown page, between two marks.
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

// transports are the columns of the table: tests that run the suite.
var transports = []struct{ name, pkg, test string }{
	{"memory", "./memstream", "TestConformance"},
	{"Redis Streams", "./redisstream", "TestConformance"},
	{"WebSocket over memory", "./wsstream", "TestConformance"},
	{"WebSocket over Redis", "./wsstream", "TestConformanceOverRedis"},
}

const begin, end = "<!-- results: begin -->", "<!-- results: end -->"

func main() {
	page := flag.String("o", "docs/guarantees.md", "the page to write into")
	flag.Parse()
	if err := run(*page); err != nil {
		fmt.Fprintln(os.Stderr, "guarantees:", err)
		os.Exit(1)
	}
}

func run(page string) error {
	var rows []string // promises, in the order of the suite
	results := map[string]map[string]string{}
	for _, t := range transports {
		err := outcomes(t.pkg, t.test, func(promise, outcome string) {
			if results[promise] == nil {
				rows = append(rows, promise)
				results[promise] = map[string]string{}
			}
			results[promise][t.name] = outcome
		})
		if err != nil {
			return err
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	head, rest, ok1 := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no marks %q and %q", page, begin, end)
	}
	var b strings.Builder
	b.WriteString(head + begin + "\n| promise |")
	for _, t := range transports {
		fmt.Fprintf(&b, " %s |", t.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(transports)) + "\n")
	for _, promise := range rows {
		fmt.Fprintf(&b, "| %s |", promise)
		for _, t := range transports {
			fmt.Fprintf(&b, " %s |", results[promise][t.name])
		}
		b.WriteString("\n")
	}
	b.WriteString(end + tail)
	return os.WriteFile(page, []byte(b.String()), 0o644)
}

// outcomes runs a transport's suite and tells the outcome of each promise.
func outcomes(pkg, test string, tell func(promise, outcome string)) error {
	out, err := exec.Command("go", "test", "-count=1", "-json", "-run", "^"+test+"$", pkg).Output()
	failed := false
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var event struct{ Action, Test string }
		if err := dec.Decode(&event); err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		_, name, sub := strings.Cut(event.Test, "/")
		outcome := map[string]string{"pass": "✓", "fail": "**broken**", "skip": "not applicable"}[event.Action]
		if !sub || outcome == "" {
			continue
		}
		failed = failed || event.Action == "fail"
		tell(strings.ReplaceAll(name, "_", " "), outcome)
	}
	if failed {
		return fmt.Errorf("%s breaks promises", pkg)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: %w: %s", pkg, err, exit.Stderr)
	}
	return err
}
