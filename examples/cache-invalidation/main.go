// Command cache-invalidation shows nodes that keep a cache each: a write
// broadcasts what changed, and every node drops it.
package main

import (
	"context"
	"fmt"
	"log"
	"runtime"
	"sync"

	"github.com/echobus/echo"
)

// Invalidation names an entry that is no longer true.
type Invalidation struct{ ID int }

var invalidations = echo.NewTopic[Invalidation]("cache.invalidations")

// database is what all nodes share.
type database struct {
	mu   sync.Mutex
	rows map[int]int
}

func (d *database) read(id int) int { d.mu.Lock(); defer d.mu.Unlock(); return d.rows[id] }
func (d *database) write(id, v int) { d.mu.Lock(); defer d.mu.Unlock(); d.rows[id] = v }

// node serves reads from its cache.
type node struct {
	db    *database
	mu    sync.Mutex
	cache map[int]int
}

func (n *node) read(id int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	v, ok := n.cache[id]
	if !ok {
		v = n.db.read(id)
		n.cache[id] = v
	}
	return v
}

func (n *node) drop(ctx context.Context, m echo.Message[Invalidation]) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cache, m.Value.ID)
	return nil
}

const nodes, rows = 3, 100

func main() {
	ctx := context.Background()
	bus := echo.New()
	db := &database{rows: map[int]int{}}
	all := make([]*node, nodes)
	for i := range all {
		all[i] = &node{db: db, cache: map[int]int{}}
		consumer, err := echo.Subscribe(ctx, bus, invalidations) // no group: every node gets every invalidation
		if err != nil {
			log.Fatal(err)
		}
		go consumer.Run(ctx, all[i].drop)
	}
	fmt.Printf("stale reads before any write: %d\n", stale(all, db)) // and all caches are warm now

	producer := echo.NewProducer(bus, invalidations)
	for id := range rows {
		db.write(id, id+1000)
		if err := producer.Publish(ctx, Invalidation{id}); err != nil {
			log.Fatal(err)
		}
	}
	for stale(all, db) > 0 {
		runtime.Gosched() // invalidations are on their way
	}
	fmt.Println("stale reads after the writes, once the invalidations arrived: 0")
	bus.Close(ctx)
}

// stale counts the reads that a cache answers wrongly.
func stale(all []*node, db *database) (n int) {
	for _, node := range all {
		for id := range rows {
			if node.read(id) != db.read(id) {
				n++
			}
		}
	}
	return n
}
