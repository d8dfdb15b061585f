package echo

import "sync/atomic"

// ConsumerStats is what happened to a consumer's messages so far.
type ConsumerStats struct {
	Handled    uint64 // handlers that returned nil; messages that were acknowledged by hand
	Failed     uint64 // handlers that did not
	Dead       uint64 // messages that became dead letters
	GivenUp    uint64 // messages that would have, where there are none
	Expired    uint64 // messages dropped because their time to live was over
	Duplicates uint64 // messages not handled because they had been
	Forgotten  uint64 // messages whose duplicates would be handled, as WithDedup remembers no more
}

// Stats returns what happened to the consumer's messages so far.
func (c *Consumer[M]) Stats() ConsumerStats { return c.core.stats() }

func (c *consumer) stats() ConsumerStats {
	s := ConsumerStats{
		Handled: c.count.handled.Load(), Failed: c.count.failed.Load(),
		Dead: c.count.dead.Load(), GivenUp: c.count.givenUp.Load(),
		Expired: c.count.expired.Load(), Duplicates: c.count.duplicates.Load(),
	}
	if c.memory != nil {
		c.memory.mu.Lock()
		defer c.memory.mu.Unlock()
		s.Forgotten = c.memory.lost
	}
	return s
}

// add adds the figures of another consumer.
func (s *ConsumerStats) add(o ConsumerStats) {
	s.Handled += o.Handled
	s.Failed += o.Failed
	s.Dead += o.Dead
	s.GivenUp += o.GivenUp
	s.Expired += o.Expired
	s.Duplicates += o.Duplicates
	s.Forgotten += o.Forgotten
}

type counts struct {
	handled, failed, dead, givenUp, expired, duplicates atomic.Uint64
}
