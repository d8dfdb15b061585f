package flow

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Tuple is a definition of a flow: functions of a [Registry] by their names, and
// Tuples. What is in it comes one after another; what is in a Tuple in it, at the
// same time; in a Tuple in that, one after another again, and so on.
type Tuple []any

// Visibility is what a step sees besides what the one before it returned.
type Visibility int

const (
	VisibleNone    Visibility = iota // nothing
	VisibleInitial                   // what the flow was run with
	VisibleAll                       // that, and what all steps before it returned
)

// DefineOption says how a flow of names works.
type DefineOption func(*rules)

type rules struct {
	visible Visibility
	strict  bool
}

// WithVisibility makes more visible than what the step before returned. What is
// visible is also part of the results. A step that returns another value for a
// name that is there already is an [ErrMerge].
func WithVisibility(v Visibility) DefineOption { return func(r *rules) { r.visible = v } }

// Strict makes a function whose arguments are not there an [ErrMissing]. Without
// it, that function is left out, and what it was given goes on to the next.
func Strict() DefineOption { return func(r *rules) { r.strict = true } }

// Parse makes a flow of text: names of functions, those that come one after
// another with | between, those that run at the same time with commas; and
// parentheses.
//
//	source, target | compare | s3_logger, notify
//
// An error of the text is a [*SyntaxError]. The flow prints as the text does, but
// for spaces.
func (r *Registry) Parse(name, text string, opts ...DefineOption) (*Flow[Values, Values], error) {
	s, err := parse(text)
	if err != nil {
		return nil, &Error{name, name, err}
	}
	f, err := r.define(name, s.element(), opts)
	if f != nil {
		f.text = s.String()
	}
	return f, err
}

// Define makes a flow of a [Tuple].
func (r *Registry) Define(name string, def any, opts ...DefineOption) (*Flow[Values, Values], error) {
	t, ok := def.(Tuple)
	if !ok {
		return nil, &Error{name, name, &classified{ErrNotTuple, fmt.Sprintf("the definition is a %T, want a Tuple", def)}}
	}
	e, err := tupleElement(t, nil)
	if err != nil {
		return nil, &Error{name, name, err}
	}
	return r.define(name, e, opts)
}

// element is a function, a sequence or a group.
type element struct {
	name   string
	column int // in a text
	kind   Kind
	parts  []element
}

func (s sequenceText) element() element {
	e := element{kind: SequenceKind}
	for _, g := range s {
		group := element{kind: GroupKind}
		for _, it := range g {
			part := element{kind: FuncKind, name: it.name, column: it.column}
			if it.in != nil {
				part = it.in.element()
			}
			group.parts = append(group.parts, part)
		}
		if len(group.parts) == 1 {
			group = group.parts[0]
		}
		e.parts = append(e.parts, group)
	}
	return e
}

// tupleElement makes an element of a Tuple that is in others, named by their first
// elements.
func tupleElement(t Tuple, outer []*any) (e element, err error) {
	e.kind = SequenceKind
	if len(outer)%2 == 1 {
		e.kind = GroupKind
	}
	switch {
	case len(t) == 0:
		return e, &classified{ErrEmpty, "a Tuple is empty"}
	case slices.Contains(outer, &t[0]):
		return e, &classified{ErrDefinition, "a Tuple contains itself: a flow has no cycles"}
	case len(outer) == deepest:
		return e, &classified{ErrDefinition, fmt.Sprintf("Tuples are nested more than %d deep", deepest)}
	}
	for _, x := range t {
		part := element{kind: FuncKind}
		switch x := x.(type) {
		case Tuple:
			if part, err = tupleElement(x, append(slices.Clip(outer), &t[0])); err != nil {
				return e, err
			}
		case string:
			part.name = x
		default:
			switch reflect.ValueOf(x).Kind() {
			case reflect.Slice, reflect.Array, reflect.Map:
				return e, &classified{ErrNotTuple, fmt.Sprintf("a %T is in the definition, want a Tuple", x)}
			}
			return e, &classified{ErrNotCallable, fmt.Sprintf("a %T is in the definition, want the name of a function", x)}
		}
		e.parts = append(e.parts, part)
	}
	return e, nil
}

func (r *Registry) define(name string, e element, opts []DefineOption) (*Flow[Values, Values], error) {
	d := &dynamic{r: r}
	for _, o := range opts {
		if o != nil {
			o(&d.rules)
		}
	}
	return New(name, Step[Values, Values]{func(b *builder, parent *place) (runner[Values, Values], *place) {
		if v := d.rules.visible; v < VisibleNone || v > VisibleAll {
			b.fail(parent, ErrDefinition, "there is no Visibility %d", v)
		}
		run := d.build(b, parent, e)
		return func(ctx context.Context, in Values) (Values, error) {
			out, _, err := run(ctx, in, in)
			if err != nil {
				return nil, err
			}
			return maps.Clone(out), nil // nobody else's map
		}, parent
	}})
}

// dynamic makes places of elements.
type dynamic struct {
	r     *Registry
	rules rules
}

// named runs an element: initial is what the flow was run with, in what came out
// before. If no function was called, out is in.
type namedRunner func(ctx context.Context, initial, in Values) (out Values, called bool, err error)

func (d *dynamic) build(b *builder, parent *place, e element) namedRunner {
	if e.kind == FuncKind {
		return d.function(b, parent, e)
	}
	p := b.add(parent, e.kind, "")
	parts := make([]namedRunner, len(e.parts))
	for i, part := range e.parts {
		parts[i] = d.build(b, p, part)
	}
	if e.kind == SequenceKind {
		return d.sequence(p, parts, e.parts)
	}
	return d.group(p, parts, e.parts)
}

// String names an element in an error.
func (e element) String() string {
	if e.kind == FuncKind {
		return e.name
	}
	names := make([]string, len(e.parts))
	for i, p := range e.parts {
		names[i] = p.String()
	}
	if e.kind == SequenceKind {
		return "(" + strings.Join(names, " | ") + ")"
	}
	return "(" + strings.Join(names, ", ") + ")"
}

func (d *dynamic) function(b *builder, parent *place, e element) namedRunner {
	fn, err := d.r.find(e.name)
	if err != nil {
		if e.column > 0 {
			err = &classified{ErrUnknown, fmt.Sprintf("column %d: %v", e.column, err)}
		}
		b.errs = append(b.errs, &Error{parent.path + "/" + e.name, e.name, err})
		return nil
	}
	type call struct {
		to   *function
		args []any
	}
	run, p := Func(e.name, func(ctx context.Context, c call) (Values, error) { return c.to.call(ctx, c.args, c.to.params) }).in(b, parent)
	return func(ctx context.Context, _, in Values) (Values, bool, error) {
		to, args, missing, err := fn.pick(in)
		switch {
		case err != nil:
			return nil, false, p.wrap(err)
		case missing != nil && d.rules.strict:
			return nil, false, p.wrap(missingArgs(ErrMissing, missing))
		case missing != nil:
			return in, false, nil
		}
		out, err := run(ctx, call{to, args})
		return out, true, err
	}
}

func (d *dynamic) sequence(p *place, parts []namedRunner, steps []element) namedRunner {
	return func(ctx context.Context, initial, in Values) (Values, bool, error) {
		called := false
		for i, run := range parts {
			out, did, err := run(ctx, initial, in)
			if err != nil {
				return nil, false, err
			}
			if !did {
				continue
			}
			called = true
			switch d.rules.visible {
			case VisibleInitial:
				out, err = merged([]string{"the input", steps[i].String()}, initial, out)
			case VisibleAll:
				out, err = merged([]string{"what was there", steps[i].String()}, in, out)
			}
			if err != nil {
				return nil, false, p.wrap(err)
			}
			in = out
		}
		return in, called, nil
	}
}

func (d *dynamic) group(p *place, parts []namedRunner, steps []element) namedRunner {
	return func(ctx context.Context, initial, in Values) (out Values, called bool, err error) {
		since := p.begin()
		defer func() { p.end(since, err) }()
		outs, did := make([]Values, len(parts)), make([]bool, len(parts))
		err = together(ctx, len(parts), len(parts), func(ctx context.Context, i int) (err error) {
			outs[i], did[i], err = parts[i](ctx, initial, in)
			if isSkip(err) {
				did[i], err = false, nil
			}
			return err
		})
		if err != nil {
			return nil, false, err
		}
		var results []Values
		var names []string
		for i, out := range outs {
			if did[i] {
				results, names = append(results, out), append(names, steps[i].String())
			}
		}
		if len(results) == 0 {
			return in, false, nil
		}
		if out, err = merged(names, results...); err != nil {
			return nil, false, p.wrap(err)
		}
		return out, true, nil
	}
}

// merged is all of several Values, which are by names. Those of one name must be equal.
func merged(by []string, all ...Values) (Values, error) {
	out := make(Values)
	first := make(map[string]int) // who returned it
	for i, vs := range all {
		for _, k := range slices.Sorted(maps.Keys(vs)) {
			if j, ok := first[k]; !ok {
				out[k], first[k] = vs[k], i
			} else if !reflect.DeepEqual(out[k], vs[k]) {
				return nil, &classified{ErrMerge, fmt.Sprintf("%s is %#v by %s and %#v by %s", k, out[k], by[j], vs[k], by[i])}
			}
		}
	}
	return out, nil
}
