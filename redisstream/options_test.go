package redisstream

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// redisOptions are the options of a client that tests look at.
type redisOptions struct {
	Addr, user, password string
	db, pool             int
	wait                 time.Duration
}

func optionsOf(c redis.UniversalClient) *redisOptions {
	o := c.(*redis.Client).Options()
	return &redisOptions{o.Addr, o.Username, o.Password, o.DB, o.PoolSize, o.PoolTimeout}
}

// Sweep removes a group's dead consumers that were silent for longer than d.
func Sweep(t *Transport, key, group string, d time.Duration) (int64, error) {
	var reply sink
	if err := t.run(t.ctx, sweepScript, []string{key}, &reply, group, d.Milliseconds()); err != nil {
		return 0, err
	}
	c := cursor{reply.b}
	return c.integer()
}
