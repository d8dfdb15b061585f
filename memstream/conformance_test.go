package memstream_test

import (
	"testing"

	"github.com/echobus/echo/memstream"
	"github.com/echobus/echo/transport"
	"github.com/echobus/echo/transport/transporttest"
)

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(testing.TB) transport.Transport { return memstream.New() })
}
