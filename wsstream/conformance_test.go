package wsstream_test

import (
	"context"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/echobus/echo/internal/policytest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
	"github.com/echobus/echo/wsstream"
)

func TestMain(m *testing.M) {
	if redis := os.Getenv(nodeEnv); redis != "" {
		node(redis) // a child process of a test
		return
	}
	goleak.VerifyTestMain(m)
}

// linked is a client whose Close takes the server with it.
type linked struct {
	*wsstream.Transport
	close func()
}

func (l linked) Close() error {
	err := l.Transport.Close()
	l.close()
	return err
}

func (l linked) Unwrap() transport.Transport { return l.Transport }

// overMemory links a client to a server over a transport in memory.
func overMemory(t testing.TB, opts ...wsstream.DialOption) transport.Transport {
	t.Helper()
	mem := memstream.New()
	h := wsstream.NewHandler(mem, wsstream.WithAnonymous(wsstream.Everything("")))
	s := httptest.NewServer(h)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tr, err := wsstream.Dial(ctx, s.URL, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return linked{tr, func() {
		h.Close()
		s.Close()
		mem.Close()
	}}
}

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport { return overMemory(t) })
}

func TestPolicies(t *testing.T) {
	policytest.Run(t, func(t testing.TB) transport.Transport { return overMemory(t) })
}

func TestConformanceInJSON(t *testing.T) {
	transporttest.Run(t, func(t testing.TB) transport.Transport { return overMemory(t, wsstream.WithJSON()) })
}
