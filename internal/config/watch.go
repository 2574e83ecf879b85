package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a file must be left alone before it is read: editors and
// deploys write it in several steps.
const settle = 200 * time.Millisecond

// Watch calls changed whenever the file at path has other content than known, and
// then than before, until ctx ends. Known is what it held before it was last read:
// what is written between that reading and this call is a change like any other.
// It watches the folder, because editors replace the file, and Kubernetes the
// folder that it is a link to.
func Watch(ctx context.Context, path string, known Content, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer w.Close() //nolint:errcheck // only read
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	quiet := time.NewTimer(settle)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			quiet.Reset(settle)
		case _, ok := <-w.Errors: // events were lost: look
			if !ok {
				return nil
			}
			quiet.Reset(settle)
		case <-quiet.C:
			if now := ContentOf(path); now != known && now != "" {
				known = now
				changed()
			}
		}
	}
}

// Content names what a file holds; "" when it cannot be read, as between two steps
// of its replacement.
type Content string

// ContentOf is what the file at path holds now.
func ContentOf(path string) Content {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxFile+1)); err != nil {
		return ""
	}
	return Content(h.Sum(nil))
}

// NeedRestart names the settings at the top level that differ between c and next
// and are read only when the gateway starts: all but the subscriptions.
func (c Config) NeedRestart(next Config) []string {
	for _, one := range []*Config{&c, &next} { // what no file says
		one.Listen.Listen, one.Kafka.Dial, one.Kafka.Logger = nil, nil, nil
	}
	var names []string
	a, b := reflect.ValueOf(c), reflect.ValueOf(next)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("yaml"), ",")
		if name != "subscriptions" && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}
