package echotest_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheDocumentShowsCodeThatRuns(t *testing.T) {
	doc, err := os.ReadFile("../docs/testing.md")
	require.NoError(t, err)
	marked := regexp.MustCompile("(?s)<!-- from: (\\S+) -->\n```go\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	require.Len(t, marked, strings.Count(string(doc), "```go"), "blocks of Go that say where they are from")
	for _, m := range marked {
		source, err := os.ReadFile("../" + m[1])
		require.NoError(t, err)
		require.Contains(t, string(source), m[2])
	}
}
