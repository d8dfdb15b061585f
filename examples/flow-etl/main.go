// Command flow-etl compares a shop's catalogue, in CSV, with the price list of
// its supplier, in JSON. Both are read at the same time and joined; rows are
// compared a few at a time, and what changed is written to SQLite and to a report at
// the same time. A bar on standard error shows how far it is.
//
//	cd examples/flow-etl && go run .
//	go run . -catalogue my.csv -supplier theirs.json -db changes.db
package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/echobus/echo/flow"
	_ "modernc.org/sqlite"
)

// Files are what is compared.
type Files struct{ Catalogue, Supplier string }

// Item is a thing with a price.
type Item struct {
	SKU   string
	Name  string
	Cents int
}

// Row is what the two lists have under one SKU: nil, if nothing.
type Row struct {
	SKU          string
	Ours, Theirs *Item
}

// Change is what is to be done about a row.
type Change struct {
	SKU, What string
	Cents     int // the new price
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("flow-etl: ")
	var files Files
	flag.StringVar(&files.Catalogue, "catalogue", "data/catalogue.csv", "CSV `file` with columns sku, name and cents")
	flag.StringVar(&files.Supplier, "supplier", "data/supplier.json", "JSON `file`, a list of objects with sku, name and price")
	path := flag.String("db", ":memory:", "SQLite `file` for what changed")
	flag.Parse()
	if err := run(context.Background(), files, *path); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, files Files, path string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1) // the database in memory is that of one connection
	f, err := flow.New("prices", prices(db))
	if err != nil {
		return err
	}
	fmt.Println(f)
	stop := f.Report(20*time.Millisecond, bar)
	_, err = f.Run(ctx, files)
	stop()
	return err
}

// prices is the flow. It has to be read aloud: read both and join them,
// compare each row, write what changed here and there.
func prices(db *sql.DB) flow.Step[Files, [][]Change] {
	return flow.Then3(
		flow.Merge("join", join,
			flow.Try("csv", func(f Files) ([]Item, error) { return readCSV(f.Catalogue) }),
			flow.Try("json", func(f Files) ([]Item, error) { return readJSON(f.Supplier) })),
		flow.Each("rows", 3, flow.Try("compare", compare)),
		flow.All("write",
			flow.With(flow.Tap("sqlite", store{db}.write), flow.Retry(3, 50*time.Millisecond, time.Second)),
			flow.Tap("report", report)))
}

// bar draws how many rows were compared.
func bar(s flow.Sight) {
	rows, _ := s.Find("prices/rows/compare")
	done, all := rows.Counts.Done(), rows.Counts.Given
	if all == 0 {
		return
	}
	const width = 30
	full := int(done * width / all)
	fmt.Fprintf(os.Stderr, "\r%s%s %d of %d rows", strings.Repeat("█", full), strings.Repeat("░", width-full), done, all)
	if write, ok := s.Find("prices/write"); ok && write.Counts.Calls > 0 && write.Counts.Running == 0 {
		fmt.Fprintln(os.Stderr)
	}
}
