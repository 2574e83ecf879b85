package main

import (
	"bytes"
	"os"
	"testing"
)

// What people read of errors is what the program answers.
func TestThePageOfErrorsIsOfTheTableOfReasons(t *testing.T) {
	written, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, page()) {
		t.Error("docs/errors.md is not what fault/reasons.go and broker/faults.go say: run make generate")
	}
}
