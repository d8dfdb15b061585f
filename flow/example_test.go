package flow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/echobus/echo/flow"
)

// Two sources at the same time, their results joined, written to two places.
func Example() {
	csv := flow.Func("csv", func(context.Context, string) ([]string, error) { return []string{"ada", "bob"}, nil })
	json := flow.Func("json", func(context.Context, string) ([]string, error) { return []string{"bob", "eve"}, nil })
	join := func(a, b []string) ([]string, error) { return append(a, b...), nil }
	store := flow.Tap("store", func(context.Context, []string) error { return nil })
	report := flow.Tap("report", func(_ context.Context, names []string) error {
		fmt.Println(strings.Join(names, " "))
		return nil
	})
	f, err := flow.New("import", flow.Then(flow.Merge("join", join, csv, json), flow.All("write", store, report)))
	if err != nil {
		panic(err)
	}
	if _, err := f.Run(context.Background(), "today"); err != nil {
		panic(err)
	}
	fmt.Println(f)
	// Output:
	// ada bob bob eve
	// (csv, json) | join | write(store, report)
}

// An error says where it is from.
func ExampleError() {
	f := flow.Must("import", flow.Named("read", flow.All("files", flow.Func("csv", func(context.Context, string) (int, error) {
		return 0, errors.New("no such file")
	}))))
	_, err := f.Run(context.Background(), "today")
	fmt.Println(err)
	e, _ := errors.AsType[*flow.Error](err)
	fmt.Println(e.Step)
	// Output:
	// flow import/read/files/csv: no such file
	// csv
}

// A flow whose text may be in a file of configuration.
func ExampleRegistry_Parse() {
	var r flow.Registry
	register := func(name string, f any, params []string, results ...string) {
		if err := r.Register(name, f, params, results...); err != nil {
			panic(err)
		}
	}
	register("source", func(day string) []int { return []int{1, 2, 3} }, []string{"day"}, "source")
	register("target", func(day string) []int { return []int{2, 3} }, []string{"day"}, "target")
	register("compare", func(source, target []int) int { return len(source) - len(target) }, []string{"source", "target"}, "missing")
	register("notify", func(missing int) { fmt.Println(missing, "missing") }, []string{"missing"})
	f, err := r.Parse("audit", "source, target | compare | notify")
	if err != nil {
		panic(err)
	}
	if _, err := f.Run(context.Background(), flow.Values{"day": "monday"}); err != nil {
		panic(err)
	}
	_, err = r.Parse("audit", "source, target | compair")
	fmt.Println(err)
	// Output:
	// 1 missing
	// flow audit/compair: column 18: there is no function compair
}
