package flow

import (
	"fmt"
	"strings"
	"unicode"
)

// SyntaxError is what is wrong with the text of a flow, and where.
type SyntaxError struct {
	Column int // in characters, from 1
	Text   string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("column %d: %s", e.Column, e.Text) }

// Is makes it an [ErrDefinition].
func (e *SyntaxError) Is(class error) bool { return class == ErrDefinition || class == ErrFlow }

// sequenceText is groups with bars between.
type sequenceText []groupText

// groupText is what commas separate.
type groupText []itemText

// itemText is a name, or a sequence in parentheses.
type itemText struct {
	name   string
	in     sequenceText
	column int
}

func (s sequenceText) String() string {
	groups := make([]string, len(s))
	for i, g := range s {
		items := make([]string, len(g))
		for k, it := range g {
			if items[k] = it.name; it.in != nil {
				items[k] = "(" + it.in.String() + ")"
			}
		}
		groups[i] = strings.Join(items, ", ")
	}
	return strings.Join(groups, " | ")
}

// parser reads the text of a flow.
type parser struct {
	text []rune
	at   int
}

const deepest = 100 // parentheses in parentheses

func parse(text string) (sequenceText, error) {
	p := &parser{text: []rune(text)}
	s, err := p.sequence(0)
	if err != nil {
		return nil, err
	}
	if p.at < len(p.text) {
		return nil, p.unexpected()
	}
	return s, nil
}

func (p *parser) fail(format string, args ...any) error {
	return &SyntaxError{p.at + 1, fmt.Sprintf(format, args...)}
}

func (p *parser) unexpected() error {
	if p.at == len(p.text) {
		return p.fail("the text ends where a name, or a parenthesis, is missing")
	}
	return p.fail("%q is not expected here", p.text[p.at])
}

// next skips spaces, and returns what comes, 0 at the end.
func (p *parser) next() rune {
	for p.at < len(p.text) && unicode.IsSpace(p.text[p.at]) {
		p.at++
	}
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *parser) sequence(depth int) (s sequenceText, err error) {
	for {
		g, err := p.group(depth)
		if err != nil {
			return nil, err
		}
		s = append(s, g)
		if p.next() != '|' {
			return s, nil
		}
		p.at++
	}
}

func (p *parser) group(depth int) (g groupText, err error) {
	for {
		it, err := p.item(depth)
		if err != nil {
			return nil, err
		}
		g = append(g, it)
		if p.next() != ',' {
			return g, nil
		}
		p.at++
	}
}

func (p *parser) item(depth int) (it itemText, err error) {
	c := p.next()
	it.column = p.at + 1
	if c == '(' {
		if depth == deepest {
			return it, p.fail("more than %d parentheses in each other", deepest)
		}
		p.at++
		if it.in, err = p.sequence(depth + 1); err != nil {
			return it, err
		}
		if p.next() != ')' {
			return it, p.unexpected()
		}
		p.at++
		return it, nil
	}
	from := p.at
	for p.at < len(p.text) && inName(p.text[p.at]) {
		p.at++
	}
	if p.at == from {
		return it, p.unexpected()
	}
	it.name = string(p.text[from:p.at])
	return it, nil
}

// inName reports whether names of functions may have a character.
func inName(c rune) bool {
	return unicode.IsLetter(c) || unicode.IsDigit(c) || c == '_' || c == '-' || c == '.'
}
