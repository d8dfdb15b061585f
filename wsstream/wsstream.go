// Package wsstream links programs and browsers to a transport over WebSocket:
// a server half, [Handler], that serves the topics of any transport, and a client
// half, [Dial], that is a [transport.Transport] itself.
package wsstream
