package redisstream

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"fmt"
	"time"
)

// The steps that must not be interrupted are scripts, which the server runs
// one at a time. All their data are keys and arguments.
var (
	//go:embed lua/claim.lua
	claimLua string
	//go:embed lua/settle.lua
	settleLua string
	//go:embed lua/leave.lua
	leaveLua string
	//go:embed lua/aside.lua
	asideLua string
	//go:embed lua/sweep.lua
	sweepLua string
	//go:embed lua/trim.lua
	trimLua string
	//go:embed lua/move.lua
	moveLua string
	//go:embed lua/accept.lua
	acceptLua string
	//go:embed lua/due.lua
	dueLua string

	claimScript  = newScript(claimLua)
	settleScript = newScript(settleLua)
	leaveScript  = newScript(leaveLua)
	asideScript  = newScript(asideLua)
	sweepScript  = newScript(sweepLua)
	trimScript   = newScript(trimLua)
	moveScript   = newScript(moveLua)
	acceptScript = newScript(acceptLua)
	dueScript    = newScript(dueLua)
)

// script is a script and the name the server knows it by.
type script struct{ source, hash string }

func newScript(source string) *script {
	return &script{source, fmt.Sprintf("%x", sha1.Sum([]byte(source)))}
}

// run runs a script and appends its reply to reply, if not nil.
func (t *Transport) run(ctx context.Context, s *script, keys []string, reply *sink, args ...any) error {
	if reply == nil {
		reply = new(sink)
	}
	all := append(make([]any, 0, 3+len(keys)+len(args)), "EVALSHA", s.hash, len(keys))
	for _, k := range keys {
		all = append(all, k)
	}
	all = append(all, args...)
	err := raw(ctx, t.clients.command(), reply, 3, all)
	if is(err, "NOSCRIPT") {
		all[0], all[1] = "EVAL", s.source
		err = raw(ctx, t.clients.command(), reply, 3, all)
	}
	return err
}

// waiting is the consumer of a group that holds what was given back. What it
// holds is due when idle for the horizon, so a delay is an idle time short of
// it. Redis lets an entry's idle time be set, and takes any in the past.
const (
	waiting   = "~waiting"
	horizon   = 10 * 365 * 24 * time.Hour
	horizonMS = "315360000000"

	// What goes back without a delay is idle for longer than that, so that it
	// is due even if the server's clock is set back.
	atOnce   = 2 * horizon
	atOnceMS = "630720000000"
)

// retrying runs a command that may be repeated, until it succeeds, fails for
// good, ctx ends, or longest has passed. It reports whether it was sent more
// than once. f may go on after an error if ctx ended.
func (t *Transport) retrying(ctx context.Context, longest time.Duration, f func(context.Context) error) (again bool, err error) {
	var pause backoff
	var until time.Duration
	for {
		_, err := within(ctx, func() error { return f(ctx) })
		fault := faultOf(err)
		if fault == none {
			t.answered()
			return again, err
		}
		t.failed(err)
		if fault == moved {
			relocate(ctx, t.clients.command())
		} else if fault != refused && fault != ambiguous {
			return again, err
		}
		now := clock()
		if until == 0 {
			until = now + longest
		}
		if now > until || pause.wait(ctx, t.ctx.Done()) != nil {
			return again, ended(ctx, err)
		}
		again = true
	}
}

// settleMost is how long a command of a subscription is tried at most.
const settleMost = 5 * time.Second

// forever leaves the end to a context.
const forever = horizon
