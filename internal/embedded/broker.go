// Package embedded owns the broker inside `postern dev`: an in-process stand-in
// for Kafka (kfake) on a real Kafka port, its data on disk. It proves nothing
// about durability or failover: there is one copy, on one disk.
//
// What the stand-in leaves to its host is done here: one process at a time on
// a folder (folder.go), an end in order so that everything is written, an end at
// once when the disk fails (disk.go), and a cap on what is kept (retention.go).
// Wiring, and what is said to people, is `postern dev`'s.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Options of the embedded broker.
type Options struct {
	// Dir keeps the data; "" keeps it in memory.
	Dir string
	// Address to listen on, host:port; port 0 takes any. Default 127.0.0.1:19092.
	// Kafka's clients are sent back to this address, so it names one they can reach.
	Address string
	// Partitions of a topic created on first use. Default 6.
	Partitions int32
	// Retention caps the bytes of all topics together, on disk or in memory: the
	// oldest records of the largest partitions go first. Default 256 MiB, because
	// opening reads all of it. Compacted topics and those with retention.bytes=-1
	// keep everything. There is no age limit: the stand-in's empties a partition,
	// whose offsets then begin at 0 again after a restart.
	Retention int64
	// Logger takes what the stand-in warns of. nil discards it.
	Logger *slog.Logger
}

// Defaults of Options.
const (
	DefaultAddress    = "127.0.0.1:19092"
	DefaultPartitions = 6
	DefaultRetention  = 256 << 20
)

// MinRetention leaves room for the largest record batch beside others.
const MinRetention = 2 << 20

func (o Options) withDefaults() Options {
	if o.Address == "" {
		o.Address = DefaultAddress
	}
	if o.Partitions == 0 {
		o.Partitions = DefaultPartitions
	}
	if o.Retention == 0 {
		o.Retention = DefaultRetention
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return fmt.Errorf("the Kafka address %q is not host:port: give one such as --kafka-listen %s", o.Address, DefaultAddress)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("the Kafka address %q is none that a client can be sent back to: name one, such as --kafka-listen %s", o.Address, DefaultAddress)
	}
	if o.Partitions < 0 || o.Retention < MinRetention {
		return fmt.Errorf("the embedded broker needs at least 1 partition for each topic and %d bytes of retention", MinRetention)
	}
	return nil
}

// Broker is a running stand-in.
type Broker struct {
	// Recovered tells that the last run did not end in order: what was
	// acknowledged is there, but settings and positions of share groups, and
	// what the operating system had not written at a power cut, are not.
	Recovered bool

	cluster *kfake.Cluster
	line    *line
	addr    string
	folder  *folder // nil in memory
	log     *faults
	stop    context.CancelFunc
	done    chan struct{}
	close   func() error
}

// Start locks the folder, then opens the broker on it. The broker runs until Close.
func Start(ctx context.Context, o Options) (*Broker, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	b := &Broker{log: &faults{log: o.Logger, failed: make(chan struct{})}, done: make(chan struct{})}
	b.close = sync.OnceValue(b.end)
	// The folder first: a second `postern dev` with the same words is told of the
	// first one, not of a port.
	if o.Dir != "" {
		var err error
		if b.folder, err = takeFolder(o.Dir); err != nil {
			return nil, err
		}
		b.Recovered = b.folder.recovered
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.Address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the Kafka port: %w: free it, or choose another with --kafka-listen 127.0.0.1:PORT (port 0 takes any)", err), b.folder.giveBack())
	}
	b.addr = listener.Addr().String()
	b.line = &line{Listener: listener, conns: map[*lineConn]struct{}{}}
	b.log.cut = b.line.cut
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return b.line, nil }),
		kfake.DefaultNumPartitions(int(o.Partitions)),
		kfake.BrokerConfigs(brokerConfigs(o.Retention)),
		kfake.WithLogger(b.log),
	}
	if o.Dir != "" {
		data := filepath.Join(o.Dir, "kafka")
		if err := cutTorn(data); err != nil {
			return nil, errors.Join(err, listener.Close(), b.folder.giveBack())
		}
		opts = append(opts, kfake.DataDir(data))
	}
	if b.cluster, err = kfake.NewCluster(opts...); err != nil {
		return nil, errors.Join(fmt.Errorf("open the embedded broker in %s: %w: --memory starts without the folder, another --data-dir with an empty one", o.Dir, err),
			ignoreClosed(listener.Close()), b.folder.giveBack())
	}
	b.cluster.ControlKey(int16(kmsg.Metadata), b.createTopics)
	trimming, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	go func() {
		defer close(b.done)
		b.trim(trimming, o.Retention)
	}()
	return b, nil
}

// legalTopic is Kafka's rule on names, which the stand-in does not check.
var legalTopic = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// createTopics creates the topics that a client names for the first time and
// wants created, before the stand-in answers. Its own way (AllowAutoTopicCreation)
// does not write the new topic down before Close: after a kill the topic would
// be gone, with everything that was acknowledged in it.
func (b *Broker) createTopics(request kmsg.Request) (kmsg.Response, error, bool) {
	metadata, ok := request.(*kmsg.MetadataRequest)
	if !ok || !metadata.AllowAutoTopicCreation {
		return nil, nil, false
	}
	for _, t := range metadata.Topics {
		if t.Topic == nil || *t.Topic == "." || *t.Topic == ".." || !legalTopic.MatchString(*t.Topic) || b.cluster.TopicInfo(*t.Topic) != nil {
			continue
		}
		if err := b.cluster.CreateTopic(*t.Topic, 0, nil); err != nil { // the client is told UNKNOWN_TOPIC_OR_PARTITION
			b.log.log.Warn("the embedded broker could not create a topic", "topic", *t.Topic, "error", err)
		}
	}
	return nil, nil, false
}

// Addr is the Kafka address, as clients are told it.
func (b *Broker) Addr() string { return b.addr }

// Failed is closed when the disk has failed. The broker answers nobody any more;
// what is left is to Close it, which says what went wrong.
func (b *Broker) Failed() <-chan struct{} { return b.log.failed }

// Close ends the broker after writing what is only in memory, then frees the
// folder. It ends once; a second call gives the first one's answer.
func (b *Broker) Close() error { return b.close() }

func (b *Broker) end() error {
	b.stop()
	<-b.done
	if err := b.log.failure(); err != nil {
		// The stand-in is left as it is: closing it in order would write down what
		// it takes for stored. The marker stays.
		return errors.Join(fmt.Errorf("the embedded broker has ended because its disk failed: %w: what was acknowledged is kept; make room or mend the disk, then start again", err), b.folder.giveBack())
	}
	b.log.keep()
	b.cluster.Close()
	// Writing that failed was only logged by the stand-in. The marker then stays,
	// so that the next start says that this run did not end in order.
	if err := b.log.kept(); err != nil {
		return errors.Join(fmt.Errorf("the embedded broker could not write everything: %w", err), b.folder.giveBack())
	}
	return b.folder.leave()
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// faults is the stand-in's logger: it passes warnings on, acts on those of the
// disk, and can keep errors, because its Close returns none.
type faults struct {
	log     *slog.Logger
	cut     func()        // ends all answers
	failed  chan struct{} // closed with the first warning of the disk
	mu      sync.Mutex
	keeping bool
	errs    []error
	disk    error
}

func (f *faults) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.disk
}

func (f *faults) keep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keeping = true
}

func (f *faults) kept() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.errs...)
}

// Logf is kfake.Logger's.
func (f *faults) Logf(level kfake.LogLevel, format string, args ...any) {
	if level > kfake.LogLevelWarn { // its info and debug print every request
		return
	}
	text := fmt.Sprintf(format, args...)
	f.mu.Lock()
	if f.keeping && level == kfake.LogLevelError {
		f.errs = append(f.errs, errors.New(text))
	}
	first := f.disk == nil && !f.keeping && isUnwritten(text)
	if first {
		f.disk = errors.New(text)
	}
	f.mu.Unlock()
	if first {
		f.cut() // who calls has not answered yet
		close(f.failed)
	}
	f.log.Warn("embedded broker: " + text)
}
