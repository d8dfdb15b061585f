package dbtest

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/outbox"
	"github.com/echobus/echo/transport"
)

// The environment of a relay in a process of its own.
const (
	relayTo   = "OUTBOX_TEST_RELAY_TO" // the socket of a target
	relayKind = "OUTBOX_TEST_KIND"
	relayDSN  = "OUTBOX_TEST_DSN"
	relayName = "OUTBOX_TEST_NAME"
)

const shortLease = 250 * time.Millisecond

// relayProcess is a relay that runs until its standard input ends, or it is killed.
func relayProcess() int {
	d := drivers[os.Getenv(relayKind)]
	db, err := sql.Open(d.name, os.Getenv(relayDSN))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer db.Close()
	ob := outbox.New(db, d.dialect, outbox.WithPoll(5*time.Millisecond), outbox.WithLease(shortLease), outbox.WithBatch(20))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	mem := memstream.New()
	defer mem.Close()
	if err := ob.Relay(ctx, sender{mem, post}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// batch is a Send on its way to the target.
type batch struct {
	Relay    int
	Messages []transport.Message
}

var toSocket = &http.Client{Transport: &http.Transport{
	DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", os.Getenv(relayTo))
	},
}}

// post is a Send to the target. Without an answer nobody knows.
func post(ctx context.Context, _ string, msgs []transport.Message) (int, error) {
	name, err := strconv.Atoi(os.Getenv(relayName))
	if err != nil {
		return 0, err
	}
	body, err := json.Marshal(batch{name, msgs})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://target/", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := toSocket.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%w: %s", transport.ErrNotPublished, resp.Status)
	}
	return len(msgs), nil
}

// target takes what relays send, and kills them while they do.
type target struct {
	t      *testing.T
	db     *database
	socket string
	kills  int
	dead   chan struct{} // closed when all kills are done

	mu      sync.Mutex    // guards the rest
	frozen  chan struct{} // closed when another relay was heard of; nil while no relay is frozen
	got     []transport.Message
	relays  map[int]*exec.Cmd
	started int
	batches int
	killed  int // or stopped
	stopped int
}

// start starts another relay. The caller holds mu.
func (g *target) start() {
	g.started++
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), relayTo+"="+g.socket, relayKind+"="+g.db.kind, relayDSN+"="+g.db.dsn, relayName+"="+strconv.Itoa(g.started))
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // ends with this process
		g.t.Error(err)
		return
	}
	if err := cmd.Start(); err != nil {
		g.t.Error(err)
		return
	}
	g.relays[g.started] = cmd
}

// kill ends a relay without a warning and starts another. The caller holds mu.
func (g *target) kill(name int) {
	cmd := g.relays[name]
	if cmd == nil {
		return
	}
	delete(g.relays, name)
	cmd.Process.Kill()
	cmd.Wait()
	g.start()
	g.count()
}

// count counts what befell a relay. The caller holds mu.
func (g *target) count() {
	if g.killed++; g.killed == g.kills {
		close(g.dead)
	}
}

// freeze stops a relay until another one has taken over and sent, so that what
// it sends arrives after that. With SQLite it might hold the lock of the file,
// and nobody could take over. The caller holds mu.
func (g *target) freeze(b batch) {
	relay := g.relays[b.Relay].Process
	relay.Signal(syscall.SIGSTOP)
	g.frozen = make(chan struct{})
	other := g.frozen
	g.mu.Unlock()
	select {
	case <-other:
	case <-time.After(patience):
		g.t.Error("no other relay takes over")
	}
	g.mu.Lock()
	g.frozen = nil
	g.got = append(g.got, b.Messages...)
	relay.Signal(syscall.SIGCONT)
	g.stopped++
	g.count()
}

func (g *target) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var b batch
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		w.WriteHeader(http.StatusBadRequest) // a relay died while it wrote
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches++
	deadly := g.killed < g.kills && g.batches%4 == 0 && g.frozen == nil && g.relays[b.Relay] != nil
	switch {
	case deadly && g.killed%4 == 0: // before it is stored
		g.kill(b.Relay)
		return
	case deadly && g.killed%4 == 1 && g.db.kind != "SQLite": // stored when another relay is active
		g.freeze(b)
		return
	case g.batches%7 == 0: // refused
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	g.got = append(g.got, b.Messages...)
	if g.frozen != nil {
		close(g.frozen)
		g.frozen = nil
	}
	switch {
	case deadly && g.killed%4 == 2: // stored, and nobody was told
		g.kill(b.Relay)
	case deadly: // told, and perhaps deleted
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		g.kill(b.Relay)
	}
}

func (g *target) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, cmd := range g.relays {
		cmd.Process.Kill()
		cmd.Wait()
	}
	g.relays = nil
}

// Relays are killed before what they send is stored, after it and while they
// delete, and stopped for longer than their lease.
func TestKilledRelaysLoseNothingAndRepeatOnlyUnderTheSameID(t *testing.T) {
	onEach(t, func(t *testing.T, db *database) {
		ob := db.outbox(t)
		_, err := db.Exec(makeAccounts)
		require.NoError(t, err)
		names := []string{"a", "b", "c", "d", "e"}
		for _, n := range names {
			_, err := db.Exec("INSERT INTO accounts VALUES ('" + n + "', 0)")
			require.NoError(t, err)
		}
		g := &target{
			t: t, db: db, kills: 32, dead: make(chan struct{}), relays: make(map[int]*exec.Cmd),
			socket: filepath.Join(t.TempDir(), "s"),
		}
		l, err := net.Listen("unix", g.socket)
		require.NoError(t, err)
		server := &http.Server{Handler: g}
		var serving sync.WaitGroup
		serving.Go(func() { server.Serve(l) })
		defer func() { server.Close(); serving.Wait() }()
		defer g.stop()
		g.mu.Lock()
		g.start()
		g.start()
		g.mu.Unlock()

		changed := errors.New("changed my mind")
		var publishers sync.WaitGroup
		errs := make(chan error, 3)
		for p := range 3 {
			publishers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-g.dead:
						errs <- nil
						return
					case <-time.After(2 * time.Millisecond): // the pace of publishing
					}
					fail := error(nil)
					if i%5 == 4 {
						fail = changed
					}
					if err := change(t.Context(), db, ob, names[(p+i)%len(names)], fail); err != fail {
						errs <- err
						return
					}
				}
			})
		}
		publishers.Wait()
		for range cap(errs) {
			require.NoError(t, <-errs)
		}
		eventually(t, ob, "all is relayed", drained)
		g.stop()
		repeated := g.check(names)
		t.Logf("%d relays killed and %d stopped for a while, %d messages, %d of them repetitions", g.killed-g.stopped, g.stopped, len(g.got), repeated)
		require.NotZero(t, repeated, "relays were killed before they deleted")
	})
}

// check compares what came with what the accounts say, and returns how many
// messages came again.
func (g *target) check(names []string) (repeated int) {
	seen := make(map[string]string)    // what came under an ID
	first := make(map[string][]string) // by key
	for _, m := range g.got {
		if data, again := seen[m.ID]; again {
			repeated++
			require.Equal(g.t, data, string(m.Data), "what came again as %s", m.ID)
			continue
		}
		seen[m.ID] = string(m.Data)
		first[m.Key] = append(first[m.Key], string(m.Data))
	}
	for _, n := range names {
		var seq int
		require.NoError(g.t, g.db.QueryRow("SELECT seq FROM accounts WHERE name = '"+n+"'").Scan(&seq))
		require.NotZero(g.t, seq)
		require.Equal(g.t, numbers(seq), first[n], "account %s", n)
	}
	return repeated
}
