package redisstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// clients are the transport's own: one for commands and one for reads that
// block. They are made from the options of the client that the user gave,
// which is left alone, because what a transport needs of them differs: nothing
// is sent a second time behind its back, a context's deadline holds on the
// wire, and readers that wait never take a connection from those who send.
type clients struct {
	read redis.UniversalClient

	mu     sync.Mutex // guards the rest
	cmd    redis.UniversalClient
	again  func() redis.UniversalClient // makes another cmd
	closed bool
}

const (
	readers    = 1 << 14 // subscriptions that may wait at once
	blockMost  = 1050 * time.Millisecond
	readMargin = 2 * time.Second // a reply to a blocking read may be so late
)

// newClients makes the clients. A command may take at least as long as longest.
func newClients(given redis.UniversalClient, longest time.Duration) (*clients, error) {
	switch g := given.(type) {
	case nil:
		return nil, errors.New("the client is nil")
	case *redis.Client:
		cmd, read := *g.Options(), *g.Options()
		for _, o := range []*redis.Options{&cmd, &read} {
			o.Protocol = 2
			o.MaxRetries = -1
			o.DialerRetries = 1
			o.ContextTimeoutEnabled = true
			o.DisableIdentity = true
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
			o.MinIdleConns = 0
			o.ClientSideCacheConfig, o.ClientSideCache = nil, nil
		}
		cmd.ReadTimeout, cmd.WriteTimeout = timeout(cmd.ReadTimeout, longest), timeout(cmd.WriteTimeout, 0)
		read.PoolSize, read.MaxIdleConns, read.MaxActiveConns = readers, 1, 0
		read.ReadTimeout = blockMost + readMargin
		again := func() redis.UniversalClient {
			o := cmd
			return redis.NewClient(&o)
		}
		return &clients{read: redis.NewClient(&read), cmd: again(), again: again}, nil
	case *redis.ClusterClient:
		cmd, read := *g.Options(), *g.Options()
		for _, o := range []*redis.ClusterOptions{&cmd, &read} {
			o.Protocol = 2
			o.MaxRetries = -1
			o.DialerRetries = 1
			o.ContextTimeoutEnabled = true
			o.DisableIdentity = true
			o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
			o.MinIdleConns = 0
			o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
		}
		cmd.ReadTimeout, cmd.WriteTimeout = timeout(cmd.ReadTimeout, longest), timeout(cmd.WriteTimeout, 0)
		read.PoolSize, read.MaxIdleConns, read.MaxActiveConns = readers, 1, 0
		read.ReadTimeout = blockMost + readMargin
		return &clients{read: redis.NewClusterClient(&read), cmd: redis.NewClusterClient(&cmd)}, nil
	}
	return nil, fmt.Errorf("a client of type %T: only *redis.Client and *redis.ClusterClient are supported: %w", given, errors.ErrUnsupported)
}

// timeout is a timeout of the user's, at most 5 s where there is none, and
// longer than a command takes at least.
func timeout(users, least time.Duration) time.Duration {
	if users <= 0 {
		users = settleMost
	}
	return max(users, least+time.Second)
}

// command returns the client for commands.
func (c *clients) command() redis.UniversalClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cmd
}

// renew gives up the connections for commands: they may lead to a server that
// is not the primary any more.
func (c *clients) renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again != nil && !c.closed {
		c.cmd.Close()
		c.cmd = c.again()
	}
}

func (c *clients) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return errors.Join(c.cmd.Close(), c.read.Close())
}

// node returns the client of the server that has key.
func node(ctx context.Context, c redis.UniversalClient, key string) (*redis.Client, error) {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return c.(*redis.Client), nil
}

// relocate makes a client look for the nodes of its cluster again.
func relocate(ctx context.Context, c redis.UniversalClient) {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

// Dial returns a client for a URL:
//
//	redis://user:password@host:6379/0         one server
//	rediss://…                                one server, TLS
//	redis+sentinel://host:26379/0?master_name=mymaster&addr=host2:26379
//	redis+cluster://host:6379?addr=host2:6379
//
// The last two have variants with rediss in place of redis. Query parameters
// set further options of go-redis, such as pool_size=50. It does no I/O. The
// password is in no error.
func Dial(rawURL string) (redis.UniversalClient, error) {
	c, err := dial(rawURL, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("redisstream: %w", redact(rawURL, err))
	}
	return c, nil
}

// dial makes the client of a URL, with a pool of another size or timeout where
// they are not 0.
func dial(rawURL string, pool int, timeout time.Duration) (redis.UniversalClient, error) {
	scheme, rest, ok := strings.Cut(rawURL, "://")
	if !ok {
		return nil, errors.New("the URL does not begin with redis://, rediss://, redis+sentinel:// or redis+cluster://")
	}
	base, kind, _ := strings.Cut(scheme, "+")
	plain := base + "://" + rest
	switch {
	case kind == "" && (base == "redis" || base == "rediss" || base == "unix"):
		o, err := redis.ParseURL(plain)
		if err != nil {
			return nil, err
		}
		o.PoolSize, o.PoolTimeout = cmp.Or(pool, o.PoolSize), cmp.Or(timeout, o.PoolTimeout)
		return redis.NewClient(o), nil
	case kind == "sentinel" && (base == "redis" || base == "rediss"):
		o, err := redis.ParseFailoverURL(plain)
		if err != nil {
			return nil, err
		}
		if o.MasterName == "" {
			return nil, errors.New("a URL of Sentinel needs the parameter master_name")
		}
		o.PoolSize, o.PoolTimeout = cmp.Or(pool, o.PoolSize), cmp.Or(timeout, o.PoolTimeout)
		return redis.NewFailoverClient(o), nil
	case kind == "cluster" && (base == "redis" || base == "rediss"):
		o, err := redis.ParseClusterURL(plain)
		if err != nil {
			return nil, err
		}
		o.PoolSize, o.PoolTimeout = cmp.Or(pool, o.PoolSize), cmp.Or(timeout, o.PoolTimeout)
		return redis.NewClusterClient(o), nil
	}
	return nil, fmt.Errorf("scheme %q; there are redis, rediss, unix, redis+sentinel, rediss+sentinel, redis+cluster and rediss+cluster", scheme)
}

// redact removes the URL and its password from an error's text.
func redact(rawURL string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // which has not the URL
	}
	text := strings.ReplaceAll(err.Error(), rawURL, "the URL")
	if _, rest, ok := strings.Cut(rawURL, "://"); ok {
		text = strings.ReplaceAll(text, rest, "…")
		if at := strings.LastIndexByte(rest, '@'); at > 0 {
			_, password, _ := strings.Cut(rest[:at], ":")
			for _, secret := range []string{rest[:at], password} {
				if plain, err := url.PathUnescape(secret); err == nil && plain != "" {
					text = strings.ReplaceAll(text, plain, "***")
				}
				if secret != "" {
					text = strings.ReplaceAll(text, secret, "***")
				}
			}
		}
	}
	return errors.New(text)
}

// DialEnv returns a client as the environment says: REDIS_URL as for [Dial], or
// else REDIS_HOST (localhost), REDIS_PORT (6379), REDIS_USERNAME,
// REDIS_PASSWORD and REDIS_DB (0). REDIS_POOL_SIZE and REDIS_TIMEOUT, the
// seconds to wait for a connection of the pool, apply to both. It does no I/O.
func DialEnv() (redis.UniversalClient, error) {
	c, err := dialEnv(os.Getenv)
	if err != nil {
		return nil, fmt.Errorf("redisstream: %w", err)
	}
	return c, nil
}

func dialEnv(getenv func(string) string) (redis.UniversalClient, error) {
	number := func(name string, least int) (int, error) {
		text := getenv(name)
		if text == "" {
			return 0, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < least {
			return 0, fmt.Errorf("%s=%q: not a whole number of at least %d", name, text, least)
		}
		return n, nil
	}
	port, err1 := number("REDIS_PORT", 1)
	db, err2 := number("REDIS_DB", 0)
	pool, err3 := number("REDIS_POOL_SIZE", 1)
	timeout, err4 := number("REDIS_TIMEOUT", 1)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	wait := time.Duration(timeout) * time.Second
	rawURL := getenv("REDIS_URL")
	if rawURL == "" {
		return redis.NewClient(&redis.Options{
			Addr:        net.JoinHostPort(cmp.Or(getenv("REDIS_HOST"), "localhost"), strconv.Itoa(cmp.Or(port, 6379))),
			Username:    getenv("REDIS_USERNAME"),
			Password:    getenv("REDIS_PASSWORD"),
			DB:          db,
			PoolSize:    pool,
			PoolTimeout: wait,
		}), nil
	}
	c, err := dial(rawURL, pool, wait)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", redact(rawURL, err))
	}
	return c, nil
}
