package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/flow"
)

var errOops = errors.New("oops")

func double(i int) int { return 2 * i }

func atoi(ctx context.Context, s string) (n int, err error) {
	_, err = fmt.Sscan(s, &n)
	return n, err
}

// wait is a step that takes a while, and fails if its context ends before.
func wait(name string, d time.Duration) flow.Step[int, int] {
	return flow.Func(name, func(ctx context.Context, i int) (int, error) {
		select {
		case <-time.After(d):
			return i, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
}

func make1[In, Out any](t testing.TB, s flow.Step[In, Out]) *flow.Flow[In, Out] {
	t.Helper()
	f, err := flow.New("f", s)
	require.NoError(t, err)
	return f
}

func TestStepsAreComposed(t *testing.T) {
	number := flow.Func("number", atoi)
	for what, x := range map[string]struct {
		step flow.Step[string, any]
		in   string
		want any
	}{
		"a function":                 {boxed(number), "7", 7},
		"one after another":          {boxed(flow.Then(number, flow.Map("double", double))), "7", 14},
		"three":                      {boxed(flow.Then3(number, flow.Map("double", double), flow.Map("again", double))), "7", 28},
		"four":                       {boxed(flow.Then4(number, flow.Map("double", double), flow.Map("again", double), flow.Map("text", func(i int) string { return fmt.Sprint(i) }))), "7", "28"},
		"a chain":                    {boxed(flow.Then(number, flow.Chain(flow.Map("a", double), flow.Map("b", double), flow.Map("c", double)))), "1", 8},
		"at the same time":           {boxed(flow.Then(number, flow.All("all", flow.Map("a", double), wait("b", time.Millisecond)))), "3", []int{6, 3}},
		"a pair":                     {boxed(flow.Both("both", number, flow.Map("text", strings.ToUpper))), "3", flow.Pair[int, string]{3, "3"}},
		"a triple":                   {boxed(flow.Three("three", number, flow.Map("text", strings.ToUpper), flow.MapCtx("len", func(_ context.Context, s string) int { return len(s) }))), "33", flow.Triple[int, string, int]{33, "33", 2}},
		"merged":                     {boxed(flow.Merge("sum", func(a, b int) (int, error) { return a + b, nil }, number, flow.Then(number, flow.Map("double", double)))), "3", 9},
		"for each":                   {boxed(flow.Then(flow.Map("split", strings.Fields), flow.Each("each", 2, number))), "1 2 3 4 5", []int{1, 2, 3, 4, 5}},
		"for each of none":           {boxed(flow.Then(flow.Map("split", strings.Fields), flow.Each("each", 2, number))), "", []int{}},
		"filtered":                   {boxed(flow.Then(flow.Map("split", strings.Fields), flow.Each("each", 0, flow.Then(number, flow.Filter("even", func(i int) bool { return i%2 == 0 }))))), "1 2 3 4 5", []int{2, 4}},
		"a group of which one skips": {boxed(flow.Then(number, flow.All("all", flow.Map("a", double), flow.Filter("never", func(int) bool { return false }), flow.Map("c", double)))), "1", []int{2, 2}},
		"tapped":                     {boxed(flow.Tap("tap", func(context.Context, string) error { return nil })), "x", "x"},
		"adapted":                    {boxed(flow.Adapt(func(s string) int { return len(s) }, flow.Map("double", double), func(i int) string { return fmt.Sprint(i) })), "abc", "6"},
		"dispatched":                 {boxed(flow.Dispatch("by length", func(s string) int { return len(s) }, map[int]flow.Step[string, int]{1: number, 2: flow.Then(number, flow.Map("double", double))})), "12", 24},
		"dispatched otherwise":       {boxed(flow.DispatchOr("by length", func(s string) int { return len(s) }, map[int]flow.Step[string, int]{1: number}, flow.Map("zero", func(string) int { return 0 }))), "123", 0},
		"named":                      {boxed(flow.Named("n", number)), "5", 5},
	} {
		t.Run(what, func(t *testing.T) {
			f := make1(t, x.step)
			for range 3 {
				out, err := f.Run(t.Context(), x.in)
				require.NoError(t, err)
				assert.Equal(t, x.want, out)
			}
		})
	}
}

func boxed[In, Out any](s flow.Step[In, Out]) flow.Step[In, any] {
	return flow.Adapt(func(in In) In { return in }, s, func(out Out) any { return out })
}

func TestAnErrorSaysWhereItIsFrom(t *testing.T) {
	bad := flow.Func("bad", func(context.Context, int) (int, error) { return 0, errOops })
	inner := make1(t, flow.Named("part", flow.Then(flow.Map("double", double), flow.All("group", flow.Map("fine", double), bad))))
	f, err := flow.New("outer", flow.Then(inner.Step(), flow.Map("never", func([]int) int { panic("run") })))
	require.NoError(t, err)
	_, err = f.Run(t.Context(), 1)
	assert.ErrorIs(t, err, errOops)
	e, ok := errors.AsType[*flow.Error](err)
	require.True(t, ok)
	assert.Equal(t, "outer/f/part/group/bad", e.Path)
	assert.Equal(t, "bad", e.Step)
	assert.EqualError(t, err, "flow outer/f/part/group/bad: oops")

	d := make1(t, flow.Dispatch("d", double, map[int]flow.Step[int, int]{2: flow.Map("two", double)}))
	_, err = d.Run(t.Context(), 2)
	which, ok := errors.AsType[*flow.DispatchError](err)
	require.True(t, ok, err)
	assert.Equal(t, 4, which.Key)
	assert.EqualError(t, err, "flow f/d: no step for the key 4")
}

func TestPanicsAreErrors(t *testing.T) {
	panics := flow.Map("panics", func(int) int { panic(io.EOF) })
	for _, s := range []flow.Step[int, []int]{flow.All("one", panics), flow.All("two", flow.Map("fine", double), panics), flow.All("two", panics, flow.Map("fine", double))} {
		_, err := make1(t, s).Run(t.Context(), 1)
		p, ok := errors.AsType[*echo.PanicError](err)
		require.True(t, ok, err)
		assert.Equal(t, io.EOF, p.Value)
		assert.Contains(t, string(p.Stack), "flow_test.go")
	}
	for want, s := range map[string]flow.Step[int, int]{
		"flow f: ":   flow.Adapt(func(int) int { panic(io.EOF) }, flow.Map("fine", double), double),
		"flow f/n: ": flow.Named("n", flow.Adapt(double, flow.Map("fine", double), func(int) int { panic(io.EOF) })),
		"flow f/d: ": flow.Dispatch("d", func(int) int { panic(io.EOF) }, map[int]flow.Step[int, int]{1: flow.Map("fine", double)}),
		"flow f/m: ": flow.Merge("m", func(int, int) (int, error) { panic(io.EOF) }, flow.Map("a", double), flow.Map("b", double)),
	} {
		f := make1(t, s)
		_, err := f.Run(t.Context(), 1)
		p, ok := errors.AsType[*echo.PanicError](err)
		require.True(t, ok, err)
		assert.Equal(t, io.EOF, p.Value)
		assert.ErrorContains(t, err, want)
		assert.Equal(t, int64(1), f.Sight().Counts.Failed)
	}
	exits := flow.Map("exits", func(int) int { runtime.Goexit(); return 0 })
	f := make1(t, flow.All("group", exits, exits, flow.Map("fine", double)))
	_, err := f.Run(t.Context(), 1)
	assert.ErrorContains(t, err, "goroutine")
	assert.Zero(t, f.Sight().Counts.Running)
}

func TestTheFirstErrorEndsTheOthersAndNothingIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int32
		slow := flow.Func("slow", func(ctx context.Context, i int) (int, error) {
			defer ended.Add(1)
			<-ctx.Done()
			time.Sleep(time.Second) // it takes its time
			return 0, context.Cause(ctx)
		})
		bad := flow.Func("bad", func(context.Context, int) (int, error) {
			time.Sleep(time.Second)
			return 0, errOops
		})
		f := make1(t, flow.All("group", slow, flow.Then(slow, flow.Map("never", double)), bad, slow))
		begin := time.Now()
		_, err := f.Run(t.Context(), 1)
		assert.ErrorIs(t, err, errOops)
		assert.Equal(t, 2*time.Second, time.Since(begin))
		assert.EqualValues(t, 3, ended.Load())

		each := make1(t, flow.Each("each", 2, flow.Func("one", func(_ context.Context, i int) (int, error) {
			time.Sleep(time.Second)
			if i == 3 {
				return 0, errOops
			}
			return i, nil
		})))
		begin = time.Now()
		_, err = each.Run(t.Context(), make([]int, 100))
		require.NoError(t, err)
		assert.Equal(t, 50*time.Second, time.Since(begin))
		_, err = each.Run(t.Context(), []int{1, 2, 3, 4, 5, 6, 7, 8})
		assert.ErrorIs(t, err, errOops)
		assert.LessOrEqual(t, each.Sight().Children[0].Children[0].Counts.Calls, int64(105), "others were not begun")

		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, io.EOF)
		defer cancel()
		_, err = make1(t, flow.Chain(wait("a", 800*time.Millisecond), wait("b", 800*time.Millisecond), wait("c", time.Second))).Run(ctx, 1)
		assert.ErrorIs(t, err, io.EOF)
		assert.ErrorContains(t, err, "f/b")
	})
}

func TestWhatRunsAtTheSameTimeTakesNoLonger(t *testing.T) {
	task := func(name string) flow.Step[int, int] {
		return flow.Map(name, func(i int) int { time.Sleep(200 * time.Millisecond); return i }) // it blocks
	}
	nested := flow.Chain(flow.Map("before", double), task("nested"), flow.Map("after", double))
	f := make1(t, flow.All("group", task("a"), nested, flow.Then(task("b"), flow.Map("x", double))))
	begin := time.Now()
	out, err := f.Run(t.Context(), 1)
	require.NoError(t, err)
	assert.Equal(t, []int{1, 4, 2}, out)
	assert.Less(t, time.Since(begin), 260*time.Millisecond)
}

func TestOneFlowIsRunByMany(t *testing.T) {
	f := make1(t, flow.Then(flow.All("group", flow.Map("a", double), wait("b", time.Millisecond), flow.Chain(flow.Map("c", double), flow.Map("d", double))),
		flow.Map("sum", func(is []int) int { return is[0] + is[1] + is[2] })))
	var work sync.WaitGroup
	for i := range 100 {
		work.Go(func() {
			for range 20 {
				out, err := f.Run(t.Context(), i)
				assert.NoError(t, err)
				assert.Equal(t, 7*i, out)
			}
		})
	}
	work.Wait()
	assert.EqualValues(t, 2000, f.Sight().Counts.Calls)
}

func TestPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		fails := flow.Func("fails", func(context.Context, int) (int, error) {
			if tries++; tries%3 != 0 {
				return 0, errOops
			}
			return tries, nil
		})
		f := make1(t, flow.With(fails, flow.Retry(3, time.Second, time.Minute)))
		begin := time.Now()
		out, err := f.Run(t.Context(), 1)
		require.NoError(t, err)
		assert.Equal(t, 3, out)
		assert.GreaterOrEqual(t, time.Since(begin), 1500*time.Millisecond)
		assert.LessOrEqual(t, time.Since(begin), 3*time.Second)
		assert.EqualValues(t, 2, f.Sight().Children[0].Counts.Retried)

		tries = 0
		_, err = make1(t, flow.With(fails, flow.Retry(2, 0, 0))).Run(t.Context(), 1)
		assert.ErrorIs(t, err, errOops)
		assert.Equal(t, 2, tries)
		tries = 0
		_, err = make1(t, flow.With(fails, flow.Retry(5, 0, 0), flow.RetryIf(func(err error) bool { return !errors.Is(err, errOops) }))).Run(t.Context(), 1)
		assert.ErrorIs(t, err, errOops)
		assert.Equal(t, 1, tries)
		skips := fmt.Errorf("not this one: %w", flow.ErrSkip)
		_, err = make1(t, flow.Func("skips", func(context.Context, int) (int, error) { return 0, skips })).Run(t.Context(), 1)
		assert.Equal(t, flow.ErrSkip, err)
		_, err = make1(t, flow.With(flow.Filter("never", func(int) bool { tries++; return false }), flow.Retry(5, 0, 0))).Run(t.Context(), 1)
		assert.ErrorIs(t, err, flow.ErrSkip)
		assert.Equal(t, 2, tries)

		begin = time.Now()
		_, err = make1(t, flow.With(wait("slow", time.Hour), flow.Timeout(time.Second), flow.Retry(3, 0, 0))).Run(t.Context(), 1)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 3*time.Second, time.Since(begin), "for each attempt")

		limited := make1(t, flow.With(wait("one", time.Second), flow.Limit(2)))
		begin = time.Now()
		var work sync.WaitGroup
		for range 10 {
			work.Go(func() { limited.Run(t.Context(), 1) })
		}
		work.Wait()
		assert.Equal(t, 5*time.Second, time.Since(begin), "in all runs together")
		ctx, cancel := context.WithCancelCause(t.Context())
		go limited.Run(t.Context(), 1)
		go limited.Run(t.Context(), 1)
		synctest.Wait()
		cancel(io.EOF)
		_, err = limited.Run(ctx, 1)
		assert.ErrorIs(t, err, io.EOF)
		time.Sleep(time.Hour)
	})
}

func TestWhatIsWrongWithADefinition(t *testing.T) {
	fine := flow.Map("fine", double)
	for want, s := range map[string]flow.Step[int, any]{
		"flow f: a step is missing":                      boxed(flow.Step[int, int]{}),
		"flow f: a sequence has no steps":                boxed(flow.Chain[int]()),
		"flow f/g: a group has no steps":                 boxed(flow.All[int, int]("g")),
		"flow f/g: a step is missing":                    boxed(flow.All("g", fine, flow.Step[int, int]{})),
		"flow f/d: a dispatch has no steps":              boxed(flow.Dispatch[int, int, int]("d", double, nil)),
		"flow f/d: the function for keys is nil":         boxed(flow.Dispatch("d", nil, map[int]flow.Step[int, int]{1: fine})),
		"flow f/m: the function is nil":                  boxed(flow.Map[int, int]("m", nil)),
		"flow f: a step has no name":                     boxed(flow.Map("", double)),
		"flow f/fine: a function of Adapt is nil":        boxed(flow.Adapt[int, int, int, int](nil, fine, double)),
		"flow f/fine: Timeout(-1ns): it is not positive": boxed(flow.With(fine, flow.Timeout(-1))),
		"flow f/fine: Limit(0): it is not positive":      boxed(flow.With(fine, flow.Limit(0))),
		"flow f/fine: Retry(0, 0s, 0s)":                  boxed(flow.With(fine, flow.Retry(0, 0, 0))),
		"flow f/fine: RetryIf(nil)":                      boxed(flow.With(fine, flow.RetryIf(nil))),
		"flow f/fine: an Option is nil":                  boxed(flow.With(fine, nil)),
		"flow f/e: the limit of Each is negative: -1":    boxed(flow.Adapt(func(i int) []int { return []int{i} }, flow.Each("e", -1, fine), func(is []int) int { return 0 })),
	} {
		_, err := flow.New("f", s)
		assert.ErrorContains(t, err, want)
		_, ok := errors.AsType[*flow.Error](err)
		assert.True(t, ok, want)
		assert.Panics(t, func() { flow.Must("f", s) })
	}
	_, err := flow.New("f", flow.All("g", flow.Map[int, int]("m", nil), flow.Map("", double)))
	assert.ErrorContains(t, err, "f/g/m: the function is nil")
	assert.ErrorContains(t, err, "f/g: a step has no name", "all that is wrong")
}

func TestAFlowDescribesItself(t *testing.T) {
	csv, json := flow.Map("csv", double), flow.Map("json", double)
	f := flow.Must("import", flow.Then4(
		flow.Merge("join", func(a, b int) (int, error) { return a + b, nil }, csv, flow.Then(json, flow.Map("check", double))),
		flow.With(flow.Map("compare", double), flow.Timeout(time.Second), flow.Limit(2)),
		flow.Named("route", flow.Dispatch("by size", func(i int) string { return "small" }, map[string]flow.Step[int, int]{"small": flow.Map("s", double), "large": flow.Map("l", double)})),
		flow.All("write", flow.Tap("sqlite", func(context.Context, int) error { return nil }), flow.Tap(`a "report"`, func(context.Context, int) error { return nil }))))
	s := f.Sight()
	assert.Equal(t, `(csv, (json | check)) | join | compare | route(by size(large: l, small: s)) | write(sqlite, a "report")`, s.String())
	for range 3 {
		_, err := f.Run(t.Context(), 1)
		require.NoError(t, err)
	}
	s = f.Sight()
	for _, line := range []string{"flowchart LR", `n0["csv<br/>3 calls<br/>mean`, "n1 --> n2", "n0 --> n3", "n2 --> n3", `n4["compare<br/>timeout 1s<br/>limit 2<br/>3 calls`, `n5{"by size`, `n5 -->|"small"| n7`,
		`n8["sqlite`, `n9["a #quot;report#quot;`, "n6 --> n8", "n7 --> n9"} {
		assert.Contains(t, s.Mermaid(), line)
	}
	for _, line := range []string{`digraph "import" {`, `n0 [label="csv\n3 calls\nmean`, "n5 [label=\"by size", "shape=diamond", `n5 -> n7 [label="small"]`, `n9 [label="a \"report\"`, "n7 -> n9;"} {
		assert.Contains(t, s.DOT(), line)
	}
	paths := []string{}
	var walk func(flow.Sight)
	walk = func(s flow.Sight) {
		if s.Name != "" {
			paths = append(paths, s.Path)
		}
		for _, c := range s.Children {
			walk(c)
		}
	}
	walk(s)
	slices.Sort(paths)
	assert.Equal(t, []string{"import", "import/compare", "import/csv", "import/join", "import/json", "import/check", "import/route", "import/route/by size",
		"import/route/by size/l", "import/route/by size/s", "import/write", `import/write/a "report"`, "import/write/sqlite"}[0], paths[0])
	assert.Len(t, paths, 13)
}

func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := make1(t, flow.Then(flow.Filter("odd", func(i int) bool { return i%2 == 1 }), flow.Func("one", func(_ context.Context, i int) (int, error) {
			time.Sleep(time.Duration(i) * time.Second)
			if i == 3 {
				return 0, errOops
			}
			return i, nil
		})))
		go func() {
			for i := range 6 {
				f.Run(t.Context(), i)
			}
		}()
		time.Sleep(time.Second + time.Millisecond)
		assert.EqualValues(t, 1, f.Sight().Counts.Running)
		time.Sleep(time.Hour)
		all, steps := f.Sight().Counts, f.Sight().Children[0].Children
		assert.Equal(t, flow.Counts{Calls: 6, Failed: 1, Skipped: 3, Mean: 1500 * time.Millisecond, Longest: 5 * time.Second}, all)
		assert.EqualValues(t, 3, steps[0].Counts.Skipped)
		assert.Equal(t, flow.Counts{Calls: 3, Failed: 1, Mean: 3 * time.Second, Longest: 5 * time.Second}, steps[1].Counts)
	})
}

// awkward is an error that panics when it is asked what it is.
type awkward struct{}

func (awkward) Error() string { return "awkward" }
func (awkward) Is(error) bool { panic("do not ask") }

// Whatever panics, wherever, is an error of the flow, in the goroutines of groups too.
func TestPanicsThatAreNobodysSteps(t *testing.T) {
	one := flow.Map("one", func(int) int { return 1 })
	same := func(i int) int { return i }
	bad := flow.Adapt(func(int) int { panic("bad") }, one, same)
	fails := flow.Try("fails", func(int) (int, error) { return 0, awkward{} })
	for name, step := range map[string]flow.Step[int, any]{
		"alone":      boxed(bad),
		"All":        boxed(flow.All("g", one, bad)),
		"Each":       boxed(flow.Then(flow.Map("list", func(i int) []int { return []int{i, i} }), flow.Each("g", 0, bad))),
		"Both":       boxed(flow.Both("g", one, bad)),
		"Three":      boxed(flow.Three("g", one, bad, one)),
		"RetryIf":    boxed(flow.All("g", one, flow.With(flow.Try("fails", func(int) (int, error) { return 0, errOops }), flow.Retry(2, 0, 0), flow.RetryIf(func(error) bool { panic("bad") })))),
		"an error":   boxed(fails),
		"in a group": boxed(flow.All("g", one, fails)),
		"retried":    boxed(flow.All("g", flow.With(fails, flow.Retry(2, 0, 0)))),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := make1(t, step).Run(t.Context(), 1)
			require.Error(t, err)
			_, ok := errors.AsType[*flow.Error](err)
			assert.True(t, ok, "%v", err)
		})
	}
}

// A step that skips cancels nobody, and hides no failure.
func TestASkipDoesNotHideAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := flow.Filter("never", func(int) bool { return false })
		late := flow.Func("late", func(ctx context.Context, i int) (int, error) {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				t.Error("a skip cancels nobody")
			}
			return 0, errOops
		})
		first := func(a, b int) (int, error) { return a, nil }
		for _, s := range []flow.Step[int, any]{
			boxed(flow.Both("g", never, late)), boxed(flow.Three("g", never, late, flow.Map("double", double))), boxed(flow.Merge("m", first, never, late)),
			boxed(flow.All("g", never, late)),
		} {
			_, err := make1(t, s).Run(t.Context(), 1)
			assert.ErrorIs(t, err, errOops)
		}
		_, err := make1(t, flow.Both("g", never, never)).Run(t.Context(), 1)
		assert.Equal(t, flow.ErrSkip, err)
	})
}

// The end of a function's goroutine is an error that says where.
func TestGoexitInAGroupSaysWhere(t *testing.T) {
	exits := flow.Map("exits", func(int) int { runtime.Goexit(); return 0 })
	_, err := make1(t, flow.All("group", exits)).Run(t.Context(), 1)
	e, ok := errors.AsType[*flow.Error](err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, "f/group", e.Path)
}

func TestSourceNeedsNoInput(t *testing.T) {
	f := make1(t, flow.Then(flow.Source("seven", func(context.Context) (int, error) { return 7, nil }), flow.Map("double", double)))
	n, err := f.Run(t.Context(), struct{}{})
	require.NoError(t, err)
	assert.Equal(t, 14, n)
}

// Who waits to try again ends with the context, and says what failed.
func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := flow.Try("fails", func(int) (int, error) { return 0, errOops })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := make1(t, flow.With(fails, flow.Retry(3, time.Hour, time.Hour))).Run(ctx, 1)
		assert.ErrorIs(t, err, errOops)
		assert.Equal(t, time.Second, time.Since(begin))
	})
}
