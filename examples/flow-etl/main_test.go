package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func Example() {
	if err := run(context.Background(), Files{"data/catalogue.csv", "data/supplier.json"}, ":memory:"); err != nil {
		panic(err)
	}
	// Output:
	// (csv, json) | join | rows(compare) | write(sqlite, report)
	// K-101  31.50 kettle with a whistle was 29.90
	// P-201  37.90 pan 28 cm was 39.90
	// S-301   0.00 gone: ladle
	// S-302   8.20 whisk was 7.90
	// T-402  12.50 new: oven glove
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "changes.db")
	for range 2 { // again makes the same
		if err := run(t.Context(), Files{"data/catalogue.csv", "data/supplier.json"}, path); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n, cents int
	if err := db.QueryRow("SELECT count(*), sum(cents) FROM changes").Scan(&n, &cents); err != nil || n != 5 || cents != 9010 {
		t.Errorf("got %d changes of %d cents, %v", n, cents, err)
	}
}

func TestBadInput(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.csv")
	if err := os.WriteFile(bad, []byte("sku,name,cents\nK-100,kettle,much\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		files Files
		says  string
	}{
		{Files{bad, "data/supplier.json"}, "flow prices/csv: " + bad + ": row 2: "},
		{Files{"data/catalogue.csv", "data/catalogue.csv"}, "flow prices/json: data/catalogue.csv: invalid character"},
		{Files{"nowhere.csv", "data/supplier.json"}, "flow prices/csv: open nowhere.csv"},
	} {
		err := run(t.Context(), c.files, ":memory:")
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("got %v, want %q", err, c.says)
		}
	}
}
