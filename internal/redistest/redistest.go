// Package redistest runs real redis-server processes for tests and benchmarks.
package redistest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// binary is the name of the program that servers run.
var binary = "redis-server"

// patience is how long a server may take to start and load its data.
const patience = 30 * time.Second

// Server is a redis-server process on a loopback port with a data folder of
// its own. It ends when the process that started it ends, however that happens.
type Server struct {
	dir      string
	port     int
	password string
	sentinel bool
	cert     *certificate // nil without TLS

	mu     sync.Mutex
	proc   *process // the last one started
	client *redis.Client
	closed bool
}

// Option configures a server.
type Option func(*config)

type config struct {
	args     []string // as redis-server takes them
	password string
	tls      bool
	master   *Server
	cluster  bool
	sentinel bool
}

// WithConfig gives the server arguments: "--maxmemory", "1mb".
func WithConfig(args ...string) Option {
	return func(c *config) { c.args = append(c.args, args...) }
}

// WithAOF makes the server keep an append-only file, which it syncs "always",
// "everysec" or "no".
func WithAOF(fsync string) Option {
	return WithConfig("--appendonly", "yes", "--appendfsync", fsync)
}

// WithPassword makes the server ask for a password.
func WithPassword(pw string) Option {
	return func(c *config) {
		c.password = pw
		c.args = append(c.args, "--requirepass", pw, "--masterauth", pw)
	}
}

// WithACL makes the server read its users from a file. The clients of [Server]
// stay those of the default user.
func WithACL(file string) Option {
	return func(c *config) {
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
		c.args = append(c.args, "--aclfile", file)
	}
}

// WithTLS makes the server speak TLS only. Its certificate is signed by an
// authority made for it; see [Server.TLS] and [Server.CAFile].
func WithTLS() Option {
	return func(c *config) { c.tls = true }
}

// WithReplicaOf makes the server a replica of s. It speaks TLS if s does, with
// the same certificate.
func WithReplicaOf(s *Server) Option {
	return func(c *config) { c.master = s }
}

// New starts a server for a program. Close ends it and removes its folder.
func New(opts ...Option) (*Server, error) {
	var c config
	for _, o := range opts {
		o(&c)
	}
	s, err := start(&c)
	if err != nil {
		return nil, fmt.Errorf("redistest: %w", err)
	}
	return s, nil
}

// Start is New for tests. The server is closed when the test ends.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s, err := New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func start(c *config) (_ *Server, err error) {
	if _, err := exec.LookPath(binary); err != nil {
		return nil, fmt.Errorf("%s is not installed; run scripts/setup, or: apt-get install redis-server", binary)
	}
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, password: c.password, sentinel: c.sentinel}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	switch {
	case c.master != nil && c.master.cert != nil:
		s.cert = c.master.cert
	case c.tls:
		if s.cert, err = newCertificate(); err != nil {
			return nil, err
		}
	}
	if s.cert != nil {
		if err := s.cert.write(dir); err != nil {
			return nil, err
		}
	}
	for range 10 {
		if err = s.configure(c); err != nil {
			return nil, err
		}
		if err = s.restart(true); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// configure chooses the ports of the server and writes its configuration file.
func (s *Server) configure(c *config) (err error) {
	if s.port, err = freePort(); err != nil {
		return err
	}
	port := strconv.Itoa(s.port)
	args := []string{"--bind", "127.0.0.1", "--protected-mode", "no", "--daemonize", "no", "--dir", s.dir}
	if s.cert == nil {
		args = append(args, "--port", port)
	} else {
		args = append(args, "--port", "0", "--tls-port", port, "--tls-replication", "yes", "--tls-auth-clients", "no",
			"--tls-ca-cert-file", s.CAFile(), "--tls-cert-file", s.file(certFile), "--tls-key-file", s.file(keyFile))
	}
	if !c.sentinel {
		args = append(args, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
	}
	if c.cluster {
		bus, err := freePort()
		if err != nil {
			return err
		}
		args = append(args, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", strconv.Itoa(bus))
	}
	if m := c.master; m != nil {
		args = append(args, "--replicaof", "127.0.0.1", strconv.Itoa(m.port))
		if m.password != "" {
			args = append(args, "--masterauth", m.password)
		}
	}
	// A file, as Redis itself writes to it when Sentinel makes it the replica
	// of another server.
	var b strings.Builder
	for i, arg := range slices.Concat(args, c.args) {
		name, isName := strings.CutPrefix(arg, "--")
		switch {
		case !isName:
			b.WriteString(" " + strconv.Quote(arg))
		case i == 0:
			b.WriteString(name)
		default:
			b.WriteString("\n" + name)
		}
	}
	b.WriteString("\n")
	return os.WriteFile(s.file("redis.conf"), []byte(b.String()), 0o600)
}

// freePort returns a port that nobody uses. It is below those that systems
// give to outgoing connections: while a server is down, no client may get its
// port, or even connect to itself.
func freePort() (int, error) {
	const lowest, highest = 16384, 32767
	var err error
	for range 100 {
		port := lowest + rand.IntN(highest-lowest+1)
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no port is free: %w", err)
}

func (s *Server) file(name string) string { return filepath.Join(s.dir, name) }

// Addr returns the server's host and port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL returns the server's address with scheme and password.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr()}
	if s.cert != nil {
		u.Scheme = "rediss"
	}
	if s.password != "" {
		u.User = url.UserPassword("", s.password)
	}
	return u.String()
}

// Options returns new options of a client of the server.
func (s *Server) Options() *redis.Options {
	return &redis.Options{
		Addr:            s.Addr(),
		Password:        s.password,
		TLSConfig:       s.TLS(),
		Protocol:        2,
		DisableIdentity: true,
	}
}

// Client returns a client of the server's own, always the same, to look at the
// server with. Close closes it.
func (s *Server) Client() *redis.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		s.client = redis.NewClient(s.Options())
		if s.closed {
			s.client.Close()
		}
	}
	return s.client
}

// TLS returns a new configuration of a client that trusts the server, or nil
// if the server speaks no TLS.
func (s *Server) TLS() *tls.Config {
	if s.cert == nil {
		return nil
	}
	return &tls.Config{RootCAs: s.cert.pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

// CAFile returns the file with the certificate of the authority that signed
// the server's.
func (s *Server) CAFile() string { return s.file(caFile) }

// Dir returns the folder that the server keeps its data in.
func (s *Server) Dir() string { return s.dir }

// Pid returns the id of the server's process, also after it was killed.
func (s *Server) Pid() int { return s.process().pid() }

func (s *Server) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// Kill ends the server without warning and waits for its end.
func (s *Server) Kill() { s.process().kill() }

// Stop suspends the server. It keeps its connections and answers nobody.
func (s *Server) Stop() { s.process().stop() }

// Continue ends what Stop began.
func (s *Server) Continue() { s.process().resume() }

// Restart starts the server again, on the same port and data, and waits until
// it has loaded them. If it still runs it is killed first.
func (s *Server) Restart() error {
	if err := s.restart(true); err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	return nil
}

// Begin is like Restart but only waits until the server accepts connections,
// which it does before it loads its data.
func (s *Server) Begin() error {
	if err := s.restart(false); err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	return nil
}

var errPortTaken = errors.New("the port is taken")

func (s *Server) restart(loaded bool) error {
	p, logged, err := s.launch()
	if err != nil {
		return err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	accepts := false
	for {
		if !accepts {
			if conn, dialErr := net.Dial("tcp", s.Addr()); dialErr == nil {
				accepts = true
				conn.Close()
			} else {
				err = dialErr
			}
		}
		if accepts {
			if !loaded {
				return nil
			}
			if err = s.ready(p, logged); err == nil {
				return nil
			}
		}
		select {
		case <-p.done:
			if strings.Contains(s.logSince(logged), "Address already in use") {
				return fmt.Errorf("%s on port %d: %w: %v\n%s", binary, s.port, errPortTaken, p.err, s.Log())
			}
			return fmt.Errorf("%s ended: %v\n%s", binary, p.err, s.Log())
		case <-timeout.C:
			return fmt.Errorf("%s is not ready after %v: %w\n%s", binary, patience, err, s.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// launch kills the server if it runs, and starts it. It also returns the
// length of the log until then.
func (s *Server) launch() (*process, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, errors.New("the server was closed")
	}
	s.proc.kill()
	log, err := os.OpenFile(s.file("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer log.Close()
	logged, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	cmd := exec.Command(binary, s.file("redis.conf"))
	if s.sentinel {
		cmd.Args = append(cmd.Args, "--sentinel")
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	s.proc, err = launch(cmd)
	return s.proc, logged, err
}

// ready returns nil if it is p that answers on the server's port, and it has
// loaded its data.
func (s *Server) ready(p *process, logged int64) error {
	opts := s.Options()
	opts.MaxRetries, opts.DialerRetries, opts.PoolSize = -1, 1, 1
	c := redis.NewClient(opts)
	defer c.Close()
	ctx := context.Background()
	err := c.Ping(ctx).Err()
	if err == nil {
		var info string
		info, err = c.Info(ctx, "server").Result()
		if pid := parse(info)["process_id"]; err == nil && pid != strconv.Itoa(p.pid()) {
			return fmt.Errorf("process %s answers, want %d", pid, p.pid())
		}
	}
	for _, refused := range []string{"NOAUTH", "WRONGPASS", "NOPERM"} {
		// The server's users are not ours to know, so the log has to tell.
		if redis.HasErrorPrefix(err, refused) && strings.Contains(s.logSince(logged), "Ready to accept connections") {
			return nil
		}
	}
	return err
}

// Log returns the end of what the server logged.
func (s *Server) Log() string {
	const most = 4 << 10
	log := s.logSince(0)
	if len(log) > most {
		log = log[len(log)-most:]
		if i := strings.IndexByte(log, '\n'); i >= 0 {
			log = log[i+1:]
		}
	}
	return log
}

func (s *Server) logSince(offset int64) string {
	log, _ := os.ReadFile(s.file("log"))
	return string(log[min(offset, int64(len(log))):])
}

// Close ends the server and removes its folder.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.client != nil {
		s.client.Close()
	}
	s.proc.kill()
	return os.RemoveAll(s.dir)
}
