package main

import (
	"net/http"
	"regexp"
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

// until COMMAND... :: PATTERN... runs a command until its output matches every pattern.
func until(ts *testscript.TestScript, _ bool, args []string) {
	var command []string
	var patterns []*regexp.Regexp
	for i, a := range args {
		switch {
		case a == "::" && patterns == nil:
			command, patterns = args[:i], []*regexp.Regexp{}
		case patterns != nil && a != "::":
			patterns = append(patterns, regexp.MustCompile(a))
		}
	}
	limit := time.Now().Add(time.Minute)
	for {
		err := ts.Exec(command[0], command[1:]...)
		out, matched := ts.ReadFile("stdout"), err == nil
		for _, p := range patterns {
			matched = matched && p.MatchString(out)
		}
		if matched {
			return
		}
		if time.Now().After(limit) {
			ts.Fatalf("%v never said what was waited for (%v):\n%s", command, err, out)
		}
	}
}
