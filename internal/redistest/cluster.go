package redistest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Cluster is a Redis Cluster of masters without replicas.
type Cluster struct{ Nodes []*Server }

const slots = 16384

// StartCluster starts a cluster of n masters with evenly spread slots and
// waits until every node finds it complete. Its nodes may have any option but
// TLS. The cluster is closed when the test ends.
func StartCluster(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := &Cluster{}
	t.Cleanup(c.Close)
	opts = append(slices.Clip(opts), func(c *config) { c.cluster = true })
	for range n {
		s, err := New(opts...)
		if err != nil {
			t.Fatal(err)
		}
		c.Nodes = append(c.Nodes, s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.join(ctx); err != nil {
		t.Fatalf("redistest: making a cluster: %v", err)
	}
	return c
}

func (c *Cluster) join(ctx context.Context) error {
	for i, s := range c.Nodes {
		if s.cert != nil {
			return errors.New("TLS is for single servers")
		}
		n := len(c.Nodes)
		first, last := i*slots/n, (i+1)*slots/n-1
		if err := s.Client().Do(ctx, "CLUSTER", "ADDSLOTSRANGE", first, last).Err(); err != nil {
			return err
		}
		// Different epochs spare the nodes to settle who is who.
		if err := s.Client().Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return err
		}
	}
	for _, s := range c.Nodes[1:] {
		port, err := s.Client().ConfigGet(ctx, "cluster-port").Result()
		if err != nil {
			return err
		}
		if err := c.Nodes[0].Client().Do(ctx, "CLUSTER", "MEET", "127.0.0.1", s.port, port["cluster-port"]).Err(); err != nil {
			return err
		}
	}
	return eventually(ctx, func() error {
		for _, s := range c.Nodes {
			info, err := s.Client().ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if got := parse(info); got["cluster_state"] != "ok" || got["cluster_known_nodes"] != strconv.Itoa(len(c.Nodes)) {
				return fmt.Errorf("%s says:\n%s", s.Addr(), info)
			}
		}
		return nil
	})
}

// Addrs returns the addresses of all nodes.
func (c *Cluster) Addrs() []string { return addrs(c.Nodes) }

func addrs(servers []*Server) []string {
	all := make([]string, len(servers))
	for i, s := range servers {
		all[i] = s.Addr()
	}
	return all
}

// Options returns new options of a client of the cluster.
func (c *Cluster) Options() *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs:           c.Addrs(),
		Password:        c.Nodes[0].password,
		Protocol:        2,
		DisableIdentity: true,
	}
}

// Owner returns the node that has a slot.
func (c *Cluster) Owner(slot int) (*Server, error) {
	s, err := c.owner(context.Background(), slot)
	if err != nil {
		return nil, fmt.Errorf("redistest: %w", err)
	}
	return s, nil
}

func (c *Cluster) owner(ctx context.Context, slot int) (*Server, error) {
	err := errors.New("no node runs")
	for _, s := range c.Nodes {
		if !s.process().runs() {
			continue
		}
		var shards []redis.ClusterShard
		if shards, err = s.Client().ClusterShards(ctx).Result(); err != nil {
			continue
		}
		for _, shard := range shards {
			if !slices.ContainsFunc(shard.Slots, func(r redis.SlotRange) bool { return int64(slot) >= r.Start && int64(slot) <= r.End }) {
				continue
			}
			for _, s := range c.Nodes {
				if len(shard.Nodes) > 0 && shard.Nodes[0].Port == int64(s.port) {
					return s, nil
				}
			}
		}
		err = errors.New("nobody has it")
	}
	return nil, fmt.Errorf("slot %d: %w", slot, err)
}

// MoveSlot moves a slot to another node while clients use it. With half of its
// keys moved, or one more, it calls during, unless that is nil: then the old
// node answers for the keys that it still has, and sends clients to the new one
// for all others.
func (c *Cluster) MoveSlot(slot int, to *Server, during func()) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	from, err := c.owner(ctx, slot)
	if err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	if from == to {
		return nil
	}
	if err := c.move(ctx, slot, from, to, during); err != nil {
		return fmt.Errorf("redistest: moving slot %d from %s to %s: %w", slot, from.Addr(), to.Addr(), err)
	}
	return nil
}

func (c *Cluster) move(ctx context.Context, slot int, from, to *Server, during func()) error {
	fromID, err := from.Client().ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	toID, err := to.Client().ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	if err := to.Client().Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err(); err != nil {
		return err
	}
	if err := from.Client().Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err(); err != nil {
		return err
	}
	n, err := from.Client().ClusterCountKeysInSlot(ctx, slot).Result()
	if err != nil {
		return err
	}
	if err := moveKeys(ctx, slot, int(n+1)/2, from, to); err != nil {
		return err
	}
	if during != nil {
		during()
		// It may have taken its time.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), patience)
		defer cancel()
	}
	if err := moveKeys(ctx, slot, -1, from, to); err != nil {
		return err
	}
	// The new owner first: the old one would otherwise send clients to a node
	// that sends them back. A node that is down hears of it from the others.
	for _, s := range append([]*Server{to, from}, c.Nodes...) {
		if !s.process().runs() {
			continue
		}
		if err := s.Client().Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err(); err != nil {
			return err
		}
	}
	return nil
}

// moveKeys moves n keys of a slot, or all if n is negative.
func moveKeys(ctx context.Context, slot, n int, from, to *Server) error {
	for n != 0 {
		most := 100
		if n > 0 {
			most = min(most, n)
		}
		keys, err := from.Client().ClusterGetKeysInSlot(ctx, slot, most).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return nil
		}
		args := []any{"MIGRATE", "127.0.0.1", to.port, "", 0, patience.Milliseconds()}
		if to.password != "" {
			args = append(args, "AUTH", to.password)
		}
		args = append(args, "KEYS")
		for _, k := range keys {
			args = append(args, k)
		}
		if err := from.Client().Do(ctx, args...).Err(); err != nil {
			return err
		}
		if n > 0 {
			n -= len(keys)
		}
	}
	return nil
}

// Close ends all nodes and removes their folders.
func (c *Cluster) Close() {
	for _, s := range c.Nodes {
		s.Close()
	}
}

// eventually calls f until it returns nil or ctx ends.
func eventually(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
