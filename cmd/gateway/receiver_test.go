package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// receiver is a webhook receiver for stories: receiver ADDRESS SECRET. It prints
// each body, and answers 400 to a bad signature, 422 to "unusable", 500 to the
// first "flaky", and 200 to the rest.
func receiver() {
	verifier, err := standardwebhooks.NewWebhook(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	flaky := true
	server := &http.Server{Addr: os.Args[1], Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			return
		}
		b, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(b, r.Header); err != nil {
			http.Error(w, "bad signature", http.StatusBadRequest)
			return
		}
		switch {
		case strings.Contains(string(b), "unusable"):
			http.Error(w, "I cannot use this", http.StatusUnprocessableEntity)
			return
		case strings.Contains(string(b), "flaky") && flaky:
			flaky = false
			http.Error(w, "try later", http.StatusInternalServerError)
			return
		}
		fmt.Printf("received %s\n", b)
	})}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, func() { _ = server.Close() }) // ends ListenAndServe
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
