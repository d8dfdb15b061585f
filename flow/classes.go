package flow

// Classes of errors, for errors.Is. Each is also of the class that it is listed
// under.
var (
	ErrFlow error = &class{text: "flow failed"}

	ErrCompose error = &class{text: "flow cannot be made or run", of: ErrFlow}

	ErrDefinition  error = &class{text: "wrong definition", of: ErrCompose}
	ErrEmpty       error = &class{text: "nothing in it", of: ErrDefinition}
	ErrNotTuple    error = &class{text: "not a Tuple", of: ErrDefinition}
	ErrNotCallable error = &class{text: "not a function", of: ErrDefinition}
	ErrUnknown     error = &class{text: "no such function", of: ErrNotCallable}
	ErrFuncArgs    error = &class{text: "parameters cannot be named", of: ErrDefinition}

	ErrRun     error = &class{text: "run failed", of: ErrCompose}
	ErrMerge   error = &class{text: "results contradict each other", of: ErrRun}
	ErrResult  error = &class{text: "result is not Values", of: ErrRun}
	ErrMissing error = &class{text: "arguments are missing", of: ErrRun}
	ErrArg     error = &class{text: "argument of another type", of: ErrRun}

	ErrMapper       error = &class{text: "mapping failed", of: ErrFlow}
	ErrMapperInput  error = &class{text: "an input to map is missing", of: ErrMapper}
	ErrMapperOutput error = &class{text: "an output to map is missing", of: ErrMapper}
	ErrMapperArgs   error = &class{text: "mapped arguments do not fit", of: ErrMapper}

	ErrDispatch error = &class{text: "nothing for a key", of: ErrFlow}
)

// class is a kind of error.
type class struct {
	text string
	of   error
}

func (c *class) Error() string { return c.text }

// Is reports whether the class is of another one.
func (c *class) Is(other error) bool {
	return c.of != nil && (c.of == other || c.of.(*class).Is(other))
}

// classified is an error of a class.
type classified struct {
	class error
	text  string
}

func (e *classified) Error() string { return e.text }
func (e *classified) Unwrap() error { return e.class }
