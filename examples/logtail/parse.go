package main

import (
	"regexp"
	"strings"
)

var (
	// 2026-01-02 03:04:05 status installed libc6:amd64 2.36-9
	dpkg = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([a-z]+)(?: (installed|unpacked|half-configured|half-installed|not-installed|config-files|triggers-pending|triggers-awaited))?`)
	// 127.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 2326
	access = regexp.MustCompile(`^\S+ \S+ \S+ \[[^\]]*\] "([A-Z]+) [^"]*" (\d)\d\d `)
)

// kind says what a line is about, whatever the line.
func kind(line string) string {
	if m := dpkg.FindStringSubmatch(line); m != nil {
		return strings.TrimSpace(m[1] + " " + m[2])
	}
	if m := access.FindStringSubmatch(line); m != nil {
		return m[1] + " " + m[2] + "xx"
	}
	word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch {
	case word == "":
		return "(empty)"
	case len(word) > 30:
		return "(other)"
	}
	return strings.ToValidUTF8(word, "\uFFFD")
}
