package outbox_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/echobus/echo/outbox"
)

// The SQL is for tools that migrate; others call Create.
func ExampleOutbox_Schema() {
	db := sql.OpenDB(absent{}) // not used
	defer db.Close()
	fmt.Print(outbox.New(db, outbox.Postgres, outbox.WithTable("app.outbox")).Schema())
	// Output:
	// CREATE TABLE IF NOT EXISTS "app"."outbox" (
	// 	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	// 	topic   text NOT NULL,
	// 	message text NOT NULL,
	// 	key     bytea NOT NULL,
	// 	time    text NOT NULL,
	// 	type    text NOT NULL,
	// 	header  text NOT NULL,
	// 	terms   text NOT NULL DEFAULT '',
	// 	data    bytea NOT NULL,
	// 	created bigint NOT NULL DEFAULT ((extract(epoch FROM clock_timestamp()) * 1000)::bigint),
	// 	parked  text
	// );
	// CREATE INDEX IF NOT EXISTS "outbox_waiting" ON "app"."outbox" (id) WHERE parked IS NULL;
	// CREATE TABLE IF NOT EXISTS "app"."outbox_relay" (
	// 	id      bigint PRIMARY KEY CHECK (id = 1),
	// 	holder  text NOT NULL,
	// 	expires bigint NOT NULL
	// );
}

// A publish belongs to the transaction in its context, and needs one.
func ExampleWith() {
	db := sql.OpenDB(absent{})
	defer db.Close()
	ob := outbox.New(db, outbox.Postgres)
	_, err := ob.Send(context.Background(), "orders", nil)
	fmt.Println(err)
	// Output:
	// not published: outbox: the context carries no transaction, give it one by outbox.With
}
