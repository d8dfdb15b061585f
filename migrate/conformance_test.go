package migrate_test

import (
	"testing"
	"time"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/migrate"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

func TestTeeOfTwoInMemoryKeepsAllPromises(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport { return migrate.Tee(memstream.New(), memstream.New()) })
}

func TestTeeOfRedisAndMemoryKeepsAllPromises(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport { return migrate.Tee(overRedis(), memstream.New()) })
}

const quiet = 20 * time.Millisecond

func TestDrainoverToMemoryKeepsAllPromises(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport {
		return migrate.Drainover(memstream.New(), memstream.New(), migrate.WithQuiet(quiet))
	})
}

func TestDrainoverToRedisKeepsAllPromises(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport {
		return migrate.Drainover(memstream.New(), overRedis(), migrate.WithQuiet(quiet))
	})
}

func TestDrainoverFromRedisKeepsAllPromises(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport {
		return migrate.Drainover(overRedis(), memstream.New(), migrate.WithQuiet(quiet))
	})
}
