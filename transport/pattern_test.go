package transport

import (
	"strings"
	"testing"
	"time"
)

func TestPatternsMatchWholeWords(t *testing.T) {
	for _, c := range []struct {
		pattern, topic string
		want           bool
	}{
		{"orders.*", "orders.eu", true},
		{"orders.*", "orders", false},
		{"orders.*", "orders.eu.paid", false},
		{"orders.*", "orderss.eu", false},
		{"orders.#", "orders", true},
		{"orders.#", "orders.eu", true},
		{"orders.#", "orders.eu.paid", true},
		{"orders.#", "orderss", false},
		{"#", "orders", true},
		{"#", "orders.eu.paid", true},
		{"*", "orders", true},
		{"*", "orders.eu", false},
		{"*.paid", "eu.paid", true},
		{"*.paid", "eu.open", false},
		{"orders.*.paid", "orders.eu.paid", true},
		{"orders.*.paid", "orders.eu.fr.paid", false},
		{"orders.*.#", "orders", false},
		{"orders.*.#", "orders.eu", true},
		{"*.*", "a..b", false},
		{"orders", "orders", true},
		{"orders.#", "orders.dead", false},
		{"orders.*.dead", "orders.eu.dead", true},
		{"#", "reply.ABC", false},
		{"reply.*", "reply.ABC", false},
	} {
		if got := MatchTopic(c.pattern, c.topic); got != c.want {
			t.Errorf("MatchTopic(%q, %q) = %v, want %v", c.pattern, c.topic, got, c.want)
		}
	}
	for pattern, want := range map[string]string{
		"orders.*": "", "#": "", "a.*.b.#": "",
		"orders.#.paid": "comes last", "orders.e*": "whole words", "": "empty", "a b.*": `" "`, ".*": "may not have",
	} {
		err := CheckPattern(pattern)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("CheckPattern(%q) = %v, want %q", pattern, err, want)
		}
	}
}

func TestMatchingTakesTimeInProportionToTheNames(t *testing.T) {
	name := strings.Repeat("a.", 5000) + "a"
	begin := time.Now()
	if MatchTopic(strings.Repeat("*.", 5000)+"b", name) {
		t.Error("it matched")
	}
	if took := time.Since(begin); took > 10*time.Millisecond {
		t.Errorf("a name of 10 kB took %v", took)
	}
}
