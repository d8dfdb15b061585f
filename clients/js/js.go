// Package js is the JavaScript client as one file, for programs in Go that serve
// pages and do not want a build of their own:
//
//	mux.Handle("/echo.js", http.FileServerFS(js.Files))
//
// The file is made by npm run bundle.
package js

import "embed"

// Files has echo.js, a module that exports what @echobus/client does.
//
//go:embed echo.js
var Files embed.FS
