package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/echobus/echo/flow"
)

func readCSV(name string) (items []Item, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(rows) == 0 || !slices.Equal(rows[0], []string{"sku", "name", "cents"}) {
		return nil, fmt.Errorf("%s: want columns sku, name and cents", name)
	}
	for i, r := range rows[1:] {
		cents, err := strconv.Atoi(r[2])
		if err != nil {
			return nil, fmt.Errorf("%s: row %d: %w", name, i+2, err)
		}
		items = append(items, Item{r[0], r[1], cents})
	}
	return items, nil
}

func readJSON(name string) (items []Item, err error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var list []struct {
		SKU, Name string
		Price     float64
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, x := range list {
		items = append(items, Item{x.SKU, x.Name, int(math.Round(100 * x.Price))})
	}
	return items, nil
}

// join puts together what has one SKU.
func join(ours, theirs []Item) ([]Row, error) {
	byName := make(map[string]*Row)
	row := func(sku string) *Row {
		if byName[sku] == nil {
			byName[sku] = &Row{SKU: sku}
		}
		return byName[sku]
	}
	for i := range ours {
		row(ours[i].SKU).Ours = &ours[i]
	}
	for i := range theirs {
		row(theirs[i].SKU).Theirs = &theirs[i]
	}
	rows := make([]Row, 0, len(byName))
	for _, r := range byName {
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Compare(a.SKU, b.SKU) })
	return rows, nil
}

// compare says what changed, and skips a row that did not.
func compare(r Row) (Change, error) {
	time.Sleep(10 * time.Millisecond) // so that the bar can be seen
	switch {
	case r.Ours == nil:
		return Change{r.SKU, "new: " + r.Theirs.Name, r.Theirs.Cents}, nil
	case r.Theirs == nil:
		return Change{r.SKU, "gone: " + r.Ours.Name, 0}, nil
	case r.Ours.Cents != r.Theirs.Cents:
		return Change{r.SKU, fmt.Sprintf("%s was %.2f", r.Ours.Name, float64(r.Ours.Cents)/100), r.Theirs.Cents}, nil
	}
	return Change{}, flow.ErrSkip
}

type store struct{ db *sql.DB }

// write replaces what an earlier run found.
func (s store) write(ctx context.Context, changes []Change) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	for _, statement := range []string{"CREATE TABLE IF NOT EXISTS changes (sku text PRIMARY KEY, what text, cents integer)", "DELETE FROM changes"} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if _, err := tx.ExecContext(ctx, "INSERT INTO changes VALUES (?, ?, ?)", c.SKU, c.What, c.Cents); err != nil {
			return err
		}
	}
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM changes").Scan(&n); err != nil {
		return err
	}
	if n != len(changes) {
		return fmt.Errorf("%d rows of %d are there", n, len(changes))
	}
	return tx.Commit()
}

func report(_ context.Context, changes []Change) error {
	for _, c := range changes {
		fmt.Printf("%s %6.2f %s\n", c.SKU, float64(c.Cents)/100, c.What)
	}
	return nil
}
