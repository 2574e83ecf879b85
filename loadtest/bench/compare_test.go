package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func cellsFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cells.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTwoRunsAreComparedCellByCell(t *testing.T) {
	before := cellsFile(t, `{"scenario":"http-1","contender":"gateway","events_per_second":100,"cpu_seconds_per_million":50}
{"scenario":"http-1","contender":"gateway","events_per_second":120,"cpu_seconds_per_million":55}
{"scenario":"gone","contender":"gateway","events_per_second":1}
`)
	after := cellsFile(t, `{"scenario":"http-1","contender":"gateway","events_per_second":60,"cpu_seconds_per_million":52}
{"scenario":"http-1","contender":"gateway","events_per_second":66,"cpu_seconds_per_million":53}
`)
	var out strings.Builder
	if err := compare(&out, before, after); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{"http-1 gateway events/s 120.0 (100.0-120.0) 66.0 (60.0-66.0) 0.55 part", "CPU s/M 55.0 (50.0-55.0) 53.0 (52.0-53.0) 0.96 overlap", "gone gateway only in one of the two"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestRunsThatCannotBeComparedAreAnError(t *testing.T) {
	good := cellsFile(t, `{"scenario":"a","contender":"gateway"}`+"\n")
	for name, other := range map[string]string{"nothing in common": `{"scenario":"b","contender":"gateway"}`, "no cells": "", "no JSON": "scenario a", "another JSON": `{"name":"a"}`} {
		if err := compare(&strings.Builder{}, good, cellsFile(t, other)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
