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
