package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// DefaultDir is where `postern dev` keeps its data: below XDG_STATE_HOME when
// it is set, else where the operating system wants an application's state.
func DefaultDir() (string, error) {
	home, err := os.UserHomeDir()
	return defaultDir(runtime.GOOS, home, err, os.Getenv)
}

func defaultDir(system, home string, homeErr error, env func(string) string) (string, error) {
	// The XDG specification has relative paths ignored.
	if dir := env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "postern", "dev"), nil
	}
	if dir := env("LocalAppData"); system == "windows" && dir != "" {
		return filepath.Join(dir, "postern", "dev"), nil
	}
	if homeErr != nil {
		return "", fmt.Errorf("find the home directory: %w: name a folder with --data-dir, or use --memory", homeErr)
	}
	if system == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "postern", "dev"), nil
	}
	return filepath.Join(home, ".local", "state", "postern", "dev"), nil
}

// folder is a data folder that is ours alone. Methods on nil do nothing: there
// is no folder in memory mode.
type folder struct {
	lock      *os.File
	marker    string
	recovered bool // the marker of an earlier run was still there
}

// errHeld is lockFile's answer when another process has the lock.
var errHeld = errors.New("held by another process")

// takeFolder locks dir against a second broker, which would ruin the data, and
// leaves a marker that only an end in order removes.
func takeFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w: name another with --data-dir DIR, or use --memory", err)
	}
	path := filepath.Join(dir, "lock")
	lock, err := lockFile(path)
	if errors.Is(err, errHeld) {
		return nil, fmt.Errorf("the data folder %s is in use by another postern dev (%s): stop that one, or use --data-dir DIR or --memory%s", dir, holder(path), staleLock(path))
	}
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w: name another with --data-dir DIR, or use --memory", dir, err)
	}
	f := &folder{lock: lock, marker: filepath.Join(dir, "running")}
	_, err = os.Stat(f.marker)
	f.recovered = err == nil
	_, errWrite := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	if err := errors.Join(errWrite, os.WriteFile(f.marker, nil, 0o600)); err != nil {
		return nil, errors.Join(fmt.Errorf("mark the data folder %s as used: %w: name another with --data-dir DIR, or use --memory", dir, err), unlockFile(lock))
	}
	return f, nil
}

// holder names the process that wrote the lock's file.
func holder(path string) string {
	text, err := os.ReadFile(path)
	if pid, errPid := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && errPid == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "process unknown" // between its lock and its word
}

// giveBack frees the folder as it was found: the broker did not run, or not to an end in order.
func (f *folder) giveBack() error {
	if f == nil {
		return nil
	}
	return unlockFile(f.lock)
}

// leave marks an end in order and frees the folder.
func (f *folder) leave() error {
	if f == nil {
		return nil
	}
	return errors.Join(os.Remove(f.marker), unlockFile(f.lock))
}
