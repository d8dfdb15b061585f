package outbox

import (
	"context"
	"fmt"
	"strings"
)

// Schema returns the SQL that makes the tables and the index, unless they are
// there, for a migration tool. It is empty when the options are wrong.
func (o *Outbox) Schema() string {
	if o.err != nil {
		return ""
	}
	return strings.Join(o.sql.schema, ";\n") + ";\n"
}

// Create runs what [Outbox.Schema] returns. Any number of processes may do so
// at a time.
func (o *Outbox) Create(ctx context.Context) error {
	if o.err != nil {
		return o.err
	}
	if err := o.create(ctx); err != nil {
		return fmt.Errorf("outbox: create %s: %w", o.cfg.table, err)
	}
	return nil
}

func (o *Outbox) create(ctx context.Context) error {
	if o.sql.lock == "" {
		for _, s := range o.sql.schema {
			if _, err := o.db.ExecContext(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	tx, err := o.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	for _, s := range append([]string{o.sql.lock}, o.sql.schema...) {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return tx.Commit()
}
