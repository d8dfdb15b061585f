package echotest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/echobus/echo"
)

// Golden checks that a topic still understands messages of earlier versions of
// its schema, which are kept as files in dir, one for each message: v2-paid.json
// is the payload of one of version 2, JSON by its extension (.txt is text, .bin
// are bytes). What it must become stands beside it, in v2-paid.json.want, as
// indented JSON. With ECHOTEST_UPDATE=1 in the environment these are written
// anew, for you to look at and to commit.
//
// It fails the test for each message that cannot be decoded or became another
// value, and if there are none.
func Golden[M any](t testing.TB, topic *echo.Topic[M], dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "v*"))
	if err != nil {
		t.Fatalf("echotest: golden: %v", err)
	}
	n := 0
	for _, file := range files {
		if strings.HasSuffix(file, wantExt) {
			continue
		}
		n++
		if err := golden(topic, file); err != nil {
			t.Errorf("echotest: golden message %s: %v", file, err)
		}
	}
	if n == 0 {
		t.Fatalf("echotest: golden: no messages in %s; they are called v<version>-<name>.json, .txt or .bin", dir)
	}
}

const wantExt = ".want"

var (
	goldenName  = regexp.MustCompile(`^v([0-9]{1,9})(?:-[^/]*)?(\.[a-z]+)$`)
	goldenTypes = map[string]string{".json": echo.JSON.ContentType(), ".txt": echo.Text.ContentType(), ".bin": echo.Bytes.ContentType()}
)

// golden checks one message.
func golden[M any](topic *echo.Topic[M], file string) error {
	parts := goldenName.FindStringSubmatch(filepath.Base(file))
	if parts == nil || goldenTypes[parts[2]] == "" {
		return fmt.Errorf("the name is not v<version>-<name> with the extension .json, .txt or .bin")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	contentType := goldenTypes[parts[2]]
	if parts[1] != "0" {
		contentType += "; version=" + parts[1]
	}
	v, err := topic.Decode(contentType, data)
	if err != nil {
		return err
	}
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("showing the value: %w", err)
	}
	got = append(got, '\n')
	if os.Getenv("ECHOTEST_UPDATE") == "1" {
		return os.WriteFile(file+wantExt, got, 0o644)
	}
	want, err := os.ReadFile(file + wantExt)
	if err != nil {
		return fmt.Errorf("%w; run the test with ECHOTEST_UPDATE=1 to write it", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got\n%swant\n%s", got, want)
	}
	return nil
}
