// Package page shows flows in a browser, drawn as they are and counting while they
// run.
//
//	http.Handle("/flows/", http.StripPrefix("/flows", page.Handler(importing, enriching)))
//
// The page tells names of steps and what happened at them, and no data that
// goes through; who may see that is for the program to say, around the handler.
package page

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/echobus/echo/flow"
)

// Seen is what can be shown: a [flow.Flow] or a [flow.Pipeline].
type Seen interface {
	Name() string
	Sight() flow.Sight
}

//go:embed files
var files embed.FS

// Handler serves a page with some flows, in this order, and at sight.json what
// it draws: an array of objects, each as JSON of a [flow.Sight]. It panics if one is nil.
func Handler(flows ...Seen) http.Handler {
	for i, f := range flows {
		if f == nil {
			panic(fmt.Sprintf("page: flow %d of %d is nil", i+1, len(flows)))
		}
	}
	static, err := fs.Sub(files, "files")
	if err != nil {
		panic(err) // they are part of the program
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(static))
	mux.HandleFunc("GET /sight.json", func(w http.ResponseWriter, _ *http.Request) {
		sights := make([]flow.Sight, len(flows))
		for i, f := range flows {
			sights[i] = f.Sight()
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(sights) // who went away needs no answer
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-cache")
		mux.ServeHTTP(w, r)
	})
}
