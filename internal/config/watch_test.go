package config

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestAFileIsReadAgainHoweverItIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("gateway.yaml", "0")
	known := ContentOf(path)
	put("gateway.yaml", "1")
	changed, done := make(chan struct{}, 10), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- Watch(ctx, path, known, func() { changed <- struct{}{} }) }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s is not noticed", what)
		}
	}
	wait("a write before the watch began")
	put("gateway.yaml", "2")
	wait("a write in place")
	put("next", "3")
	if err := os.Rename(filepath.Join(dir, "next"), path); err != nil {
		t.Fatal(err)
	}
	wait("a rename over it")
	// As Kubernetes does: the file is a link through a folder's link that is swapped.
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		put(v+"/gateway.yaml", v)
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, "tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("v1", "..data")
	link("..data/gateway.yaml", "gateway.yaml")
	wait("a link in its place")
	link("v2", "..data")
	wait("a swapped link")
	select {
	case <-changed:
		t.Error("a change is told twice")
	default:
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatNeedsARestartIsNamed(t *testing.T) {
	load := func(text string) Config {
		t.Helper()
		c, err := Load(write(t, text), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := load("kafka: {brokers: ['a:1']}\nsubscriptions: [{name: a, topics: [t]}]\n")
	b := load("kafka: {brokers: ['a:1']}\nsubscriptions: [{name: b, topics: [t]}]\n")
	c := load("kafka: {brokers: ['b:1']}\ndrain_timeout: 1s\n")
	if n := a.NeedRestart(b); len(n) != 0 {
		t.Errorf("subscriptions alone need a restart of %v", n)
	}
	if n := a.NeedRestart(c); !slices.Equal(n, []string{"kafka", "drain_timeout"}) {
		t.Errorf("got %v", n)
	}
}
