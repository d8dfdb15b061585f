package wsstream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/echobus/echo/internal/held"
	"github.com/echobus/echo/transport"
)

// What a broadcast subscription lets the server send ahead of Receive.
const (
	aheadMessages = 512
	aheadBytes    = 1 << 20
)

// defaultLease is the lease of broadcast subscriptions that ask for none.
const defaultLease = 30 * time.Second

// broadcast is a broadcast subscription of a Transport.
type broadcast struct {
	held.Messages
	t      *Transport
	sid    uint64
	topic  string
	start  frame
	opened chan struct{} // closed with the first answer
	err    error         // what it was

	spare []transport.Message // of the caller of Receive

	mu     sync.Mutex // guards the rest
	known  bool       // the first answer came
	last   transport.Position
	came   []stretch
	final  error
	unpaid int // messages that came and whose credit was not given back
	bytes  int // and their size
	old    int // how many of them, the first, came on earlier links
	owed   int // messages to be paid for together
	owedB  int
	oldN   int                // how many of those came on earlier links
	oldB   int                // and their size
	upto   transport.Position // the last one of owed
}

// stretch is messages in a row, after a loss or none.
type stretch struct {
	lost *transport.LostError
	msgs []transport.Message
}

func newBroadcast(t *Transport, sid uint64, topic string, o transport.Options) *broadcast {
	lease := o.Lease
	if lease == 0 {
		lease = defaultLease
	}
	s := &broadcast{
		Messages: held.Messages{Leased: lease, Most: o.MaxPending, MostSize: o.MaxPendingBytes},
		t:        t, sid: sid, topic: topic, opened: make(chan struct{}),
		start: frame{From: from(o.Start.From), Pos: o.Start.Position, ID: o.Start.ID, Time: o.Start.Time},
	}
	s.Init(transport.Position{})
	return s
}

func (s *broadcast) request(bool) frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.start
	if s.known {
		f = frame{From: from(transport.AfterPosition), Pos: s.last}
	}
	f.Type, f.Sid, f.Topic = frameSub, s.sid, s.topic
	s.unpaid, s.bytes = s.unpaid-s.owed, s.bytes-s.owedB
	s.old, s.owed, s.owedB, s.oldN, s.oldB = s.unpaid, 0, 0, 0, 0
	f.Credit, f.Bytes = uint64(max(1, aheadMessages-s.unpaid)), uint64(max(1, aheadBytes-s.bytes))
	return f
}

func (s *broadcast) answered(f *frame) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Type == frameSubOK {
		if !s.known {
			s.known = true
			s.last = f.Pos
			s.Reach(f.Pos)
			close(s.opened)
		}
		return goOn
	}
	if s.known && f.Code.temporary() {
		return askAgain
	}
	s.final = fmt.Errorf("wsstream: subscription to %s: %w", s.topic, &Error{Code: f.Code, Text: f.Text})
	if !s.known {
		s.known = true
		s.err = s.final
		close(s.opened)
	}
	s.Wake()
	return over
}

func (s *broadcast) message(f *frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Type == frameGap {
		s.last = f.Pos
		s.came = append(s.came, stretch{lost: &transport.LostError{Topic: s.topic, Count: f.Count, Next: f.Pos}})
		return nil
	}
	if f.Prev.Compare(s.last) > 0 {
		return fmt.Errorf("the server left out what is between %v and %v in %s", s.last, f.Prev, s.topic)
	}
	s.last = f.Pos
	m := f.message()
	if len(s.came) == 0 {
		s.came = append(s.came, stretch{})
	}
	last := &s.came[len(s.came)-1]
	last.msgs = append(last.msgs, m)
	s.unpaid++
	s.bytes += m.Size()
	return nil
}

func (s *broadcast) arrived() { s.Wake() }

// next makes the oldest stretch that came what Receive takes from.
func (s *broadcast) next() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.came) == 0 {
		return false
	}
	if lost := s.came[0].lost; lost != nil {
		s.Lose(lost)
	}
	s.spare = s.came[0].msgs
	if s.came = s.came[1:]; len(s.came) == 0 {
		s.came = nil
	}
	return true
}

func (s *broadcast) Receive(ctx context.Context, dst []transport.Message) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if len(s.spare) == 0 {
			s.next()
		}
		before := s.spare
		n, wait, room, err := s.Take(dst, &s.spare)
		if k := len(before) - len(s.spare); k > 0 {
			s.pay(dst[n-k : n])
		}
		if n > 0 || err != nil {
			return n, err
		}
		if room > 0 {
			s.mu.Lock()
			final, came := s.final, len(s.came)
			s.mu.Unlock()
			if came > 0 {
				continue
			}
			if final != nil {
				return 0, final
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.Woken():
		case <-s.Ended():
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// pay gives credit back for messages that Receive returned, a good deal at a time.
func (s *broadcast) pay(msgs []transport.Message) {
	s.mu.Lock()
	for i := range msgs {
		size := msgs[i].Size()
		s.owed++
		s.owedB += size
		if s.old > 0 {
			s.old--
			s.oldN++
			s.oldB += size
		}
	}
	s.upto = msgs[len(msgs)-1].Position
	var fs []frame
	if s.owed >= aheadMessages/4 || s.owedB >= aheadBytes/4 {
		if s.oldN > 0 { // which this link's server did not count
			fs = append(fs, frame{Type: frameFlow, Sid: s.sid, Credit: uint64(s.oldN), Bytes: uint64(s.oldB)})
		}
		if s.owed > s.oldN {
			fs = append(fs, frame{Type: frameAck, Sid: s.sid, Pos: s.upto})
		}
		s.unpaid, s.bytes = s.unpaid-s.owed, s.bytes-s.owedB
		s.owed, s.owedB, s.oldN, s.oldB = 0, 0, 0, 0
	}
	s.mu.Unlock()
	for i := range fs {
		s.t.send(fs[i])
	}
}

func (s *broadcast) Close() error {
	if s.End() {
		s.t.end(s.sid, true)
	}
	return nil
}

func (s *broadcast) shut(error) { s.End() }
