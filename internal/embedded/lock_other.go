//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package embedded

import (
	"errors"
	"io/fs"
	"os"
)

// lockFile creates the file, which must not be there. This system has no flock
// in Go's syscall package, so a process that was killed leaves its file behind;
// staleLock tells people.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, errHeld
	}
	return f, err
}

func unlockFile(f *os.File) error { return errors.Join(f.Close(), os.Remove(f.Name())) }

func staleLock(path string) string {
	return "; if no such process runs any more, remove " + path
}
