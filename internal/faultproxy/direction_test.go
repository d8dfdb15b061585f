package faultproxy

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestChunkLimitsEveryWrite(t *testing.T) {
	p, err := New("unused")
	require.NoError(t, err)
	defer p.Close()
	var written [][]byte
	d := newDirection(&conn{proxy: p, ctx: t.Context()}, nil, func(b []byte) bool {
		written = append(written, bytes.Clone(b))
		return true
	})
	p.Chunk(3)
	require.True(t, d.deliver(chunk{data: []byte("0123456"), at: time.Now()}))
	p.Chunk(0)
	require.True(t, d.deliver(chunk{data: []byte("789"), at: time.Now()}))
	require.Equal(t, [][]byte{[]byte("012"), []byte("345"), []byte("6"), []byte("789")}, written)
}
