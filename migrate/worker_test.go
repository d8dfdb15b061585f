package migrate_test

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/redisstream"
)

// Tests start this binary again as a process that runs a bridge between two
// prefixes of a server until it is killed.
const (
	workerAddr = "ECHO_TEST_ADDR"
	workerFrom = "ECHO_TEST_FROM"
	workerTo   = "ECHO_TEST_TO"
)

const workerLease = time.Second

func worker() {
	open := func(prefix string) *redisstream.Transport {
		client := redis.NewClient(&redis.Options{Addr: os.Getenv(workerAddr)})
		return redisstream.New(client, redisstream.WithPrefix(prefix), redisstream.WithLease(workerLease))
	}
	err := migrate.Bridge(context.Background(), open(os.Getenv(workerFrom)), open(os.Getenv(workerTo)), []string{"t"}, migrate.WithBatch(16))
	log.Fatal(err)
}
