package echo

import (
	"math/rand/v2"
	"sync"
	"time"
)

// ids makes message IDs: UUIDs of version 7 (RFC 9562, section 5.7) with 48
// bits of Unix time in milliseconds, 12 bits of its fraction (section 6.2,
// method 3), 6 bits of counter and 56 random bits from math/rand/v2, which is
// ChaCha8 seeded by the system.
//
// Under load it makes them in blocks, one string of up to 64 IDs that are cut
// out one by one; a block serves its own millisecond only.
type ids struct {
	mu    sync.Mutex
	block string
	milli int64
	size  int // IDs in a block
	buf   []byte
}

const (
	idLen    = 36
	maxBlock = 64
)

// next returns a fresh ID for a message published at now.
func (s *ids) next(now time.Time) string {
	milli := now.UnixMilli()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case milli != s.milli && s.block != "":
		s.size /= 2 // the last block was too large
	case milli == s.milli && s.block == "":
		s.size *= 2
	}
	if milli != s.milli || s.block == "" {
		s.milli = milli
		s.size = min(max(s.size, 1), maxBlock)
		s.make(now, s.size)
	}
	id := s.block[:idLen]
	s.block = s.block[idLen:]
	return id
}

// make makes a block of n IDs, in ascending order. They share their first half.
func (s *ids) make(now time.Time, n int) {
	fraction := uint64(now.Nanosecond()%1e6) << 12 / 1e6
	hi := uint64(now.UnixMilli())<<16 | 7<<12 | fraction
	if s.buf == nil {
		s.buf = make([]byte, maxBlock*idLen)
	}
	for i := range n {
		lo := 2<<62 | uint64(i)<<56 | rand.Uint64()>>8
		id := s.buf[i*idLen:][:idLen]
		if i == 0 {
			putHex(id[0:8], hi>>32)
			putHex(id[9:13], hi>>16)
			putHex(id[14:18], hi)
			id[8], id[13], id[18], id[23] = '-', '-', '-', '-'
		} else {
			copy(id[:24], s.buf)
		}
		putHex(id[19:23], lo>>48)
		putHex(id[24:36], lo)
	}
	s.block = string(s.buf[:n*idLen])
}

// putHex fills dst with the last hexadecimal digits of x.
func putHex(dst []byte, x uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = "0123456789abcdef"[x&15]
		x >>= 4
	}
}
