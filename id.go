package echo

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
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
	base  time.Time // a reading of the clock, at most a second old
	block string
	milli int64
	size  int // IDs in a block
	buf   []byte
}

const (
	idLen    = 36
	maxBlock = 64
)

// next returns a fresh ID and the time it was made, which is read off the
// monotonic clock from second to second, as that is cheaper.
func (s *ids) next() (id string, now time.Time) {
	since := time.Since(s.base)
	if since > time.Second {
		s.base, since = time.Now(), 0
	}
	now = s.base.Add(since)
	milli := now.UnixMilli()
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
	id = s.block[:idLen]
	s.block = s.block[idLen:]
	return id, now
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
			hex.Encode(id, binary.BigEndian.AppendUint64(nil, hi)) // then spread out:
			copy(id[14:], id[12:16])
			copy(id[9:], id[8:12])
			id[8], id[13], id[18], id[23] = '-', '-', '-', '-'
		} else {
			copy(id[:24], s.buf)
		}
		putHex(id[19:], lo>>48, 2)
		putHex(id[24:], lo, 6)
	}
	s.block = string(s.buf[:n*idLen])
}

// putHex writes the last n bytes of x, two hexadecimal digits each.
func putHex(dst []byte, x uint64, n int) {
	for dst = dst[:2*n]; len(dst) > 0; x >>= 8 {
		binary.LittleEndian.PutUint16(dst[len(dst)-2:], hexPairs[byte(x)])
		dst = dst[:len(dst)-2]
	}
}

// hexPairs holds the two digits of each byte, the first one in the lower half.
var hexPairs = func() (pairs [256]uint16) {
	for i := range pairs {
		const digits = "0123456789abcdef"
		pairs[i] = uint16(digits[i>>4]) | uint16(digits[i&15])<<8
	}
	return pairs
}()
