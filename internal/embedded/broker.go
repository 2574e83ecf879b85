// Package embedded owns the broker inside `postern dev`: an in-process stand-in
// for Kafka (kfake) on a real Kafka port, its data on disk. It proves nothing
// about durability or failover: there is one copy, on one disk.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Options of the embedded broker.
type Options struct {
	// Dir keeps the data; "" keeps it in memory.
	Dir string
	// Address to listen on, host:port; port 0 takes any.
	Address string
	// Partitions of a topic created on first use. Default 6.
	Partitions int
	// Retention caps one topic-partition on disk or in memory. Default 16 MiB:
	// opening reads whole segments, so a small broker stays quick to start.
	Retention int64
	Logger    *slog.Logger
}

// Broker is a running stand-in.
type Broker struct {
	cluster *kfake.Cluster
	lock    *os.File
	marker  string
	stop    chan struct{}
	done    chan struct{}

	// Recovered tells that the last run did not end in order: what was
	// acknowledged is there, what the operating system had not written at a
	// power cut is not.
	Recovered bool
}

const (
	defaultPartitions = 6
	defaultRetention  = 16 << 20
	retentionAge      = 7 * 24 * time.Hour
	retentionCheck    = 5 * time.Second
)

// DefaultDir is where `postern dev` keeps its data.
func DefaultDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "postern", "dev"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the home directory: %w: name a folder with --data-dir, or use --memory", err)
	}
	return filepath.Join(home, ".local", "state", "postern", "dev"), nil
}

// Start locks the folder, then opens the broker on it.
func Start(_ context.Context, o Options) (*Broker, error) {
	if o.Partitions == 0 {
		o.Partitions = defaultPartitions
	}
	if o.Retention == 0 {
		o.Retention = defaultRetention
	}
	listener, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("the Kafka port: %w: choose another with --kafka-listen 127.0.0.1:PORT", err)
	}
	b := &Broker{stop: make(chan struct{}), done: make(chan struct{})}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.Ports(listener.Addr().(*net.TCPAddr).Port),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listener, nil }),
		kfake.AllowAutoTopicCreation(),
		kfake.DefaultNumPartitions(o.Partitions),
		kfake.BrokerConfigs(map[string]string{
			"log.retention.bytes": strconv.FormatInt(o.Retention, 10),
			"log.retention.ms":    strconv.FormatInt(retentionAge.Milliseconds(), 10),
			"log.segment.bytes":   strconv.FormatInt(max(o.Retention/8, 64<<10), 10),
		}),
	}
	if o.Dir != "" {
		if err := b.takeFolder(o.Dir); err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		opts = append(opts, kfake.DataDir(filepath.Join(o.Dir, "kafka")))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the embedded broker in %s: %w: --memory starts without the folder", o.Dir, err), listener.Close(), b.leaveFolder())
	}
	b.cluster = cluster
	go b.trim()
	return b, nil
}

// trim enforces the retention, which the stand-in does only when asked.
func (b *Broker) trim() {
	defer close(b.done)
	ticker := time.NewTicker(retentionCheck)
	defer ticker.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-ticker.C:
			b.cluster.ApplyRetention()
		}
	}
}

// takeFolder locks dir against a second broker, which would ruin the data.
func (b *Broker) takeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w: name another with --data-dir, or use --memory", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock the data folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := lock.Read(holder) // "" when it cannot be told
		return errors.Join(fmt.Errorf("the data folder %s is in use by another postern dev (process %s): stop that one, or use --data-dir DIR or --memory", dir, holder[:n]), lock.Close())
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return errors.Join(fmt.Errorf("lock the data folder: %w", err), lock.Close())
	}
	b.lock, b.marker = lock, filepath.Join(dir, "running")
	_, err = os.Stat(b.marker)
	b.Recovered = err == nil
	if err := os.WriteFile(b.marker, nil, 0o600); err != nil {
		return errors.Join(fmt.Errorf("mark the data folder: %w", err), b.leaveFolder())
	}
	return nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func (b *Broker) leaveFolder() error {
	if b.lock == nil {
		return nil
	}
	return b.lock.Close() // frees the lock
}

// Addr is the Kafka address.
func (b *Broker) Addr() string { return b.cluster.ListenAddrs()[0] }

// Close writes what is still in memory and ends the broker.
func (b *Broker) Close() error {
	close(b.stop)
	<-b.done
	b.cluster.Close()
	if b.lock == nil {
		return nil
	}
	return errors.Join(os.Remove(b.marker), b.leaveFolder())
}
