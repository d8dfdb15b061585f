package echotest_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
	"github.com/echobus/echo/echotest"
)

type (
	billV1 struct {
		Order string
		Total int
	}
	bill struct {
		Order    string
		Cents    int
		Currency string
	}
)

var bills = echo.NewTopic[bill]("bills", echo.WithVersion(2), echo.Upcast(1, func(b billV1) (bill, error) {
	if b.Total < 0 {
		return bill{}, errors.New("no bill is negative")
	}
	return bill{b.Order, b.Total, "EUR"}, nil
}))

func TestMessagesOfEarlierVersionsAreUnderstood(t *testing.T) {
	echotest.Golden(t, bills, "testdata/invoices")
}

func TestGoldenSaysWhatChanged(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	failures := func() string {
		return try(func(t testing.TB) { echotest.Golden(t, bills, dir) }).text()
	}
	assert.Contains(t, failures(), "no messages in")
	write("v1-good.json", `{"Order":"o-1","Total":5}`)
	assert.Contains(t, failures(), "ECHOTEST_UPDATE=1")
	t.Setenv("ECHOTEST_UPDATE", "1")
	assert.Empty(t, failures())
	t.Setenv("ECHOTEST_UPDATE", "")
	assert.Empty(t, failures())
	write("v1-good.json.want", "{}\n")
	assert.Contains(t, failures(), `"Currency": "EUR"`)
	write("v1-good.json", `{"Order":"o-1","Total":-5}`)
	assert.Contains(t, failures(), "no bill is negative")
	write("v1-good.json", `{"Order":"o-1","Total":5}`)
	write("vx.json", `{}`)
	assert.Contains(t, failures(), "the name is not v<version>")
}
