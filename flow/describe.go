package flow

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// String describes a place on one line: steps that come one after another with a
// bar between, those that run at the same time in parentheses.
//
//	read(csv, json) | join | write(sqlite, report)
func (s Sight) String() string {
	switch s.Kind {
	case SequenceKind:
		return strings.Join(texts(s.inSequence()), " | ")
	case PipelineKind:
		return strings.Join(texts(s.inSequence()), " | ")
	case TopicKind:
		return "from " + s.Name
	case PublishKind:
		return "to " + s.Name
	case GroupKind, EachKind, DispatchKind, UnionKind, JoinKind:
		members := make([]string, len(s.Children))
		for i, c := range s.Children {
			members[i] = c.String()
			if c.Kind == SequenceKind && len(c.inSequence()) > 1 {
				members[i] = "(" + members[i] + ")"
			}
			if c.Key != "" {
				members[i] = c.Key + ": " + members[i]
			}
		}
		return s.Name + "(" + strings.Join(members, ", ") + ")"
	case FlowKind:
		if !strings.Contains(s.Path, "/") { // the whole
			return strings.Join(texts(s.Children), "")
		}
		return s.Name + "(" + strings.Join(texts(s.Children), "") + ")"
	}
	return s.Name
}

func texts(ss []Sight) []string {
	ts := make([]string, len(ss))
	for i, s := range ss {
		ts[i] = s.String()
	}
	return ts
}

// inSequence returns the steps of a sequence, those of sequences in it among them.
func (s Sight) inSequence() (steps []Sight) {
	for _, c := range s.Children {
		if c.Kind == SequenceKind && len(c.Policy) == 0 {
			steps = append(steps, c.inSequence()...)
		} else {
			steps = append(steps, c)
		}
	}
	return steps
}

// Mermaid draws a place and what is in it, with what happened there, as a
// Mermaid flowchart.
func (s Sight) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	text := strings.NewReplacer("#", "#35;", `"`, "#quot;", "<", "#lt;", ">", "#gt;", "\n", "<br/>")
	g := draw(s)
	for i, n := range g.nodes {
		open, end := "[", "]"
		switch n.kind {
		case DispatchKind, FilterKind:
			open, end = "{", "}"
		case TopicKind, PublishKind:
			open, end = "[(", ")]"
		case EachKind:
			open, end = "[[", "]]"
		}
		fmt.Fprintf(&b, "  n%d%s\"%s\"%s\n", i, open, text.Replace(n.label), end)
	}
	for _, e := range g.edges {
		label := ""
		if e.label != "" {
			label = `|"` + text.Replace(e.label) + `"|`
		}
		fmt.Fprintf(&b, "  n%d -->%s n%d\n", e.from, label, e.to)
	}
	return b.String()
}

// DOT draws a place and what is in it, with what happened there, in the language
// of Graphviz.
func (s Sight) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n  rankdir=LR;\n  node [shape=box];\n", strconv.Quote(s.Path))
	g := draw(s)
	for i, n := range g.nodes {
		shape := ""
		switch n.kind {
		case DispatchKind, FilterKind:
			shape = ", shape=diamond"
		case TopicKind, PublishKind:
			shape = ", shape=cylinder"
		case EachKind:
			shape = ", shape=box3d"
		}
		fmt.Fprintf(&b, "  n%d [label=%s%s];\n", i, strconv.Quote(n.label), shape)
	}
	for _, e := range g.edges {
		label := ""
		if e.label != "" {
			label = fmt.Sprintf(" [label=%s]", strconv.Quote(e.label))
		}
		fmt.Fprintf(&b, "  n%d -> n%d%s;\n", e.from, e.to, label)
	}
	return b.String() + "}\n"
}

// drawing is a flow as nodes and what leads from one to another.
type drawing struct {
	nodes []node
	edges []edge
}

type node struct {
	kind  Kind
	label string
}

type edge struct {
	from, to int
	label    string
}

func draw(s Sight) *drawing {
	g := &drawing{}
	g.walk(s, nil)
	return g
}

// walk draws a place that what is in from leads to, and returns what leads on. In
// edges of from, to is missing.
func (g *drawing) walk(s Sight, from []edge) (ends []edge) {
	switch s.Kind {
	case FlowKind, SequenceKind, PipelineKind:
		for _, c := range s.Children {
			from = g.walk(c, from)
		}
		return from
	case GroupKind, UnionKind, JoinKind:
		for _, c := range s.Children {
			ends = append(ends, g.walk(c, from)...)
		}
		if s.Kind != JoinKind {
			return ends
		}
		from, s.Children = ends, nil
	}
	at := len(g.nodes)
	g.nodes = append(g.nodes, node{s.Kind, s.label()})
	for _, e := range from {
		e.to = at
		g.edges = append(g.edges, e)
	}
	if len(s.Children) == 0 {
		return []edge{{from: at}}
	}
	for _, c := range s.Children {
		ends = append(ends, g.walk(c, []edge{{from: at, label: c.Key}})...)
	}
	return ends
}

// label is the name of a place and what happened there.
func (s Sight) label() string {
	lines := []string{s.Name}
	lines = append(lines, s.Policy...)
	c := s.Counts
	var counts []string
	for _, n := range []struct {
		what string
		n    int64
	}{{"calls", c.Calls}, {"running", c.Running}, {"failed", c.Failed}, {"skipped", c.Skipped}, {"retried", c.Retried}} {
		if n.n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n.n, n.what))
		}
	}
	if len(counts) > 0 {
		lines = append(lines, strings.Join(counts, ", "), fmt.Sprintf("mean %v, longest %v", round(c.Mean), round(c.Longest)))
	}
	return strings.Join(lines, "\n")
}

// round leaves three digits or so.
func round(d time.Duration) time.Duration {
	for unit := time.Nanosecond; ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
}
