package outbox

import (
	"strconv"
	"strings"
)

// columns are what a message is in a row, as storable, rowsOf and scan have it.
var columns = []string{"topic", "message", "key", "time", "type", "header", "terms", "data"}

// statements are the texts of an outbox's SQL.
type statements struct {
	dialect
	table, relay string // quoted
	rowsOfInsert int

	schema  []string
	take    string // until after now, holder, holder
	join    string // holder, until after now
	release string
	park    string
	parked  string
	stats   string
}

func newStatements(d dialect, name string) statements {
	schema, table, found := strings.Cut(name, ".")
	if !found {
		schema, table = "", name
	} else {
		schema = quote(schema) + "."
	}
	s := statements{dialect: d, table: schema + quote(table), relay: schema + quote(table+"_relay")}
	s.rowsOfInsert = min(256, d.parameters/len(columns))
	s.schema = []string{
		"CREATE TABLE IF NOT EXISTS " + s.table + ` (
	id      ` + d.id + `,
	topic   text NOT NULL,
	message text NOT NULL,
	key     ` + d.bytes + ` NOT NULL,
	time    text NOT NULL,
	type    text NOT NULL,
	header  text NOT NULL,
	terms   text NOT NULL DEFAULT '',
	data    ` + d.bytes + ` NOT NULL,
	created ` + d.integer + ` NOT NULL DEFAULT (` + d.now + `),
	parked  text
)`,
		"CREATE INDEX IF NOT EXISTS " + quote(table+"_waiting") + " ON " + s.table + " (id) WHERE parked IS NULL",
		"CREATE TABLE IF NOT EXISTS " + s.relay + ` (
	id      ` + d.integer + ` PRIMARY KEY CHECK (id = 1),
	holder  text NOT NULL,
	expires ` + d.integer + ` NOT NULL
)`,
	}
	s.take = s.number("UPDATE " + s.relay + " SET expires = " + d.now + " + ?, holder = ? WHERE id = 1 AND (holder = ? OR expires < " + d.now + ")")
	s.join = s.number("INSERT INTO " + s.relay + " (id, holder, expires) VALUES (1, ?, " + d.now + " + ?) ON CONFLICT (id) DO NOTHING")
	s.release = s.number("UPDATE " + s.relay + " SET expires = 0 WHERE id = 1 AND holder = ?")
	s.park = s.number("UPDATE " + s.table + " SET parked = ? WHERE id = ?")
	s.parked = s.number("SELECT id, " + strings.Join(columns, ", ") + ", created, parked FROM " + s.table + " WHERE parked IS NOT NULL ORDER BY id LIMIT ?")
	s.stats = "SELECT (SELECT count(*) FROM " + s.table + " WHERE parked IS NULL)," +
		" (SELECT count(*) FROM " + s.table + " WHERE parked IS NOT NULL)," +
		" COALESCE((SELECT " + d.now + " - created FROM " + s.table + " WHERE parked IS NULL ORDER BY id LIMIT 1), 0)"
	return s
}

func quote(name string) string { return `"` + name + `"` }

// number writes the placeholders of a statement as the database wants them.
func (s *statements) number(text string) string {
	if !s.numbered {
		return text
	}
	var b strings.Builder
	for i, part := range strings.Split(text, "?") {
		if i > 0 {
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(i))
		}
		b.WriteString(part)
	}
	return b.String()
}

// insert is the statement that inserts n rows. Their ids are in the order of
// the rows.
func (s *statements) insert(n int) string {
	row := "(" + list(len(columns)) + ")"
	return s.number("INSERT INTO " + s.table + " (" + strings.Join(columns, ", ") + ") VALUES " + row + strings.Repeat(", "+row, n-1))
}

// read is the statement that returns the next rows but those of n topics.
func (s *statements) read(n int) string {
	but := ""
	if n > 0 {
		but = " AND topic NOT IN (" + list(n) + ")"
	}
	return s.number("SELECT id, " + strings.Join(columns, ", ") + " FROM " + s.table + " WHERE parked IS NULL" + but + " ORDER BY id LIMIT ?")
}

// remove is the statement that deletes n rows.
func (s *statements) remove(n int) string {
	return s.number("DELETE FROM " + s.table + " WHERE id IN (" + list(n) + ")")
}

// unpark is the statement that lets n rows be sent again, or all for none.
func (s *statements) unpark(n int) string {
	which := ""
	if n > 0 {
		which = " AND id IN (" + list(n) + ")"
	}
	return s.number("UPDATE " + s.table + " SET parked = NULL WHERE parked IS NOT NULL" + which)
}

func list(n int) string { return "?" + strings.Repeat(", ?", n-1) }

// padded returns values for a list whose length is a power of two, the last one
// repeated, so that drivers which prepare statements see few of them.
func padded[T any](vs []T) []any {
	n := 1
	for n < len(vs) {
		n *= 2
	}
	args := make([]any, n)
	for i := range args {
		args[i] = vs[min(i, len(vs)-1)]
	}
	return args
}
