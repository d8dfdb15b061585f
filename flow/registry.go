package flow

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// Values are arguments and results, by name.
type Values = map[string]any

// Registry knows functions by name, so that flows can be made of text. The zero
// Registry knows none. It may be used by many goroutines at once; a flow keeps
// the functions that were known when it was made.
type Registry struct {
	mu    sync.RWMutex
	funcs map[string]*function
}

// function is one that a registry knows.
type function struct {
	name   string
	params []string
	// call calls it with arguments, which errors call by names.
	call    func(ctx context.Context, args []any, names []string) (Values, error)
	results []string // names of its results, nil if they are not known
	mapped  bool     // it is one of Rename

	key    string // of a dispatch: the argument that says which of routes
	routes map[string]*function
}

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
	valuesType  = reflect.TypeFor[Values]()
)

// Register makes a function known. Its parameters, after a context if it takes
// one, are named by params. It may return an error last. Before that it returns
// [Values], nothing, or something of type any that is Values or empty; or as many
// results as there are names in results.
func (r *Registry) Register(name string, f any, params []string, results ...string) error {
	fn, err := newFunction(name, f, params, results)
	if err != nil {
		return fmt.Errorf("flow: function %s: %w", name, err)
	}
	return r.add(fn)
}

func (r *Registry) add(fn *function) error {
	if fn.name == "" || strings.ContainsFunc(fn.name, func(c rune) bool { return !inName(c) }) {
		return fmt.Errorf("flow: %w", &classified{ErrDefinition, fmt.Sprintf("%q is no name for a function: it has letters, digits, and the characters _ - .", fn.name)})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.funcs[fn.name] != nil {
		return fmt.Errorf("flow: %w", &classified{ErrDefinition, fmt.Sprintf("there is a function %s already", fn.name)})
	}
	if r.funcs == nil {
		r.funcs = make(map[string]*function)
	}
	r.funcs[fn.name] = fn
	return nil
}

func (r *Registry) find(name string) (*function, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if fn := r.funcs[name]; fn != nil {
		return fn, nil
	}
	return nil, &classified{ErrUnknown, fmt.Sprintf("there is no function %s", name)}
}

func newFunction(name string, f any, params, results []string) (*function, error) {
	v := reflect.ValueOf(f)
	if !v.IsValid() || v.Kind() != reflect.Func || v.IsNil() {
		return nil, &classified{ErrNotCallable, fmt.Sprintf("a %T is not a function", f)}
	}
	t := v.Type()
	first := 0
	if t.NumIn() > 0 && t.In(0) == contextType {
		first = 1
	}
	switch {
	case t.IsVariadic():
		return nil, &classified{ErrFuncArgs, "it takes any number of arguments"}
	case t.NumIn()-first != len(params):
		return nil, &classified{ErrFuncArgs, fmt.Sprintf("it has %d parameters, and %d have names", t.NumIn()-first, len(params))}
	}
	if err := checkNames(ErrFuncArgs, "parameter", params); err != nil {
		return nil, err
	}
	n := t.NumOut()
	fails := n > 0 && t.Out(n-1) == errorType
	if fails {
		n--
	}
	switch {
	case len(results) > 0 && len(results) != n:
		return nil, &classified{ErrDefinition, fmt.Sprintf("it has %d results, and %d have names", n, len(results))}
	case len(results) == 0 && n > 1, len(results) == 0 && n == 1 && t.Out(0).Kind() != reflect.Interface && !t.Out(0).ConvertibleTo(valuesType):
		return nil, &classified{ErrDefinition, fmt.Sprintf("it returns %v, and its results have no names", t.Out(0))}
	}
	if err := checkNames(ErrDefinition, "result", results); err != nil {
		return nil, err
	}
	results = slices.Clone(results)
	call := func(ctx context.Context, args []any, names []string) (Values, error) {
		in := make([]reflect.Value, 0, first+len(args))
		if first == 1 {
			in = append(in, reflect.ValueOf(ctx))
		}
		for i, a := range args {
			want := t.In(first + i)
			av := reflect.ValueOf(a)
			if !av.IsValid() {
				av = reflect.Zero(want)
			}
			if !av.Type().AssignableTo(want) {
				return nil, &classified{ErrArg, fmt.Sprintf("the argument %s is a %T, want %v", names[i], a, want)}
			}
			in = append(in, av)
		}
		out := v.Call(in)
		if fails {
			if err, _ := out[n].Interface().(error); err != nil {
				return nil, err
			}
		}
		if len(results) > 0 {
			vs := make(Values, n)
			for i, name := range results {
				vs[name] = out[i].Interface()
			}
			return vs, nil
		}
		if n == 0 {
			return Values{}, nil
		}
		return valuesOf(out[0].Interface())
	}
	return &function{name: name, params: slices.Clone(params), call: call, results: results}, nil
}

// checkNames returns what is wrong with the names of parameters or results.
func checkNames(class error, what string, names []string) error {
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			return &classified{class, fmt.Sprintf("the name %q of a %s is empty or not the only one", name, what)}
		}
	}
	return nil
}

// valuesOf is a result as Values: what is empty is none.
func valuesOf(v any) (Values, error) {
	rv := reflect.ValueOf(v)
	if !rv.IsValid() || rv.IsZero() {
		return Values{}, nil
	}
	switch rv.Kind() {
	case reflect.Map, reflect.Slice, reflect.String, reflect.Array:
		if rv.Len() == 0 {
			return Values{}, nil
		}
	}
	if rv.CanConvert(valuesType) {
		return rv.Convert(valuesType).Interface().(Values), nil
	}
	return nil, &classified{ErrResult, fmt.Sprintf("the result is a %T, want Values", v)}
}

// Rename makes a function known under another name, with other names for what it
// takes and returns: input says what its parameters are called where it is used,
// output what its results are called, each with its own name as the value. With
// no output its results keep their names.
func (r *Registry) Rename(name, of string, input, output map[string]string) error {
	fn, err := r.find(of)
	if err != nil {
		return fmt.Errorf("flow: function %s: %w", name, err)
	}
	if fn.routes != nil {
		return fmt.Errorf("flow: function %s: %w", name, &classified{ErrMapperArgs, of + " is a dispatch"})
	}
	for p := range input {
		if !slices.Contains(fn.params, p) {
			return fmt.Errorf("flow: function %s: %w", name, &classified{ErrMapperArgs, fmt.Sprintf("%s has no parameter %s", of, p)})
		}
	}
	as := &function{name: name, mapped: true}
	for _, p := range fn.params {
		if to, ok := input[p]; ok {
			p = to
		}
		as.params = append(as.params, p)
	}
	if err := checkNames(ErrFuncArgs, "parameter", as.params); err != nil {
		return fmt.Errorf("flow: function %s: %w", name, err)
	}
	for as, key := range output {
		if len(fn.results) > 0 && !slices.Contains(fn.results, key) {
			return fmt.Errorf("flow: function %s: %w", name, &classified{ErrMapperOutput, fmt.Sprintf("%s does not return %s, which is to be %s", of, key, as)})
		}
	}
	if as.results = slices.Sorted(maps.Keys(output)); len(output) == 0 {
		as.results = fn.results
	}
	output = maps.Clone(output)
	as.call = func(ctx context.Context, args []any, names []string) (Values, error) {
		vs, err := fn.call(ctx, args, names)
		if err != nil || len(output) == 0 {
			return vs, err
		}
		out := make(Values, len(output))
		for as, key := range output {
			v, ok := vs[key]
			if !ok {
				return nil, &classified{ErrMapperOutput, fmt.Sprintf("%s did not return %s, which is to be %s", of, key, as)}
			}
			out[as] = v
		}
		return out, nil
	}
	return r.add(as)
}

// Dispatch makes a function known that calls one of others: the one whose key is
// the argument param, as fmt prints it, or the one of the key "". Without one it
// fails with a [*DispatchError].
func (r *Registry) Dispatch(name, param string, routes map[string]string) error {
	fn := &function{name: name, key: param, routes: make(map[string]*function, len(routes))}
	if param == "" {
		return fmt.Errorf("flow: function %s: %w", name, &classified{ErrDefinition, "the argument that says which function has no name"})
	}
	if len(routes) == 0 {
		return fmt.Errorf("flow: function %s: %w", name, &classified{ErrEmpty, "a dispatch has no functions"})
	}
	for key, to := range routes {
		f, err := r.find(to)
		if err == nil && f.routes != nil {
			err = &classified{ErrDefinition, to + " is a dispatch, too"}
		}
		if err != nil {
			return fmt.Errorf("flow: function %s: %w", name, err)
		}
		fn.routes[key] = f
	}
	return r.add(fn)
}

// pick returns the function to call and its arguments, or which are missing.
func (fn *function) pick(from Values) (to *function, args []any, missing []string, err error) {
	if fn.routes != nil {
		key, ok := from[fn.key]
		if !ok {
			return nil, nil, []string{fn.key}, nil
		}
		if to = fn.routes[fmt.Sprint(key)]; to == nil {
			to = fn.routes[""]
		}
		if to == nil {
			return nil, nil, nil, &DispatchError{key}
		}
		return to.pick(from)
	}
	args = make([]any, len(fn.params))
	for i, p := range fn.params {
		v, ok := from[p]
		if !ok {
			missing = append(missing, p)
		}
		args[i] = v
	}
	return fn, args, missing, nil
}

// Call calls a function by its name. All its arguments must be there.
func (r *Registry) Call(ctx context.Context, name string, args Values) (Values, error) {
	fn, err := r.find(name)
	if err != nil {
		return nil, fmt.Errorf("flow: %w", err)
	}
	to, picked, missing, err := fn.pick(args)
	if err == nil && missing != nil {
		class := ErrMissing
		if to != nil && to.mapped {
			class = ErrMapperInput
		}
		err = missingArgs(class, missing)
	}
	if err != nil {
		return nil, fmt.Errorf("flow: function %s: %w", name, err)
	}
	return to.call(ctx, picked, to.params)
}

func missingArgs(class error, names []string) error {
	return &classified{class, "there is no argument " + strings.Join(names, ", ")}
}
