// Package dbtest tests package outbox with real databases: SQLite in a file,
// and a PostgreSQL server that the tests start themselves. It is a module of
// its own, so that who imports echo requires no database driver.
package dbtest
