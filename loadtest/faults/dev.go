package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/prove"
)

// devDiskBytes is the size of postern dev's disk.
const devDiskBytes = 64 << 20

// dev is a postern dev on a disk of its own.
type dev struct {
	dir     string
	mounted bool
	pid     atomic.Int64
}

func newDev() (d *dev, err error) {
	d = &dev{}
	if d.dir, err = os.MkdirTemp("", "postern-faults-dev-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	if err := os.Mkdir(d.disk(), 0o755); err != nil {
		return nil, err
	}
	if d.mounted, err = mountDisk(d.disk(), devDiskBytes); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *dev) disk() string { return filepath.Join(d.dir, "disk") }
func (d *dev) data() string { return filepath.Join(d.disk(), "data") }

// options of a run on d: one process, which is gateway and broker.
func (d *dev) options() (prove.Options, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return prove.Options{}, err
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	return prove.Options{
		Brokers: []string{l.Addr().String()}, Dev: d.data(), Gateways: 1, Faults: d.faults(),
		Started: func(_, pid int) { d.pid.Store(int64(pid)) },
	}, nil
}

func (d *dev) stop() error {
	var err error
	if d.mounted {
		err = syscall.Unmount(d.disk(), syscall.MNT_DETACH) // a process just ended may hold it for a moment
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// faults are those of the disk. At the first write that fails postern dev must end
// without having acknowledged it; all else must be there when it is started again.
func (d *dev) faults() []prove.Fault {
	return []prove.Fault{
		{Name: "the disk of postern dev is full", Ends: true, Cause: d.whileFull},
		{Name: "the disk of postern dev fails to write (EIO)", Ends: true, Cause: d.failWrites},
	}
}

// patience is how long postern dev may take to meet a failing write and to end:
// its drain, in which no Kafka answers any more.
const patience = 20 * time.Second

// awaitEnd waits until the process has ended.
func (d *dev) awaitEnd(ctx context.Context) error {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for syscall.Kill(int(d.pid.Load()), 0) == nil {
		select {
		case <-limit.C:
			return fmt.Errorf("postern dev lives on %s after its disk failed", patience)
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// whileFull leaves no byte on the disk until postern dev has ended, then makes room.
func (d *dev) whileFull(ctx context.Context, _ *rand.Rand, _ func(int)) error {
	ballast := filepath.Join(d.disk(), "ballast")
	if err := fill(ballast); err != nil {
		return err
	}
	return errors.Join(d.awaitEnd(ctx), os.Remove(ballast))
}

// failWrites has every write to the broker's files fail until postern dev has ended.
func (d *dev) failWrites(ctx context.Context, _ *rand.Rand, _ func(int)) error {
	var files []string
	err := filepath.WalkDir(d.data(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, path)
		}
		return nil // what has gone meanwhile is not written to
	})
	if err != nil || len(files) == 0 {
		return fmt.Errorf("postern dev has no files in %s: %w", d.data(), err)
	}
	t, err := traceWrites(ctx, int(d.pid.Load()), "/dev/null", files)
	if err != nil {
		return err
	}
	defer t.stop()
	return d.awaitEnd(ctx)
}

// trace is an strace that makes writes fail.
type trace struct{ *exec.Cmd }

// traceWrites has every write of a process to some files fail with EIO, and says so in a file.
func traceWrites(ctx context.Context, pid int, said string, files []string) (trace, error) {
	const calls = "write,pwrite64,writev,fsync,fdatasync"
	args := []string{"-f", "-qq", "-o", said, "-p", strconv.Itoa(pid), "-e", "trace=" + calls, "-e", "inject=" + calls + ":error=EIO"}
	for _, file := range files {
		args = append(args, "-P", file)
	}
	t := trace{exec.CommandContext(ctx, "strace", args...)}
	t.Cancel = func() error { return t.Process.Signal(syscall.SIGINT) } // it lets the process go
	t.WaitDelay = 10 * time.Second
	return t, t.Start()
}

// stop ends it. One whose process has ended in the middle may wait for it for ever.
func (t trace) stop() {
	_ = t.Process.Signal(syscall.SIGINT) // one whose process was killed has ended
	limit := time.AfterFunc(traceEnds, func() { _ = t.Process.Kill() })
	defer limit.Stop()
	_ = t.Wait() // it was interrupted
}

// traceEnds is how long strace may take to let a process go.
const traceEnds = 5 * time.Second

// mountDisk mounts a tmpfs of a size, and finds whether faults of disks can be brought about.
func mountDisk(dir string, size int) (mounted bool, err error) {
	if _, err := exec.LookPath("strace"); err != nil {
		return false, fmt.Errorf("%w (apt-get install strace; -without disk leaves its faults out)", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(size)); err != nil {
		return false, fmt.Errorf("mount a small disk: %w (needs root; -without disk leaves its faults out)", err)
	}
	return true, nil
}
