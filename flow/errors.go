package flow

import (
	"errors"
	"fmt"
)

// Error says where a flow failed, or what is wrong with its definition.
type Error struct {
	Path string // the names of what it is part of, the flow's first, and its own, with slashes between
	Step string // its name, "" where results contradict each other
	Err  error  // what its function returned; a panic is an [*echo.PanicError]
}

func (e *Error) Error() string { return fmt.Sprintf("flow %s: %v", e.Path, e.Err) }

func (e *Error) Unwrap() error { return e.Err }

// DispatchError is the error of a [Dispatch] that has no step for a key.
type DispatchError struct{ Key any }

func (e *DispatchError) Error() string { return fmt.Sprintf("no step for the key %v", e.Key) }

// Is makes it an [ErrDispatch].
func (e *DispatchError) Is(class error) bool { return class == ErrDispatch || class == ErrFlow }

// errExit is the error of a function that called runtime.Goexit, which ended the
// goroutine of a group.
var errExit = errors.New("a function ended its goroutine")
