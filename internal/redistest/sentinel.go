package redistest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Sentinel is a master and its replica, watched by three sentinels of which
// two decide. The names are those at the start: a failover swaps the roles.
type Sentinel struct {
	Master, Replica *Server
	Sentinels       []*Server
}

// masterName is what the sentinels call the master.
const masterName = "echo"

// StartSentinel starts the servers and waits until the sentinels know the
// replica and each other. They are closed when the test ends.
func StartSentinel(t testing.TB) *Sentinel {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s := &Sentinel{}
	s.Master = Start(t)
	s.Replica = Start(t, WithReplicaOf(s.Master))
	// Sentinels ask for replicas seldom, so it has to be there already.
	err := eventually(ctx, func() error {
		info, err := s.Replica.Client().Info(ctx, "replication").Result()
		if err == nil && parse(info)["master_link_status"] != "up" {
			err = fmt.Errorf("the replica says:\n%s", info)
		}
		return err
	})
	if err != nil {
		t.Fatalf("redistest: replicating: %v", err)
	}
	for range 3 {
		s.Sentinels = append(s.Sentinels, Start(t,
			func(c *config) { c.sentinel = true },
			WithConfig("--sentinel", "monitor", masterName, "127.0.0.1", strconv.Itoa(s.Master.port), "2"),
			WithConfig("--sentinel", "down-after-milliseconds", masterName, "1000"),
			WithConfig("--sentinel", "failover-timeout", masterName, "5000"),
		))
	}
	for _, sentinel := range s.Sentinels {
		err := eventually(ctx, func() error {
			master := redis.NewMapStringStringCmd(ctx, "SENTINEL", "MASTER", masterName)
			if err := sentinel.Client().Process(ctx, master); err != nil {
				return err
			}
			if m := master.Val(); m["num-slaves"] != "1" || m["num-other-sentinels"] != "2" || m["flags"] != "master" {
				return fmt.Errorf("sentinel %s says: %v", sentinel.Addr(), m)
			}
			return sentinel.Client().Do(ctx, "SENTINEL", "CKQUORUM", masterName).Err()
		})
		if err != nil {
			t.Fatalf("redistest: starting sentinels: %v", err)
		}
	}
	return s
}

// Addrs returns the addresses of the sentinels.
func (s *Sentinel) Addrs() []string { return addrs(s.Sentinels) }

// Options returns new options of a client of the master, whoever it is.
func (s *Sentinel) Options() *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName:      masterName,
		SentinelAddrs:   s.Addrs(),
		Protocol:        2,
		DisableIdentity: true,
	}
}

// parse returns the fields of what INFO or CLUSTER INFO says.
func parse(info string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}
