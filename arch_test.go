package echo_test

import (
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/echobus/echo"

// mayImport says, for each package of the module, what its files that are not
// tests import besides the standard library. A package is named by its
// directory, "." is the root, "…" anything of the module; a name with a slash at
// its end stands for all packages below.
var mayImport = map[string][]string{
	".":                       {"transport", "memstream"},
	"transport":               {},
	"transport/transporttest": {"transport"}, // no testify: other people import it
	"memstream":               {"transport"}, // a driver does not know echo
	"outbox":                  {"transport"},
	"redisstream":             {"transport", "internal/held", "github.com/redis/go-redis/v9", "github.com/redis/go-redis/v9/maintnotifications"},
	"migrate":                 {"transport"}, // between any two drivers
	"wsstream":                {"transport", "internal/held", "github.com/coder/websocket"},
	"codec/msgpack":           {".", "github.com/vmihailenco/msgpack/v5"},

	"echotel": {".", "transport", "go.opentelemetry.io/otel", "go.opentelemetry.io/otel/attribute", "go.opentelemetry.io/otel/codes",
		"go.opentelemetry.io/otel/metric", "go.opentelemetry.io/otel/propagation", "go.opentelemetry.io/otel/trace",
		"go.opentelemetry.io/otel/semconv/v1.43.0", "go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"},

	"echotest": {".", "transport", "memstream"}, // no testify: other people import it

	// Built on echo; they know neither each other nor a driver.
	"flow":      {".", "transport"},
	"flow/page": {"flow"},
	"dispatch":  {".", "transport"},
	"journal":   {".", "transport"},
	"channel":   {".", "transport"},

	// Programs, not libraries.
	// A suite that several packages' tests run.
	"internal/policytest": {".", "transport", "github.com/stretchr/testify/assert", "github.com/stretchr/testify/require"},
	"examples/telemetry":  {".", "echotel", "go.opentelemetry.io/otel/sdk/trace", "go.opentelemetry.io/otel/trace"},
	"examples/":           {"…", "github.com/redis/go-redis/v9"},
	"cmd/":                {"…"},
	"clients/":            {"…"}, // the server that tests of the JavaScript client talk to
	"internal/":           {"…", "github.com/redis/go-redis/v9"},
}

// notInLibraries lists packages that change or expose the whole process.
var notInLibraries = []string{"unsafe", "os/exec", "net/http/pprof", "expvar"}

// mayRequire lists the modules that go.mod may name. Peers such as Watermill
// and Go Cloud stay in bench/go.mod.
var mayRequire = []string{
	"github.com/vmihailenco/msgpack/v5",
	"github.com/vmihailenco/tagparser/v2",
	"github.com/redis/go-redis/v9",
	"github.com/coder/websocket",
	"github.com/cespare/xxhash/v2", // go-redis'
	"go.uber.org/atomic",           // go-redis'
	"golang.org/x/sys",             // go-redis'

	"go.opentelemetry.io/otel",        // in echotel, as mayImport sees to
	"go.opentelemetry.io/otel/trace",  // the same
	"go.opentelemetry.io/otel/metric", // the same
	"go.opentelemetry.io/auto/sdk",    // OpenTelemetry's
	"github.com/go-logr/logr",         // OpenTelemetry's
	"github.com/go-logr/stdr",         // OpenTelemetry's

	// In tests only, as mayImport sees to.
	"go.opentelemetry.io/otel/sdk", // and in an example
	"go.opentelemetry.io/otel/sdk/metric",
	"github.com/google/uuid", // the SDK's
	"github.com/stretchr/testify",
	"go.uber.org/goleak",
	"go.yaml.in/yaml/v3", // testify's
	"pgregory.net/rapid",
}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	for file, dir := range sources(t) {
		allowed, program, ok := ruleOf(dir)
		if !ok {
			t.Errorf("%s: package %s has no rule; add what it may import to mayImport", file, dir)
			continue
		}
		for _, imported := range importsOf(t, file) {
			name, ours := strings.CutPrefix(imported, module+"/")
			if imported == module {
				name, ours = ".", true
			}
			host, _, _ := strings.Cut(imported, "/")
			switch std := !strings.Contains(host, "."); {
			case std && !program && slices.Contains(notInLibraries, imported):
				t.Errorf("%s imports %s; a library package imports none of %q", file, imported, notInLibraries)
			case std, slices.Contains(allowed, name), ours && slices.Contains(allowed, "…"):
			default:
				t.Errorf("%s imports %s; besides the standard library, package %s may import only %q", file, imported, dir, allowed)
			}
		}
	}
}

// ruleOf returns what package dir may import, and whether it is a program.
func ruleOf(dir string) (allowed []string, program, ok bool) {
	if allowed, ok = mayImport[dir]; ok {
		return allowed, false, true
	}
	top, _, _ := strings.Cut(dir, "/")
	allowed, ok = mayImport[top+"/"]
	return allowed, true, ok
}

// sources maps the Go files of the module that are not tests to their packages.
func sources(t *testing.T) map[string]string {
	files := make(map[string]string)
	root := os.DirFS(".")
	err := fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case e.IsDir() && name != ".":
			_, err := fs.Stat(root, name+"/go.mod")
			if err == nil || base == "testdata" || base[0] == '.' || base[0] == '_' {
				return fs.SkipDir
			}
		case strings.HasSuffix(base, ".go") && !strings.HasSuffix(base, "_test.go"):
			files[name] = path.Dir(name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func importsOf(t *testing.T, file string) []string {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	return paths
}

func TestModuleRequiresOnlyWhatWasDecided(t *testing.T) {
	requirement := regexp.MustCompile(`(?m)^(?:require)?\s+(\S+) v[0-9]`)
	for _, m := range requirement.FindAllStringSubmatch(content(t, "go.mod"), -1) {
		if !slices.Contains(mayRequire, m[1]) {
			t.Errorf("go.mod requires %s; a new dependency needs a line in docs/decisions.md that says why, and then one in mayRequire", m[1])
		}
	}
}

func TestDocumentsShowCodeThatRuns(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md") {
		text := content(t, page)
		marked := regexp.MustCompile("(?s)<!-- from: (\\S+) -->\n+```go\n(.*?)```").FindAllStringSubmatch(text, -1)
		if marks := strings.Count(text, "<!-- from:"); len(marked) != marks || marks == 0 && page == "README.md" {
			t.Errorf("%s: %d of %d marks stand above a block of Go, each written <!-- from: examples/NAME/main.go -->; README.md has at least one", page, len(marked), marks)
		}
		for _, m := range marked {
			if file, block := m[1], m[2]; !strings.Contains(content(t, file), block) {
				t.Errorf("%s shows code that %s does not contain; a block below such a mark is a verbatim copy:\n%s", page, file, block)
			}
		}
	}
}

func TestNothingRefersOutsideTheRepository(t *testing.T) {
	if _, err := os.Stat(".git"); err != nil {
		t.Skip("not a checkout")
	}
	files, err := exec.Command("git", "grep", "--files-with-matches", "--fixed-strings", "../"+"shared").CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 && len(files) == 0 {
		return // git's way to say that there is none
	}
	t.Errorf("the repository stands alone, so no file names %s:\n%s", "../"+"shared", files)
}

func content(t *testing.T, file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
