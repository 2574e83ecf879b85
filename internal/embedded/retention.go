package embedded

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The stand-in's own retention knows a limit for each partition only, forgets
// that compacted topics have none, and empties partitions. So it is switched
// off, and the cap on all topics together is enforced here, in four steps: ask
// for the size of every partition; find the level that the largest must sink
// to so that the sum fits; move each one's start forward until it is there;
// and leave the last record always, so that offsets never begin again.

// trimEvery is how often the cap is enforced. A producer at full speed writes
// some 200 MiB in a second, by which the cap may be passed for so long; a look
// costs one small request.
const trimEvery = time.Second

const (
	// A segment is deleted as a whole, so each trimmed partition may keep up to
	// one of them more than it counts: 1/64 of the cap, and an eighth of the cap
	// stays free for that.
	segmentsInRetention = 64
	slack               = 8
	minSegment          = 64 << 10
	// keepOffsets is how long the position of a group without members is kept. A
	// developer who comes back after months finds the subscription where it stood.
	keepOffsets = 365 * 24 * time.Hour
)

func brokerConfigs(retention int64) map[string]string {
	return map[string]string{
		"log.retention.bytes":        "-1",
		"log.retention.ms":           "-1",
		"log.segment.bytes":          strconv.FormatInt(max(retention/segmentsInRetention, minSegment), 10),
		"offsets.retention.minutes":  strconv.Itoa(int(keepOffsets.Minutes())),
		"default.replication.factor": "1",
		// What order QUEUE needs (broker.MinShareDeliveries); the stand-in takes it from the broker alone.
		"group.share.delivery.count.limit": "10",
	}
}

// trim enforces the cap until ctx ends.
func (b *Broker) trim(ctx context.Context, retention int64) {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := b.trimTo(ctx, retention-retention/slack); err != nil && ctx.Err() == nil {
			b.log.log.Warn("the embedded broker's retention could not be enforced", "error", err)
		}
	}
}

// partition is one partition and what it holds.
type partition struct {
	topic string
	id    int32
	bytes int64
	limit int64 // its topic's own; < 0: none
}

func (b *Broker) trimTo(ctx context.Context, most int64) error {
	all, err := b.sizes(ctx)
	if err != nil {
		return err
	}
	var counted []partition
	for _, p := range all {
		info := b.cluster.TopicInfo(p.topic)
		if info == nil { // deleted meanwhile
			continue
		}
		own, keepsAll := ownLimit(info.Configs)
		if keepsAll {
			continue
		}
		p.limit = own
		counted = append(counted, p)
	}
	highest := level(counted, most)
	for _, p := range counted {
		to := highest
		if p.limit >= 0 {
			to = min(to, p.limit)
		}
		if p.bytes > to {
			b.shrink(p, to)
		}
	}
	return nil
}

// ownLimit reads a topic's settings: its own retention.bytes (-1 without one),
// or that it keeps everything.
func ownLimit(configs map[string]*string) (limit int64, keepsAll bool) {
	if policy := configs["cleanup.policy"]; policy != nil && strings.Contains(*policy, "compact") {
		return 0, true
	}
	own := configs["retention.bytes"]
	if own == nil {
		return -1, false
	}
	n, err := strconv.ParseInt(*own, 10, 64)
	return n, err == nil && n < 0
}

// level gives the size that no partition may pass so that all of them together
// fit into most.
func level(partitions []partition, most int64) int64 {
	sizes := make([]int64, len(partitions))
	for i, p := range partitions {
		sizes[i] = p.bytes
		if p.limit >= 0 {
			sizes[i] = min(sizes[i], p.limit)
		}
	}
	slices.SortFunc(sizes, func(a, b int64) int { return cmp.Compare(a, b) })
	for i, size := range sizes {
		if share := most / int64(len(sizes)-i); size > share {
			return share
		}
		most -= size
	}
	return 1<<63 - 1
}

// shrinkSteps bounds the guesses at where a partition's wanted size begins. Each
// takes records for equally large; three suffice when they nearly are, and the
// next look goes on.
const shrinkSteps = 8

// shrink moves p's start forward until it holds at most to bytes or its last record only.
func (b *Broker) shrink(p partition, to int64) {
	for range shrinkSteps {
		now := b.cluster.PartitionInfo(p.topic, p.id)
		if now == nil || now.NumBytes <= to {
			return
		}
		// Not past an open transaction, and not the last record.
		last := min(now.LastStableOffset, now.HighWatermark) - 1
		start := now.LogStartOffset + max(1, int64(float64(last-now.LogStartOffset)*(1-float64(to)/float64(now.NumBytes))))
		if start = min(start, last); start <= now.LogStartOffset {
			return
		}
		if b.cluster.DeleteRecords(p.topic, p.id, start) != nil {
			return // deleted meanwhile; the next look sees what is there
		}
	}
}

const (
	sizesTimeout = 5 * time.Second
	maxSizes     = 16 << 20 // of the answer; some 300,000 partitions
)

// sizes asks for every partition's bytes over the broker's own port, because
// the stand-in lists its topics nowhere else.
func (b *Broker) sizes(ctx context.Context) ([]partition, error) {
	ctx, cancel := context.WithTimeout(ctx, sizesTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()                                                              //nolint:errcheck // the answer was read
	unblock := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection unblocks as well
	defer unblock()
	request := kmsg.NewPtrDescribeLogDirsRequest()
	request.Version = 1 // the last one without tags in its header
	if _, err := conn.Write(kmsg.NewRequestFormatter(kmsg.FormatterClientID("postern-retention")).AppendRequest(nil, request, 0)); err != nil {
		return nil, err
	}
	var header [8]byte // length, correlation id
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return nil, err
	}
	length := int64(binary.BigEndian.Uint32(header[:4])) - 4
	if length < 0 || length > maxSizes {
		return nil, fmt.Errorf("the answer has %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	answer := request.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	if err := answer.ReadFrom(body); err != nil {
		return nil, err
	}
	var all []partition
	for _, dir := range answer.Dirs {
		for _, t := range dir.Topics {
			for _, p := range t.Partitions {
				all = append(all, partition{topic: t.Topic, id: p.Partition, bytes: p.Size, limit: -1})
			}
		}
	}
	return all, nil
}
