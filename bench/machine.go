package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// machine is where, when and with what a run took place.
type machine struct {
	date, cpu, system, golang string
	versions                  [][]string // of echo and its peers
}

func thisMachine(peers []peer) machine {
	m := machine{
		date:     time.Now().UTC().Format(time.DateOnly),
		cpu:      fmt.Sprintf("%s, %d cores, GOMAXPROCS %d", field("/proc/cpuinfo", "model name", ":"), runtime.NumCPU(), runtime.GOMAXPROCS(0)),
		system:   fmt.Sprintf("%s, %s %s", field("/etc/os-release", "PRETTY_NAME", "="), runtime.GOOS, line("/proc/sys/kernel/osrelease")),
		golang:   fmt.Sprintf("%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH),
		versions: [][]string{{"echo", revision()}},
	}
	for _, p := range peers {
		m.versions = append(m.versions, []string{p.name, module(p.module)})
	}
	return m
}

func (m machine) table() table {
	return table{
		head: []string{"", ""},
		rows: append([][]string{{"Date", m.date}, {"Processor", m.cpu}, {"System", m.system}, {"Go", m.golang}}, m.versions...),
	}
}

const unknown = "unknown"

// field returns the first value that a file of names and values has for a name.
func field(file, name, separator string) string {
	data, _ := os.ReadFile(file)
	for l := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(l, separator); ok && strings.TrimSpace(k) == name {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return unknown
}

// line returns what a file of one line says.
func line(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(data))
}

// revision is the commit of echo. The program is not stamped with it when it
// is started by go run.
func revision() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--tags").Output()
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(out))
}

// module returns the version of a module that the program is built with.
func module(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return unknown
}
