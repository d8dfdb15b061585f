package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/flow"
)

type row map[string]any

func (r row) values() flow.Values { return flow.Values(r) }

// known is a registry with some functions.
func known(t testing.TB) *flow.Registry {
	t.Helper()
	r := &flow.Registry{}
	for name, f := range map[string]struct {
		f       any
		params  []string
		results []string
	}{
		"a":        {func() flow.Values { return flow.Values{"a": 1} }, nil, nil},
		"b":        {func(ctx context.Context) (flow.Values, error) { return flow.Values{"b": 2}, ctx.Err() }, nil, nil},
		"sum":      {func(a, b int) int { return a + b }, []string{"a", "b"}, []string{"sum"}},
		"inc":      {func(a int) flow.Values { return flow.Values{"a": a + 1} }, []string{"a"}, nil},
		"divmod":   {func(x, y int) (int, int, error) { return x / y, x % y, nil }, []string{"x", "y"}, []string{"div", "mod"}},
		"needs_z":  {func(z any) flow.Values { return flow.Values{"z": z} }, []string{"z"}, nil},
		"nothing":  {func(a int) {}, []string{"a"}, nil},
		"fails":    {func() error { return errOops }, nil, nil},
		"a_is_one": {func() flow.Values { return flow.Values{"a": 1, "one": true} }, nil, nil},
		"a_is_two": {func() flow.Values { return flow.Values{"a": 2} }, nil, nil},
		"text":     {func() any { return "text" }, nil, nil},
		"empty":    {func() any { return []int{} }, nil, nil},
		"nil":      {func() flow.Values { return nil }, nil, nil},
		"false":    {func() any { return false }, nil, nil},
		"row":      {func() row { return row{"a": 1} }, nil, nil},
		"none":     {func() any { return map[string]int{} }, nil, nil},
		"method":   {row{"n": 1}.values, nil, nil},
		"skips":    {func() error { return flow.ErrSkip }, nil, nil},
	} {
		require.NoError(t, r.Register(name, f.f, f.params, f.results...), name)
	}
	return r
}

func TestFlowsOfText(t *testing.T) {
	r := known(t)
	require.NoError(t, r.Rename("add", "sum", map[string]string{"a": "left", "b": "right"}, map[string]string{"total": "sum"}))
	require.NoError(t, r.Dispatch("route", "kind", map[string]string{"1": "inc", "": "nothing"}))
	type V = flow.Values
	for _, x := range []struct {
		text string
		in   V
		want V
	}{
		{"a", nil, V{"a": 1}},
		{"a, b", nil, V{"a": 1, "b": 2}},
		{"row", nil, V{"a": 1}},
		{"none", V{"a": 1}, V{}},
		{"method", nil, V{"n": 1}},
		{"a, skips", nil, V{"a": 1}},
		{"a, (skips | b)", nil, V{"a": 1}},
		{"(needs_z | sum), b", V{"a": 0}, V{"b": 2}},
		{"((needs_z, sum) | sum), b", V{"a": 0}, V{"b": 2}},
		{"a, b | sum", nil, V{"sum": 3}},
		{"inc | inc | inc", V{"a": 0}, V{"a": 3}},
		{"needs_z | inc", V{"a": 0}, V{"a": 1}},        // what has no arguments is left out
		{"needs_z, sum", V{"a": 0}, V{"a": 0}},         // of a group, too: the input goes on
		{"inc, sum", V{"a": 0}, V{"a": 1}},             // but for what is there
		{"(a | inc | inc), b | sum", nil, V{"sum": 5}}, // nested sequences are results of the group
		{"((a, b) | sum), (a | inc)", nil, V{"sum": 3, "a": 2}},
		{"divmod", V{"x": 17, "y": 5}, V{"div": 3, "mod": 2}},
		{"a, a_is_one", nil, V{"a": 1, "one": true}}, // equal results do not contradict
		{"inc | nothing", V{"a": 1}, V{}},
		{"empty", V{"a": 1}, V{}},
		{"nil", V{"a": 1}, V{}},
		{"false", V{"a": 1}, V{}},
		{"add", V{"left": 1, "right": 2}, V{"total": 3}},
		{"add | needs_z", V{"left": 1}, V{"left": 1}},
		{"route", V{"kind": 1, "a": 5}, V{"a": 6}},
		{"route", V{"kind": "other", "a": 5}, V{}},
		{"route", V{"a": 5}, V{"a": 5}},
	} {
		f, err := r.Parse("f", x.text)
		require.NoError(t, err, x.text)
		assert.Equal(t, x.text, f.String())
		before := fmt.Sprint(x.in)
		for range 2 {
			out, err := f.Run(t.Context(), x.in)
			require.NoError(t, err, x.text)
			if out == nil {
				out = V{}
			}
			assert.Equal(t, x.want, out, x.text)
		}
		assert.Equal(t, before, fmt.Sprint(x.in), "the arguments are the caller's")
	}
	f, err := r.Parse("f", " a,b|( sum)\n")
	require.NoError(t, err)
	assert.Equal(t, "a, b | (sum)", f.String())
	assert.Contains(t, f.Sight().Mermaid(), "sum")
}

func TestVisibility(t *testing.T) {
	r := known(t)
	type V = flow.Values
	for _, x := range []struct {
		text    string
		visible flow.Visibility
		want    V
		err     error
	}{
		{"b | sum", flow.VisibleNone, V{"b": 2}, nil},
		{"b | sum", flow.VisibleInitial, V{"a": 1, "sum": 3}, nil},
		{"b | sum", flow.VisibleAll, V{"a": 1, "b": 2, "sum": 3}, nil},
		{"inc", flow.VisibleNone, V{"a": 2}, nil},
		{"inc", flow.VisibleInitial, nil, flow.ErrMerge},
		{"inc", flow.VisibleAll, nil, flow.ErrMerge},
		{"(b | sum), a", flow.VisibleInitial, V{"a": 1, "sum": 3}, nil},
	} {
		f, err := r.Parse("f", x.text, flow.WithVisibility(x.visible))
		require.NoError(t, err)
		out, err := f.Run(t.Context(), V{"a": 1})
		if x.err != nil {
			assert.ErrorIs(t, err, x.err, x.text)
			continue
		}
		require.NoError(t, err, x.text)
		assert.Equal(t, x.want, out, "%s, %d", x.text, x.visible)
	}
	// Runs at the same time do not mix their arguments.
	f, err := r.Parse("f", "b, needs_z | sum", flow.WithVisibility(flow.VisibleInitial))
	require.NoError(t, err)
	var work sync.WaitGroup
	for i := range 100 {
		work.Go(func() {
			out, err := f.Run(t.Context(), V{"a": i, "z": i})
			assert.NoError(t, err)
			assert.Equal(t, V{"a": i, "z": i, "sum": i + 2}, out)
		})
	}
	work.Wait()
}

func TestErrorsHaveClasses(t *testing.T) {
	r := known(t)
	require.NoError(t, r.Rename("renamed", "inc", map[string]string{"a": "x"}, map[string]string{"y": "missing"}))
	require.NoError(t, r.Rename("plus", "sum", map[string]string{"a": "x"}, nil))
	require.NoError(t, r.Dispatch("route", "kind", map[string]string{"1": "inc"}))
	run := func(text string, in flow.Values, opts ...flow.DefineOption) error {
		f, err := r.Parse("f", text, opts...)
		require.NoError(t, err)
		_, err = f.Run(t.Context(), in)
		return err
	}
	define := func(def any) error {
		_, err := r.Define("f", def)
		return err
	}
	call := func(name string, in flow.Values) error {
		_, err := r.Call(t.Context(), name, in)
		return err
	}
	many := func(...int) {}
	for _, x := range []struct {
		err     error
		classes []error
		text    string
	}{
		{define([]any{"a"}), []error{flow.ErrNotTuple, flow.ErrDefinition, flow.ErrFlow}, "a []interface {}"},
		{define(map[string]int{}), []error{flow.ErrNotTuple}, "a map"},
		{define(nil), []error{flow.ErrNotTuple}, "nil"},
		{define("a"), []error{flow.ErrNotTuple}, "a string"},
		{define(flow.Tuple{}), []error{flow.ErrEmpty, flow.ErrDefinition}, "empty"},
		{define(flow.Tuple{"a", flow.Tuple{"b", flow.Tuple{}}}), []error{flow.ErrEmpty}, "empty"},
		{define(flow.Tuple{"a", []string{"b"}}), []error{flow.ErrNotTuple}, "a []string"},
		{define(flow.Tuple{"a", 7}), []error{flow.ErrNotCallable}, "an? int"},
		{define(flow.Tuple{"a", flow.Tuple{"b", "c"}}), []error{flow.ErrUnknown, flow.ErrNotCallable, flow.ErrDefinition}, "no function c"},
		{r.Register("x", 7, nil), []error{flow.ErrNotCallable}, "function x: a int is not"},
		{r.Register("x", nil, nil), []error{flow.ErrNotCallable}, ""},
		{r.Register("x", many, []string{"a"}), []error{flow.ErrFuncArgs}, "any number"},
		{r.Register("x", double, nil), []error{flow.ErrFuncArgs}, "1 parameters, and 0"},
		{r.Register("x", func(a, b int) {}, []string{"a", "a"}), []error{flow.ErrFuncArgs}, `"a"`},
		{r.Register("x", double, []string{"a"}), []error{flow.ErrDefinition}, "returns int"},
		{r.Register("x", double, []string{"a"}, "b", "c"), []error{flow.ErrDefinition}, "1 results, and 2"},
		{r.Register("x y", double, []string{"a"}, "b"), []error{flow.ErrDefinition}, `"x y"`},
		{r.Register("a", double, []string{"a"}, "b"), []error{flow.ErrDefinition}, "already"},
		{r.Rename("x", "y", nil, nil), []error{flow.ErrUnknown}, "y"},
		{r.Rename("x", "sum", map[string]string{"c": "d"}, nil), []error{flow.ErrMapperArgs, flow.ErrMapper}, "no parameter c"},
		{r.Dispatch("x", "key", nil), []error{flow.ErrEmpty}, ""},
		{r.Dispatch("x", "key", map[string]string{"1": "y"}), []error{flow.ErrUnknown}, ""},
		{run("a_is_one, a_is_two", nil), []error{flow.ErrMerge, flow.ErrRun, flow.ErrFlow}, "flow f: a is 1 by a_is_one and 2 by a_is_two"},
		{run("text", nil), []error{flow.ErrResult, flow.ErrRun}, "flow f/text: the result is a string"},
		{run("a, text", nil), []error{flow.ErrResult}, "f/text"},
		{run("needs_z", nil, flow.Strict()), []error{flow.ErrMissing, flow.ErrRun}, "no argument z"},
		{run("sum", flow.Values{"a": 1, "b": "two"}), []error{flow.ErrArg}, "argument b is a string, want int"},
		{run("sum", flow.Values{"a": 1, "b": nil}), nil, ""},
		{run("renamed", flow.Values{"x": 1}), []error{flow.ErrMapperOutput, flow.ErrMapper}, "did not return missing"},
		{run("route", flow.Values{"kind": 2}), []error{flow.ErrDispatch, flow.ErrFlow}, "key 2"},
		{run("fails", nil), []error{errOops}, "flow f/fails: oops"},
		{run("plus", flow.Values{"x": "one", "b": 2}), []error{flow.ErrArg}, "argument x is a string"},
		{call("route", flow.Values{"a": 1}), []error{flow.ErrMissing}, "no argument kind"},
		{define(double), []error{flow.ErrNotTuple}, "func"},
		{define(flow.Tuple{"a", map[string]bool{"b": true}}), []error{flow.ErrNotTuple}, "map"},
		{define(flow.Tuple{[1]string{"b"}}), []error{flow.ErrNotTuple}, ""},
		{define(flow.Tuple{double}), []error{flow.ErrNotCallable}, "func"},
		{define(flow.Tuple{"a", flow.Tuple{"nope", "b"}}), []error{flow.ErrUnknown}, "flow f/nope"},
		{r.Register("x", (func())(nil), nil), []error{flow.ErrNotCallable}, ""},
		{r.Register("x", double, []string{""}, "b"), []error{flow.ErrFuncArgs}, `""`},
		{r.Register("x", func() (int, int) { return 1, 2 }, nil, "v", "v"), []error{flow.ErrDefinition}, `"v"`},
		{r.Rename("x", "sum", map[string]string{"a": "b"}, nil), []error{flow.ErrFuncArgs}, `"b"`},
		{r.Rename("x", "sum", nil, map[string]string{"y": "missing"}), []error{flow.ErrMapperOutput}, "missing"},
		{r.Rename("x", "route", nil, nil), []error{flow.ErrMapperArgs}, "is a dispatch"},
		{r.Dispatch("x", "", map[string]string{"1": "inc"}), []error{flow.ErrDefinition}, ""},
		{r.Dispatch("x", "k", map[string]string{"1": "route"}), []error{flow.ErrDefinition}, "dispatch, too"},
		{call("renamed", flow.Values{"b": 2}), []error{flow.ErrMapperInput, flow.ErrMapper}, "no argument x"},
		{call("sum", flow.Values{"b": 2}), []error{flow.ErrMissing}, "no argument a"},
		{call("nope", nil), []error{flow.ErrUnknown}, ""},
	} {
		if x.classes == nil {
			assert.NoError(t, x.err)
			continue
		}
		require.Error(t, x.err, "%v", x.classes)
		for _, class := range x.classes {
			assert.ErrorIs(t, x.err, class)
		}
		assert.Regexp(t, strings.NewReplacer("[", `\[`, "{", `\{`, "(", `\(`).Replace(x.text), x.err.Error())
	}
	assert.NotErrorIs(t, flow.ErrEmpty, flow.ErrRun)
	out, err := r.Call(t.Context(), "sum", flow.Values{"a": 1, "b": 2})
	require.NoError(t, err)
	assert.Equal(t, flow.Values{"sum": 3}, out)
}

func TestErrorsOfATextSayWhere(t *testing.T) {
	r := known(t)
	for text, want := range map[string]string{
		"":            "column 1: the text ends",
		"  ":          "column 3: the text ends",
		"a |":         "column 4: the text ends",
		"a, | b":      "column 4: '|' is not expected",
		"a b":         "column 3: 'b' is not expected",
		"(a | b":      "column 7: the text ends",
		"a)":          "column 2: ')' is not expected",
		"a, ()":       "column 5: ')' is not expected",
		"äöü | € | a": "column 7: '€' is not expected",
		strings.Repeat("(", 200) + "a" + strings.Repeat(")", 200): "column 101: more than 100 parentheses",
		"a | (b, nope)": "column 9: there is no function nope",
	} {
		_, err := r.Parse("f", text)
		assert.ErrorContains(t, err, want, text)
		assert.ErrorIs(t, err, flow.ErrDefinition)
		assert.Regexp(t, "^flow f(/nope)?: ", err.Error())
	}
	_, err := r.Parse("f", "x | y")
	assert.ErrorContains(t, err, "function x")
	assert.ErrorContains(t, err, "function y", "all that is wrong")
}

func TestATextRunsAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &flow.Registry{}
		for _, name := range []string{"x", "y", "z"} {
			require.NoError(t, r.Register(name, func() flow.Values {
				time.Sleep(200 * time.Millisecond)
				return flow.Values{name: true}
			}, nil))
		}
		require.NoError(t, r.Register("bad", func(ctx context.Context) error {
			time.Sleep(time.Second)
			return errOops
		}, nil))
		require.NoError(t, r.Register("long", func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}, nil))
		f, err := r.Parse("f", "x, (y | z), (z | y)")
		require.NoError(t, err)
		begin := time.Now()
		out, err := f.Run(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, flow.Values{"x": true, "y": true, "z": true}, out)
		assert.Equal(t, 400*time.Millisecond, time.Since(begin))

		f, err = r.Parse("f", "bad, long, (x | long)")
		require.NoError(t, err)
		begin = time.Now()
		_, err = f.Run(t.Context(), nil)
		assert.ErrorIs(t, err, errOops)
		assert.Equal(t, time.Second, time.Since(begin), "the others are cancelled")

		f, err = r.Parse("f", "x")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 59500*time.Millisecond, io.EOF)
		defer cancel()
		assert.ErrorIs(t, f.Forever(ctx, nil, 800*time.Millisecond), io.EOF)
		assert.EqualValues(t, 60, f.Sight().Counts.Calls)
		bad, err := r.Parse("f", "bad")
		require.NoError(t, err)
		assert.ErrorIs(t, bad.Forever(t.Context(), nil, time.Second), errOops)
	})
}

// Whatever is parsed prints as a text that is parsed to the same.
func FuzzText(f *testing.F) {
	for _, text := range []string{"a", "a, b | sum", "(a | inc), b | ((sum))", "a,", "|", "((", "a b", "\x00", "äö"} {
		f.Add(text)
	}
	r := known(f)
	f.Fuzz(func(t *testing.T, text string) {
		one, err := r.Parse("f", text)
		if err != nil {
			if _, ok := errors.AsType[*flow.Error](err); !ok {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		two, err := r.Parse("f", one.String())
		if err != nil || two.String() != one.String() {
			t.Fatalf("%q printed as %q, which is %v, %v", text, one, two, err)
		}
	})
}

// A definition by Tuples is data, which may be anything.
func TestTuplesWithoutEnd(t *testing.T) {
	var r flow.Registry
	require.NoError(t, r.Register("f", func() {}, nil))
	cycle := flow.Tuple{"f", nil}
	cycle[1] = flow.Tuple{"f", cycle}
	_, err := r.Define("cycle", cycle)
	assert.ErrorContains(t, err, "flow cycle: a Tuple contains itself")
	assert.ErrorIs(t, err, flow.ErrDefinition)
	deep := flow.Tuple{"f"}
	for range 1_000_000 {
		deep = flow.Tuple{deep}
	}
	_, err = r.Define("deep", deep)
	assert.ErrorContains(t, err, "deep")
	twice := flow.Tuple{"f"}
	_, err = r.Define("twice", flow.Tuple{twice, twice})
	assert.NoError(t, err, "in two places is no cycle")
}

// Tuples are one after another, at the same time, one after another, and so on.
func TestTuplesAlternate(t *testing.T) {
	r := known(t)
	f, err := r.Define("f", flow.Tuple{flow.Tuple{flow.Tuple{"a", "inc", "inc"}, "b"}, "sum"})
	require.NoError(t, err)
	out, err := f.Run(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, flow.Values{"sum": 5}, out)
	assert.Equal(t, "((a | inc | inc), b) | sum", f.String())
}

func TestClassesAreATree(t *testing.T) {
	for c, of := range map[error]error{
		flow.ErrCompose: flow.ErrFlow, flow.ErrMapper: flow.ErrFlow, flow.ErrDispatch: flow.ErrFlow,
		flow.ErrDefinition: flow.ErrCompose, flow.ErrRun: flow.ErrCompose,
		flow.ErrEmpty: flow.ErrDefinition, flow.ErrNotTuple: flow.ErrDefinition, flow.ErrNotCallable: flow.ErrDefinition,
		flow.ErrUnknown: flow.ErrNotCallable, flow.ErrFuncArgs: flow.ErrDefinition,
		flow.ErrMerge: flow.ErrRun, flow.ErrResult: flow.ErrRun, flow.ErrMissing: flow.ErrRun, flow.ErrArg: flow.ErrRun,
		flow.ErrMapperInput: flow.ErrMapper, flow.ErrMapperOutput: flow.ErrMapper, flow.ErrMapperArgs: flow.ErrMapper,
	} {
		assert.ErrorIs(t, c, of)
		assert.ErrorIs(t, c, flow.ErrFlow)
		assert.NotErrorIs(t, of, c)
	}
	for _, c := range []error{flow.ErrMapper, flow.ErrDispatch} {
		assert.NotErrorIs(t, c, flow.ErrCompose)
	}
	assert.ErrorIs(t, &flow.SyntaxError{}, flow.ErrFlow)
}

// Nobody's map is changed, nor given away.
func TestMapsAreNobodyElses(t *testing.T) {
	r, mine := known(t), flow.Values{"x": 1}
	require.NoError(t, r.Register("mine", func() flow.Values { return mine }, nil))
	for _, text := range []string{"mine", "mine, a", "(mine | needs_z), b", "needs_z"} {
		for _, v := range []flow.Visibility{flow.VisibleNone, flow.VisibleInitial, flow.VisibleAll} {
			f, err := r.Parse("f", text, flow.WithVisibility(v))
			require.NoError(t, err)
			in := flow.Values{"i": 1}
			out, err := f.Run(t.Context(), in)
			require.NoError(t, err)
			out["changed"] = true
			assert.Equal(t, flow.Values{"x": 1}, mine, text)
			assert.Equal(t, flow.Values{"i": 1}, in, text)
		}
	}
	_, err := r.Parse("f", "a", flow.WithVisibility(7))
	assert.ErrorIs(t, err, flow.ErrDefinition)
	f, err := r.Parse("f", "a | skips | b")
	require.NoError(t, err)
	_, err = f.Run(t.Context(), nil)
	assert.Equal(t, flow.ErrSkip, err)
}

// The text that the package documents.
func TestTheTextOfTheDocs(t *testing.T) {
	var r flow.Registry
	day := []string{"day"}
	require.NoError(t, r.Register("source", func(string) int { return 3 }, day, "source"))
	require.NoError(t, r.Register("target", func(string) int { return 2 }, day, "target"))
	require.NoError(t, r.Register("compare", func(a, b int) int { return a - b }, []string{"source", "target"}, "missing"))
	var logged, notified int
	require.NoError(t, r.Register("s3_logger", func(n int) { logged = n }, []string{"missing"}))
	require.NoError(t, r.Register("notify", func(n int) { notified = n }, []string{"missing"}))
	const text = "source, target | compare | s3_logger, notify"
	f, err := r.Parse("audit", text, flow.Strict())
	require.NoError(t, err)
	assert.Equal(t, text, f.String())
	_, err = f.Run(t.Context(), flow.Values{"day": "monday"})
	require.NoError(t, err)
	assert.Equal(t, []int{1, 1}, []int{logged, notified})
}
