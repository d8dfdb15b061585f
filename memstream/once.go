package memstream

import "time"

// once is what a topic remembers of messages that are to be stored once: until
// when, by their names. The bound of the topic is its bound, too.
type once struct {
	until map[string]time.Duration
	order []named // as they came
}

type named struct {
	name  string
	until time.Duration
}

// seen reports whether a name was noted and still counts.
func (t *topic) seen(name string) bool {
	until, ok := t.once.until[name]
	return ok && until > clock()
}

// note remembers a name for a window. When there are too many, the one that
// came first is forgotten too early.
func (t *topic) note(name string, window time.Duration) {
	o, now := &t.once, clock()
	if o.until == nil {
		o.until = make(map[string]time.Duration)
	}
	k := 0
	for k < len(o.order) && (o.order[k].until <= now || len(o.order)-k >= t.cfg.maxMessages) {
		if old := o.order[k]; o.until[old.name] == old.until { // it was not noted again
			if delete(o.until, old.name); old.until > now {
				t.stats.Overflowed++
			}
		}
		k++
	}
	clear(o.order[:k])
	o.order = append(o.order[k:], named{name, after(now, window)})
	o.until[name] = after(now, window)
}
