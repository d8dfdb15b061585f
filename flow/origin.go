package flow

import (
	"context"
	"sync"
	"time"

	"github.com/echobus/echo"
)

// origin is what an element came from.
type origin interface {
	// settle tells what became of the element: nil, that it was accepted.
	settle(err error)
	// release says that the element was given up, and nothing was done with it.
	release()
}

// message is an origin that is one message of a consumer.
type message[M any] struct {
	echo.Message[M]
	returned *releases[M]
}

func (m *message[M]) settle(err error) {
	if _, waited := err.(noRoom); waited {
		m.release()
	} else {
		m.Settle(err)
	}
}

func (m *message[M]) release() { m.returned.add(m.Message) }

// releases gives back messages, together what came while others went.
type releases[M any] struct {
	mu    sync.Mutex
	busy  bool
	batch echo.Batch[M]
}

func (r *releases[M]) add(m echo.Message[M]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batch = append(r.batch, m)
	if !r.busy {
		r.busy = true
		go r.send()
	}
}

func (r *releases[M]) send() {
	for {
		time.Sleep(time.Millisecond) // others are on their way
		r.mu.Lock()
		batch := r.batch
		r.batch = nil
		r.busy = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		if err := batch.Release(context.Background()); err != nil {
			for _, m := range batch {
				m.Settle(err)
			}
		}
	}
}

// shared is an origin that several elements came from. It is settled when all are,
// and whoever made it has.
type shared struct {
	of       origin
	mu       sync.Mutex
	left     int
	err      error
	returned bool // one of them was given up
}

func share(o origin) *shared { return &shared{of: o, left: 1} }

func (s *shared) add() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left++
}

func (s *shared) settle(err error) { s.less(err, false) }
func (s *shared) release()         { s.less(nil, true) }

func (s *shared) less(err error, returned bool) {
	s.mu.Lock()
	s.left--
	s.returned = s.returned || returned
	if s.err == nil {
		s.err = err
	}
	last := s.left == 0
	s.mu.Unlock()
	switch {
	case !last:
	case s.err == nil && s.returned:
		s.of.release()
	default:
		s.of.settle(s.err)
	}
}

// group is an origin that is several.
type group []origin

func (g group) settle(err error) {
	for _, o := range g {
		o.settle(err)
	}
}

func (g group) release() {
	for _, o := range g {
		o.release()
	}
}
