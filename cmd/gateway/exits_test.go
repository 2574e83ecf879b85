package main

import (
	"errors"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// exits CODE PROGRAM ARGS... runs a program that must end with this code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%v exits with %d, want %d", args[1:], got, want)
	}
}

// retry PATTERN PROGRAM ARGS... runs a program until its output matches.
func retry(ts *testscript.TestScript, _ bool, args []string) {
	wanted := regexp.MustCompile(args[0])
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for limit := time.After(time.Minute); ; {
		_ = ts.Exec(args[1], args[2:]...) // what it says counts
		if wanted.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-ticker.C:
		case <-limit:
			ts.Fatalf("%v never says %s", args[1:], args[0])
		}
	}
}
