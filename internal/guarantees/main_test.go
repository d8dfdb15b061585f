package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The page has a row for each promise of the suites, and for nothing else.
func TestThePageIsFresh(t *testing.T) {
	text, err := os.ReadFile("../../docs/guarantees.md")
	require.NoError(t, err)
	for name, suite := range map[string]string{"results": "../../transport/transporttest", "policies": "../policytest"} {
		_, rows, _, err := cut(string(text), name)
		require.NoError(t, err)
		var have []string
		for i, line := range strings.Split(strings.TrimSpace(rows), "\n") {
			if cells := strings.Split(line, " | "); i > 1 {
				have = append(have, strings.TrimPrefix(cells[0], "| "))
				assert.Len(t, cells, 5, line)
				assert.NotContains(t, line, said["fail"])
			}
		}
		assert.ElementsMatch(t, promisesOf(t, suite), have, "make guarantees writes the table %q anew", name)
	}
}

// promisesOf returns the names of a suite's promises: the first field of the
// elements of each []promise.
func promisesOf(t *testing.T, dir string) (names []string) {
	files, err := filepath.Glob(dir + "/*.go")
	require.NoError(t, err)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			list, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			of, ok := list.Type.(*ast.ArrayType)
			if !ok {
				return true
			}
			if id, ok := of.Elt.(*ast.Ident); !ok || id.Name != "promise" {
				return true
			}
			for _, e := range list.Elts {
				first := e.(*ast.CompositeLit).Elts[0].(*ast.BasicLit)
				name, err := strconv.Unquote(first.Value)
				require.NoError(t, err)
				names = append(names, name)
			}
			return false
		})
	}
	return names
}
