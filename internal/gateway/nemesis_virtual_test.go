//go:build synctests

package gateway

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/history"
	"github.com/postern-dev/postern/internal/workload"
)

// errorCodes are the errors that requests of a kind fail with.
var errorCodes = map[faultKind][]*kerr.Error{
	produceRefused:  {kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.LeaderNotAvailable, kerr.UnknownTopicOrPartition, kerr.ThrottlingQuotaExceeded, kerr.TopicAuthorizationFailed, kerr.KafkaStorageError, kerr.FencedLeaderEpoch},
	produceTimedOut: {kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend},
	fetchFails:      {kerr.NotLeaderForPartition, kerr.UnknownServerError, kerr.OffsetOutOfRange, kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch, kerr.KafkaStorageError, kerr.TopicAuthorizationFailed},
	metadataFails:   {kerr.LeaderNotAvailable, kerr.UnknownTopicOrPartition},
	commitFails:     {kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.RequestTimedOut, kerr.UnknownServerError, kerr.CoordinatorNotAvailable, kerr.GroupAuthorizationFailed, kerr.RebalanceInProgress},
	fenced:          {kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.FencedInstanceID, kerr.CoordinatorNotAvailable},
}

// keys are the requests that a kind hits.
var keys = map[faultKind][]kmsg.Key{
	produceRefused:  {kmsg.Produce},
	produceTimedOut: {kmsg.Produce},
	fetchFails:      {kmsg.Fetch},
	metadataFails:   {kmsg.Metadata},
	commitFails:     {kmsg.OffsetCommit},
	fenced:          {kmsg.Heartbeat, kmsg.OffsetCommit, kmsg.JoinGroup, kmsg.SyncGroup},
}

// aftermath is how long after its end a fault may still undo acks: a commit that
// failed is tried again after a second, and a member that was sent away knows it
// at its next heartbeat.
const aftermath = 4 * time.Second

// mourning is how long a group may be without commits after a member died: its
// session, and a rebalance that it had begun to join.
const mourning = 20 * time.Second

// cause brings about fault number i of the plan.
func (s *simulation) cause(i int, f planned) {
	time.Sleep(f.at)
	name := fmt.Sprintf("%d: %s", i, f.what)
	note := func() { s.recorder.Record(history.Entry{Kind: history.Note, Value: name}) }
	// disturb opens a fault that may bring deliveries again, until end is called and its aftermath is over.
	disturb := func(instance string) (end func()) {
		s.recorder.Record(history.Entry{Kind: history.Fault, Value: name, Instance: instance})
		return func() {
			time.Sleep(aftermath)
			s.recorder.Record(history.Entry{Kind: history.Healed, Value: name})
		}
	}
	n := s.fleet.node(f.gateway)
	switch f.what {
	case produceRefused, produceTimedOut, metadataFails, fetchFails:
		note()
		s.fail(f)
		time.Sleep(f.lasts)
	case produceLate:
		note()
		s.produceLate(f)
	case commitFails, fenced:
		end := disturb("")
		handle := s.fail(f)
		time.Sleep(f.lasts)
		handle.Remove()
		if f.what == fenced { // the stand-in still waits for the member that was sent away
			time.Sleep(mourning)
		}
		end()
	case leadersMove:
		note()
		s.moveLeader(f)
	case coordinatorsMove:
		end := disturb("")
		s.cluster.Fake.RehashCoordinators()
		end()
	case kafkaReset:
		end := disturb("")
		n.hostNow(s.fleet).reset(func(c *hostConn) bool { return c.kafka })
		end()
	case clientsReset:
		end := disturb("") // receipts and webhooks' answers on their way are lost
		n.hostNow(s.fleet).reset(func(c *hostConn) bool { return !c.kafka })
		end()
	case cutOff, cutOneWay:
		s.cut(f, n, disturb)
	case killed:
		s.kill(f, n, name)
	case restarted:
		n.turn <- struct{}{}
		defer func() { <-n.turn }()
		note()
		if err := s.fleet.drain(n); err != nil {
			s.recorder.Record(history.Entry{Kind: history.Note, Value: fmt.Sprintf("%s: %v", name, err)})
		}
		s.restart(n)
	case joins:
		note()
		extra := s.fleet.add()
		time.Sleep(f.lasts)
		if err := s.fleet.drain(extra); err != nil {
			s.recorder.Record(history.Entry{Kind: history.Note, Value: fmt.Sprintf("%s: %v", name, err)})
		}
	}
}

func (s *simulation) fail(f planned) *kfake.FaultHandle {
	rule := kfake.Fault{Keys: keys[f.what], Err: errorCodes[f.what][f.code%len(errorCodes[f.what])], Count: f.count}
	if f.what == fetchFails {
		rule.Topic = s.topic
	}
	if f.what == fenced {
		rule.Group = simStream
		rule.TopLevel = f.code%2 == 0
		if rule.TopLevel {
			rule.Group = ""
		}
	}
	handle := s.cluster.Fake.Fault(rule)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handles = append(s.handles, handle)
	return handle
}

// produceLate holds some produce requests back before they are applied; all
// together for less than a transaction lives, because the stand-in, unlike Kafka
// since KIP-890, takes a record of a transaction that it has aborted meanwhile.
func (s *simulation) produceLate(f planned) {
	if slices.Contains(s.plan.routes, workload.Atomic) {
		return // a transaction may be aborted sooner, when another gateway takes its id
	}
	fake := s.cluster.Fake
	var left atomic.Int64
	left.Store(int64(f.count))
	fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		n := left.Add(-1)
		if n <= 0 {
			fake.DropControl()
		}
		if n >= 0 {
			fake.SleepControl(func() { time.Sleep(min(f.lasts, 5*time.Second/time.Duration(f.count))) })
		}
		return nil, nil, false
	})
}

// moveLeader gives one partition another leader. Alone, a broker keeps what it
// leads: a new epoch without a new leader is nothing that Kafka does.
func (s *simulation) moveLeader(f planned) {
	if s.plan.brokers < 2 {
		return
	}
	partition := int32(f.code) % s.plan.partitions
	to := (s.cluster.Fake.LeaderFor(s.topic, partition) + 1) % int32(s.plan.brokers)
	if err := s.cluster.Fake.MoveTopicPartition(s.topic, partition, to); err != nil {
		s.t.Errorf("partition %d does not move to broker %d: %v", partition, to, err)
	}
}

// cut separates a gateway from Kafka, not from its clients.
func (s *simulation) cut(f planned, n *node, disturb func(string) func()) {
	s.fleet.mu.Lock()
	h, instance := n.host, n.gateway.Instance()
	s.fleet.mu.Unlock()
	end := disturb(instance)
	h.freeze(fromKafka)
	if f.what == cutOff {
		h.freeze(toKafka)
	}
	time.Sleep(f.lasts)
	h.thaw()
	end()
}

// kill ends a gateway without a word, and starts another in its place after a while.
func (s *simulation) kill(f planned, n *node, name string) {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	s.recorder.Record(history.Entry{Kind: history.Fault, Value: name})
	s.fleet.kill(n)
	time.Sleep(time.Millisecond) // what had left it arrives, or never
	if s.plan.alone() {
		s.recorder.Record(history.Entry{Kind: history.Healed, Value: name})
	} else { // the others wait for it, and commit nothing meanwhile
		s.later.Go(func() {
			time.Sleep(mourning)
			s.recorder.Record(history.Entry{Kind: history.Healed, Value: name})
		})
	}
	time.Sleep(min(f.lasts, 3*time.Second))
	s.restart(n)
}

// restart starts a gateway at n unless another fault has done so.
func (s *simulation) restart(n *node) {
	s.fleet.mu.Lock()
	serving := n.serving
	s.fleet.mu.Unlock()
	if !serving {
		s.fleet.start(n)
	}
}
