package subscription

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// State is what is kept of a subscription in Kafka: its specification and what
// people want it to do. It changes only by being replaced.
type State struct {
	// Spec as the API declared it. Of one declared in a file: as that file's gateway
	// had it, without secrets, for others to compare.
	Spec       Spec
	DeclaredIn posternv1.DeclaredIn
	// Generation counts the changes of Spec; Revision every change.
	Generation, Revision uint64
	Created, Updated     time.Time
	Desired              delivery.Desired
}

// stateFormat is the version of what is written. It grows with whatever an older
// gateway must not drop when it writes a subscription anew: such a gateway keeps
// what it cannot read as it is, visible and untouched.
const stateFormat = 1

// maxState bounds a record: 100 topics of a thousand partitions each, all sought,
// are some 900 KiB.
const maxState = 1000 << 10

// stored is State as its record has it.
type stored struct {
	Format       int             `json:"format"`
	DeclaredIn   string          `json:"declared_in"` // api or file
	Generation   uint64          `json:"generation"`
	Revision     uint64          `json:"revision"`
	Created      time.Time       `json:"created"`
	Updated      time.Time       `json:"updated"`
	Paused       bool            `json:"paused,omitempty"`
	SeekEpoch    uint64          `json:"seek_epoch,omitempty"`
	Seeks        []storedSeek    `json:"seeks,omitempty"`
	Subscription json.RawMessage `json:"subscription"` // protojson of postern.v1.Subscription, what was declared only
}

// storedSeek is the targets of one seek in one topic: of partition i the i-th
// offset, -1 where another seek, or none, has the last word.
type storedSeek struct {
	Epoch   uint64  `json:"epoch"`
	Topic   string  `json:"topic"`
	TopicID string  `json:"topic_id,omitempty"`
	Offsets []int64 `json:"offsets"`
}

// errNewerFormat is of a record that a newer Postern wrote.
var errNewerFormat = errors.New("it was written by a newer Postern")

// encode writes s; the same State always gives the same bytes.
func (s *State) encode() ([]byte, error) {
	m, err := protojson.Marshal(s.Spec.ToProto())
	if err != nil {
		return nil, fmt.Errorf("write subscription %s: %w", s.Spec.Name, err)
	}
	var compact bytes.Buffer // protojson varies its spaces on purpose
	if err := json.Compact(&compact, m); err != nil {
		return nil, fmt.Errorf("write subscription %s: %w", s.Spec.Name, err)
	}
	w := stored{
		Format: stateFormat, DeclaredIn: "api", Generation: s.Generation, Revision: s.Revision, Created: s.Created.UTC(), Updated: s.Updated.UTC(),
		Paused: s.Desired.Paused, SeekEpoch: s.Desired.SeekEpoch, Seeks: encodeSeeks(s.Desired.Seeks), Subscription: compact.Bytes(),
	}
	if s.DeclaredIn == posternv1.DeclaredIn_DECLARED_IN_FILE {
		w.DeclaredIn = "file"
	}
	b, err := json.Marshal(w)
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("subscription %s takes %d bytes, more than the %d that are kept: name fewer topics", s.Spec.Name, len(b), maxState)
	}
	return b, err
}

func encodeSeeks(seeks map[broker.TopicPartition]delivery.Seek) []storedSeek {
	type group struct {
		epoch uint64
		topic string
		id    [16]byte
	}
	groups := map[group][]int64{}
	for at, s := range seeks {
		g := group{s.Epoch, at.Topic, s.TopicID}
		for int(at.Partition) >= len(groups[g]) {
			groups[g] = append(groups[g], -1)
		}
		groups[g][at.Partition] = s.Offset
	}
	var all []storedSeek
	for g, offsets := range groups {
		w := storedSeek{Epoch: g.epoch, Topic: g.topic, Offsets: offsets}
		if g.id != [16]byte{} {
			w.TopicID = base64.RawURLEncoding.EncodeToString(g.id[:])
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b storedSeek) int {
		if a.Epoch != b.Epoch {
			return int(int64(a.Epoch) - int64(b.Epoch))
		}
		return slices.Compare([]string{a.Topic, a.TopicID}, []string{b.Topic, b.TopicID})
	})
	return all
}

// decodeState reads what encode wrote. A record of a newer format, or with a
// field that this build does not know, is errNewerFormat.
func decodeState(name string, value []byte) (*State, error) {
	if len(value) > 4*maxState {
		return nil, errors.New("it is larger than any that is written")
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	if head.Format > stateFormat {
		return nil, fmt.Errorf("%w (format %d)", errNewerFormat, head.Format)
	}
	var w stored
	strict := json.NewDecoder(bytes.NewReader(value))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&w); err != nil {
		return nil, fmt.Errorf("%w, or damaged (%w)", errNewerFormat, err)
	}
	m := &posternv1.Subscription{}
	if err := protojson.Unmarshal(w.Subscription, m); err != nil {
		return nil, fmt.Errorf("%w, or damaged (%w)", errNewerFormat, err)
	}
	spec, err := FromProto(m)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errNewerFormat, err)
	}
	if head.Format != stateFormat || spec.Name != name {
		return nil, errors.New("it is damaged: its name or format is not what it should be")
	}
	s := &State{
		Spec: spec, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_API, Generation: w.Generation, Revision: w.Revision, Created: w.Created, Updated: w.Updated,
		Desired: delivery.Desired{Paused: w.Paused, SeekEpoch: w.SeekEpoch},
	}
	if w.DeclaredIn == "file" {
		s.DeclaredIn = posternv1.DeclaredIn_DECLARED_IN_FILE
	}
	if s.Desired.Seeks, err = decodeSeeks(w.Seeks); err != nil {
		return nil, err
	}
	return s, nil
}

func decodeSeeks(all []storedSeek) (map[broker.TopicPartition]delivery.Seek, error) {
	var seeks map[broker.TopicPartition]delivery.Seek
	for _, w := range all {
		var id [16]byte
		if w.TopicID != "" {
			b, err := base64.RawURLEncoding.DecodeString(w.TopicID)
			if err != nil || len(b) != len(id) {
				return nil, errors.New("it is damaged: a topic id in it cannot be read")
			}
			id = [16]byte(b)
		}
		for p, offset := range w.Offsets {
			at := broker.TopicPartition{Topic: w.Topic, Partition: int32(p)}
			if offset < 0 || seeks[at].Epoch > w.Epoch {
				continue
			}
			if seeks == nil {
				seeks = map[broker.TopicPartition]delivery.Seek{}
			}
			seeks[at] = delivery.Seek{Epoch: w.Epoch, Offset: offset, TopicID: id}
		}
	}
	return seeks, nil
}

// etagOf names what a record says; two records that differ have two.
func etagOf(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:8])
}

// seek gives desired with targets in force from a further epoch on. Epochs go by
// the clock: a subscription that is deleted and made anew under the same group
// meets commits that say how far the old one's seeks were applied, and its own
// must be later than those.
func seek(desired delivery.Desired, now time.Time, targets map[broker.TopicPartition]delivery.Seek) delivery.Desired {
	desired.SeekEpoch = max(desired.SeekEpoch+1, uint64(max(0, now.UnixMilli())))
	seeks := maps.Clone(desired.Seeks)
	if seeks == nil {
		seeks = map[broker.TopicPartition]delivery.Seek{}
	}
	for at, s := range targets {
		s.Epoch = desired.SeekEpoch
		seeks[at] = s
	}
	desired.Seeks = seeks
	return desired
}
