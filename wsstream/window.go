package wsstream

import (
	"context"
	"errors"
	"math"
	"sync"

	"github.com/echobus/echo/transport"
)

// window remembers which messages came of late, so that one that is sent again
// is stored once.
type window struct {
	mu   sync.Mutex
	most int
	past map[published]*fate
	ring []published // in the order they came
	next int
}

// published names a message.
type published struct{ subject, topic, id string }

// elsewhere is the fate of a message that is stored and has no position yet.
var elsewhere = transport.Position{Lo: math.MaxUint64}

// fate is what became of a message. The window's lock guards it.
type fate struct {
	again   bool // it was sent again
	settled bool
	at      transport.Position
	known   bool          // it was stored at at, or surely not
	as      *fate         // or it is as this one
	wait    chan struct{} // closed when it is settled, if somebody waits
}

func (f *fate) settle(at transport.Position, known bool) {
	if f.settled {
		return
	}
	f.settled, f.at, f.known = true, at, known
	if f.wait != nil {
		close(f.wait)
	}
}

func (w *window) init(most int) {
	w.most = most
	w.past = make(map[published]*fate)
}

// begin notes messages that came to be published. Those that came before have
// the fate of then.
func (w *window) begin(subject string, pubs []publish) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range pubs {
		p := &pubs[i]
		if p.code != 0 {
			continue
		}
		k := published{subject, p.topic, p.msg.ID}
		// What comes after it was sent again was under way on a link that broke.
		if f := w.past[k]; p.again || f != nil && f.again {
			p.before, p.again = f, true
		}
		p.fate = &fate{again: p.again}
		if _, ok := w.past[k]; !ok {
			if len(w.ring) < w.most {
				w.ring = append(w.ring, k)
			} else {
				delete(w.past, w.ring[w.next])
				w.ring[w.next] = k
				w.next = (w.next + 1) % w.most
			}
		}
		w.past[k] = p.fate
	}
}

// end notes what became of messages: the first n of them are stored.
func (w *window) end(pubs []publish, msgs []transport.Message, n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range pubs {
		if i < n {
			at := msgs[i].Position
			if at == (transport.Position{}) {
				at = elsewhere
			}
			pubs[i].fate.settle(at, true)
		} else {
			pubs[i].fate.settle(transport.Position{}, errors.Is(err, transport.ErrNotPublished))
		}
	}
}

// found notes that a message had been stored before.
func (w *window) found(p *publish, at transport.Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.fate.settle(at, true)
}

// drop notes that nothing was done for messages: they are as they were before.
func (w *window) drop(pubs []publish) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range pubs {
		f, b := pubs[i].fate, pubs[i].before
		switch {
		case f == nil:
		case b == nil:
			f.settle(transport.Position{}, !pubs[i].again)
		case b.settled && b.as == nil:
			f.settle(b.at, b.known)
		default:
			f.as = b
			f.settle(transport.Position{}, false)
		}
	}
}

// find returns where a message that is sent again was stored, if it was, and
// whether that is known. It waits for one that is being stored.
func (w *window) find(ctx context.Context, p *publish) (at transport.Position, known bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := p.before; f != nil; f = f.as {
		for !f.settled {
			if f.wait == nil {
				f.wait = make(chan struct{})
			}
			wait := f.wait
			w.mu.Unlock()
			select {
			case <-wait:
			case <-ctx.Done():
				err = ctx.Err()
			}
			w.mu.Lock()
			if err != nil {
				return transport.Position{}, false, err
			}
		}
		if f.as == nil {
			return f.at, f.known, nil
		}
	}
	return transport.Position{}, false, nil
}
