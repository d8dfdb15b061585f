package transport

import (
	"fmt"
	"strings"
)

// IsPattern reports whether a name is a pattern of topics, which contains * or #.
func IsPattern(name string) bool { return strings.ContainsAny(name, "*#") }

// CheckPattern returns an error unless pattern is the name of a topic with * in
// place of some of its words, or # in place of its last ones. Words are what
// dots separate.
func CheckPattern(pattern string) error {
	words := strings.Split(pattern, ".")
	for i, w := range words {
		switch {
		case w == "*":
			words[i] = "x"
		case w == "#" && i == len(words)-1:
			words[i] = "x"
		case w == "#":
			return fmt.Errorf("pattern %.80q: # stands for the last words, and comes last", pattern)
		case IsPattern(w):
			return fmt.Errorf("pattern %.80q: * and # stand for whole words, between dots", pattern)
		}
	}
	return CheckName("pattern of a topic", strings.Join(words, "."))
}

// MatchTopic reports whether a topic matches a pattern: * is any word, and # any
// words or none. Topics of dead letters match patterns that end in .dead alone,
// and topics for replies none. It takes time in proportion to the names.
func MatchTopic(pattern, topic string) bool {
	if IsInbox(topic) {
		return false
	}
	if _, dead := CutDead(topic); dead && !strings.HasSuffix(pattern, deadSuffix) {
		return false
	}
	for {
		p, patternRest, patternMore := strings.Cut(pattern, ".")
		if p == "#" {
			return true
		}
		t, topicRest, topicMore := strings.Cut(topic, ".")
		if p != t && p != "*" || t == "" {
			return false
		}
		switch {
		case !patternMore && !topicMore:
			return true
		case patternRest == "#" && patternMore && !topicMore:
			return true
		case !patternMore || !topicMore:
			return false
		}
		pattern, topic = patternRest, topicRest
	}
}
