package flow

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/echobus/echo"
)

// Kind is what a step is.
type Kind string

// What there is in a flow.
const (
	FlowKind     Kind = "flow"     // a flow, or a step with a name of its own
	FuncKind     Kind = "func"     // a function
	SourceKind   Kind = "source"   // a function without input
	TapKind      Kind = "tap"      // a function that returns its input
	FilterKind   Kind = "filter"   // a condition
	SequenceKind Kind = "sequence" // steps one after another
	GroupKind    Kind = "group"    // steps at the same time
	EachKind     Kind = "each"     // a step for each element of a slice
	DispatchKind Kind = "dispatch" // a step of several, by a key
	PublishKind  Kind = "publish"  // what publishes to a topic

	PipelineKind Kind = "pipeline" // a stream that runs
	TopicKind    Kind = "topic"    // a topic that messages come from
	BatchKind    Kind = "batch"    // elements together, as they come
	WindowKind   Kind = "window"   // elements together, by time, number and key
	JoinKind     Kind = "join"     // elements of two streams together
	UnionKind    Kind = "union"    // elements of several streams
	ParallelKind Kind = "parallel" // elements at the same time
)

// place is a step in a flow, and what happened there.
type place struct {
	kind     Kind
	name     string
	path     string // names with slashes between
	key      string // of a place in a dispatch: what leads to it
	policy   []string
	children []*place

	calls, done, failed, skipped, retried, given atomic.Int64

	timed, total, longest atomic.Int64 // calls whose time was taken, and how long they took, in nanoseconds
}

// builder makes places of steps.
type builder struct{ errs []error }

// add makes a place.
func (b *builder) add(parent *place, kind Kind, name string) *place {
	p := &place{kind: kind, name: name, path: name}
	if parent != nil {
		p.path = strings.Trim(parent.path+"/"+name, "/")
		parent.children = append(parent.children, p)
	}
	return p
}

// fail notes what is wrong with a place.
func (b *builder) fail(p *place, class error, format string, args ...any) {
	b.errs = append(b.errs, &Error{p.path, p.name, &classified{class, fmt.Sprintf(format, args...)}})
}

// wrap says where an error is from.
func (p *place) wrap(err error) error {
	switch {
	case isSkip(err):
		return ErrSkip
	case is(err, echo.ErrLater): // nobody would settle the message
		err = errors.New("a step returned echo.ErrLater, which is for handlers")
	}
	return &Error{p.path, p.name, err}
}

// located wraps what goroutines of a group made an error of, without knowing where.
func (p *place) located(err error) error {
	if _, ok := err.(*echo.PanicError); ok || err == errExit {
		return p.wrap(err)
	}
	return err
}

func isSkip(err error) bool { return is(err, ErrSkip) }

// is is errors.Is for errors of functions, which may panic when they are asked.
func is(err, target error) (yes bool) {
	if err == target {
		return true
	}
	defer func() { recover() }()
	return errors.Is(err, target)
}

// To take the time costs as much as all else. Of a step that is quick it is
// taken of each of the first calls, and then of one in so many.
const (
	alwaysTimed = 64
	oneTimed    = 32
	quick       = 20 * time.Microsecond
)

var start = time.Now()

// untimed stands for a time that nobody took.
const untimed = time.Duration(math.MinInt64)

// begin notes the beginning of a call, and returns when that was.
func (p *place) begin() time.Duration {
	n := p.calls.Add(1)
	if n > alwaysTimed && n%oneTimed != 0 && p.longest.Load() < int64(quick) {
		return untimed
	}
	return time.Since(start)
}

// end notes the end of a call.
func (p *place) end(since time.Duration, err error) {
	if since != untimed {
		took := int64(time.Since(start) - since)
		p.timed.Add(1)
		p.total.Add(took)
		for longest := p.longest.Load(); took > longest && !p.longest.CompareAndSwap(longest, took); longest = p.longest.Load() {
		}
	}
	switch {
	case err == nil, err == echo.ErrLater:
	case isSkip(err):
		p.skipped.Add(1)
	default:
		p.failed.Add(1)
	}
	p.done.Add(1)
}

// counted is a runner whose calls are a place's. A panic of a function that is no
// step of its own, such as one of Adapt, is the place's.
func counted[In, Out any](p *place, run runner[In, Out]) runner[In, Out] {
	return func(ctx context.Context, in In) (out Out, err error) {
		since := p.begin()
		returned := false
		defer func() {
			if !returned {
				err = errExit
				if v := recover(); v != nil {
					err = p.wrap(&echo.PanicError{Value: v, Stack: debug.Stack()})
				}
			}
			p.end(since, err)
		}()
		out, err = run(ctx, in)
		returned = true
		if err != nil {
			var none Out
			return none, p.located(err)
		}
		return out, nil
	}
}

// Sight is what is at a place in a flow, and what happened there.
type Sight struct {
	Kind     Kind     `json:"kind"`
	Name     string   `json:"name,omitempty"` // "" of a sequence
	Path     string   `json:"path"`
	Key      string   `json:"key,omitempty"`    // of a step of a dispatch: what leads to it
	Policy   []string `json:"policy,omitempty"` // as options say: "timeout 1s"
	Counts   Counts   `json:"counts"`           // of a sequence, none
	Children []Sight  `json:"children,omitempty"`
}

// Counts is what happened at a place, since the flow was made.
type Counts struct {
	Calls   int64 `json:"calls"`
	Running int64 `json:"running"`
	Failed  int64 `json:"failed"`
	Skipped int64 `json:"skipped"`
	Retried int64 `json:"retried"`
	Given   int64 `json:"given,omitempty"` // of the step of an [Each]: elements that it was given, to be called for each
	// Mean and Longest are how long a call takes, retries and the wait for a limit
	// aside. Of a step that is quick, they are of some of its calls.
	Mean    time.Duration `json:"mean"`
	Longest time.Duration `json:"longest"`
}

// Done is how many inputs the place is done with: calls that have ended, attempts
// that were followed by another aside.
func (c Counts) Done() int64 { return max(0, c.Calls-c.Running-c.Retried) }

func (p *place) sight() Sight {
	s := Sight{Kind: p.kind, Name: p.name, Path: p.path, Key: p.key, Policy: p.policy}
	retried := p.retried.Load() // before the others, or less than none may seem to be done,
	done := p.done.Load()       // or running
	s.Counts = Counts{
		Calls: p.calls.Load(), Failed: p.failed.Load(), Skipped: p.skipped.Load(), Retried: retried, Given: p.given.Load(),
		Longest: time.Duration(p.longest.Load()),
	}
	s.Counts.Running = s.Counts.Calls - done
	if n := p.timed.Load(); n > 0 {
		s.Counts.Mean = time.Duration(p.total.Load() / n)
	}
	for _, c := range p.children {
		s.Children = append(s.Children, c.sight())
	}
	return s
}
