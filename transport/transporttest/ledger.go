package transporttest

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/echobus/echo/transport"
)

// ledger is the oracle of the endurance tests: it writes down what was sent,
// delivered and settled, and says at the end which promises were broken.
type ledger struct {
	mu       sync.Mutex
	sent     map[string]transport.Message
	accepted map[string]bool
	entries  map[string]*entry // by message ID
	returned int               // deliveries given back, forgotten or dropped by their holder
	acked    int
	broken   []string
}

// entry is what happened to one message in one group.
type entry struct {
	deliveries int
	firsts     int // deliveries that said they were the first
	acked      int
}

func newLedger() *ledger {
	return &ledger{sent: map[string]transport.Message{}, accepted: map[string]bool{}, entries: map[string]*entry{}}
}

func (l *ledger) violation(format string, args ...any) {
	if len(l.broken) < 10 {
		l.broken = append(l.broken, fmt.Sprintf(format, args...))
	}
}

// send notes messages about to be sent.
func (l *ledger) send(msgs []transport.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range msgs {
		l.sent[m.ID] = m.Clone()
	}
}

// accept notes messages that Send stored.
func (l *ledger) accept(msgs []transport.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range msgs {
		l.accepted[m.ID] = true
	}
}

// deliver notes a delivery.
func (l *ledger) deliver(m transport.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	want, ok := l.sent[m.ID]
	switch {
	case !ok:
		l.violation("no phantom: message %q was delivered and never sent", m.ID)
		return
	case m.Key != want.Key || !bytes.Equal(m.Data, want.Data) || m.Header["n"] != want.Header["n"]:
		l.violation("no phantom: message %s arrived as %q %q, was sent as %q %q", m.ID, m.Key, m.Data, want.Key, want.Data)
	}
	e := l.entries[m.ID]
	if e == nil {
		e = &entry{}
		l.entries[m.ID] = e
	}
	if e.deliveries++; m.Attempt == 1 {
		e.firsts++
	}
	if e.firsts > 1 {
		l.violation("bounded duplicates: message %s was delivered %d times as if for the first time", m.ID, e.firsts)
	}
}

// giveBack notes deliveries that were not settled as done.
func (l *ledger) giveBack(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.returned += n
}

// ack notes a delivery that the transport accepted as done.
func (l *ledger) ack(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[id]
	if e == nil {
		return // a phantom, noted before
	}
	if e.acked++; e.acked == 1 {
		l.acked++
	} else {
		l.violation("bounded duplicates: message %s was settled as done %d times", id, e.acked)
	}
}

// progress returns how many messages were handled, and whether all accepted ones were.
func (l *ledger) progress() (handled int, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked, l.acked >= len(l.accepted)
}

// verdict returns the promises that were broken.
func (l *ledger) verdict() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost, again := 0, 0
	example := ""
	for id := range l.accepted {
		if e := l.entries[id]; e == nil || e.acked == 0 {
			lost, example = lost+1, id
		}
	}
	for _, e := range l.entries {
		again += e.deliveries - 1
	}
	if lost > 0 {
		l.violation("no loss: %d of %d accepted messages were never handled, such as %s", lost, len(l.accepted), example)
	}
	if again > l.returned {
		l.violation("bounded duplicates: %d deliveries were repeated, only %d were given back, forgotten or dropped", again, l.returned)
	}
	return l.broken
}
