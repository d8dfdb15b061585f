// Package wsstream carries topics over WebSocket links, to browsers and to other
// programs, at least once.
//
// The server half is an [http.Handler] that serves the topics of any transport:
//
//	http.Handle("/echo", wsstream.NewHandler(transport, wsstream.WithAuthorizer(who)))
//
// The client half is itself a [transport.Transport], so that a program changes
// one line to be at the other end of a link:
//
//	link, err := wsstream.Dial(ctx, "wss://example.org/echo")
//	bus := echo.New(echo.WithTransport(link))
//
// The server's program may have a bus over the same transport, which
// [transport.KeepOpen] shares. A client for browsers and Node is in clients/js of
// the repository. What goes over the wire is specified in
// docs/websocket-protocol.md.
//
// # Promises
//
// They are those of package transport, and the same suite checks them.
//
//   - A publish returns when the transport behind the server has stored the
//     message. When its answer is lost with the link, it is sent again with the
//     same ID, and stored once: the server remembers what it published of late,
//     and looks in the topic for what another node may have.
//   - A broadcast subscription goes on after the last message that came, on
//     whatever node it connects to next. It is told what it cannot have any more.
//   - What a member of a group holds is held for it for a while ([WithHold]) when
//     its link breaks, on that node; then others get it.
//
// # Serving many
//
// A handler reads a topic once for all its clients, and keeps the end of it
// ([WithRing]). A client is a place in there. One that is slow costs a number; one that
// falls behind is served by a reading of its own until it has caught up; one whose
// socket takes nothing for some seconds is given up. Clients bound what is
// sent to them by credit. A member of a group is a subscription of its own to the transport
// behind, which over Redis means a connection.
//
// # Safe by default
//
// Pages of other origins are refused ([WithOrigins]), clients without an
// [Authorizer] may read and do nothing else, everything a client sends is bounded,
// every wait has a limit, and nothing is compressed.
package wsstream
