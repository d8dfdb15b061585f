// Package interop tests the WebSocket server with peers that are not ours: a
// client in Python and one for Node, made from the protocol's page alone, and
// the proxies that docs/websocket.md has configurations for.
package interop
