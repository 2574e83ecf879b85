package main

import (
	"net/http"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// await URL waits until it answers 200.
func await(ts *testscript.TestScript, _ bool, args []string) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(time.Minute)
	for {
		response, err := http.Get(args[0])
		if err == nil {
			_ = response.Body.Close() // only its status is wanted
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ticker.C:
		case <-limit:
			ts.Fatalf("%s does not answer: %v", args[0], err)
		}
	}
}
