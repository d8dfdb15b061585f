package dbtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// server is a PostgreSQL of the tests' own. It listens at a socket in its
// folder alone, so no port is taken.
type server struct {
	bin, dir string

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// shared is the server of the tests that leave it running.
var shared = sync.OnceValues(func() (_ *server, err error) {
	running, err = newServer()
	return running, err
})

var running *server // what shared started

const patience = 30 * time.Second

// newServer makes a server and starts it. Its caller closes it.
func newServer() (*server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // Debian's, not on the PATH
	if path, lookErr := exec.LookPath("postgres"); lookErr == nil {
		found = append(found, path)
	}
	if err != nil || len(found) == 0 {
		return nil, errors.New("no PostgreSQL is here; install it with: scripts/setup, or apt-get install --no-install-recommends postgresql")
	}
	slices.Sort(found)
	s := &server{bin: filepath.Dir(found[len(found)-1])}
	if s.dir, err = os.MkdirTemp("", "echo-postgres"); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(s.bin, "initdb"), "-D", filepath.Join(s.dir, "data"), "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if err := asUser(cmd, s.dir); err != nil {
		return nil, err
	}
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.close()
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := s.start(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// start starts the server and waits until it answers.
func (s *server) start() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), "-D", filepath.Join(s.dir, "data"),
		"-c", "listen_addresses=", "-c", "unix_socket_directories="+s.dir, "-c", "fsync=on", "-c", "max_connections=200")
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := asUser(cmd, s.dir); err != nil {
		return err
	}
	started := make(chan error)
	done := make(chan struct{})
	go func() {
		// Linux means the thread that started the process when it says parent,
		// so the thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.cmd, s.done = cmd, done
	return s.ready()
}

func (s *server) ready() error {
	db, err := sql.Open("pgx", s.dsn("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-s.done:
			err = errors.New("it ended")
			cancel()
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("PostgreSQL does not answer: %w\n%s", err, log)
		}
	}
}

// stop ends the server as a crash would, without a checkpoint.
func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGQUIT)
	<-s.done
	s.cmd = nil
}

func (s *server) close() {
	s.stop()
	os.RemoveAll(s.dir)
}

func (s *server) dsn(database string) string {
	return "host=" + s.dir + " user=test sslmode=disable dbname=" + database
}

// database makes an empty database.
func (s *server) database(t testing.TB) *database {
	t.Helper()
	admin, err := sql.Open("pgx", s.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	name := fmt.Sprintf("t%d", time.Now().UnixNano())
	if _, err := admin.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	return open(t, "PostgreSQL", s.dsn(name))
}
