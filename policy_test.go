package echo_test

import (
	"testing"

	"github.com/echobus/echo/internal/policytest"
	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
)

func TestPolicies(t *testing.T) {
	policytest.Run(t, func(testing.TB) transport.Transport { return memstream.New() })
}
