package outbox

import "fmt"

// Dialect names the kind of database that an outbox is in.
type Dialect uint8

const (
	Postgres Dialect = iota + 1 // PostgreSQL 11 or later, in a database whose encoding is UTF-8
	SQLite                      // SQLite 3.24 or later
)

func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "Postgres"
	case SQLite:
		return "SQLite"
	}
	return fmt.Sprintf("Dialect(%d)", uint8(d))
}

// dialect is what databases do differently.
type dialect struct {
	id         string // type of the column id: ascending, and never used twice
	integer    string
	bytes      string
	now        string // milliseconds since 1970
	numbered   bool   // placeholders are $1, $2; otherwise question marks
	schemas    bool   // a table's name may have a schema before it
	aborts     bool   // a statement that fails aborts its transaction
	parameters int    // most of one statement
	lock       string // statement that makes one Create wait for another
}

var dialects = map[Dialect]dialect{
	Postgres: {
		id:         "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
		integer:    "bigint",
		bytes:      "bytea",
		now:        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
		numbered:   true,
		schemas:    true,
		aborts:     true,
		parameters: 65535,
		lock:       "SELECT pg_advisory_xact_lock(7306007869434429560)",
	},
	SQLite: {
		// Without AUTOINCREMENT an id is used again when the last row was
		// deleted, and a late DELETE would then hit a row that was never sent.
		id:         "INTEGER PRIMARY KEY AUTOINCREMENT",
		integer:    "INTEGER",
		bytes:      "BLOB",
		now:        "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
		parameters: 32766,
	},
}
