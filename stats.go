package echo

import "sync/atomic"

// counts are what happened to a consumer's messages.
type counts struct {
	dead atomic.Uint64 // became dead letters
}
