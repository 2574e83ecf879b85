package subscription

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/delivery"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func fullState(t testing.TB) *State {
	t.Helper()
	spec, err := FromProto(everything())
	if err != nil {
		t.Fatal(err)
	}
	at := func(topic string, p int32) broker.TopicPartition {
		return broker.TopicPartition{Topic: topic, Partition: p}
	}
	desired := seek(delivery.Desired{Paused: true}, time.UnixMilli(1), map[broker.TopicPartition]delivery.Seek{
		at("orders", 0): {Offset: 5, TopicID: [16]byte{1}}, at("orders", 3): {Offset: 0, TopicID: [16]byte{1}}, at("returns", 1): {Offset: 7},
	})
	desired = seek(desired, time.UnixMilli(1), map[broker.TopicPartition]delivery.Seek{at("orders", 0): {Offset: 9, TopicID: [16]byte{2}}})
	return &State{
		Spec: spec, DeclaredIn: posternv1.DeclaredIn_DECLARED_IN_API, Generation: 3, Revision: 7,
		Created: time.Unix(1, 0).UTC(), Updated: time.Unix(2, 0).UTC(), Desired: desired,
	}
}

func TestStateSurvivesItsRecord(t *testing.T) {
	s := fullState(t)
	b, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeState("mail", b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, s) {
		t.Errorf("got  %+v\nwant %+v", back, s)
	}
	again, err := back.encode()
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%v\n%s\n%s", err, again, b)
	}
	if got := back.Desired.Seeks[broker.TopicPartition{Topic: "orders", Partition: 3}]; got.Epoch != 1 || got.Offset != 0 {
		t.Errorf("the first seek's target of a partition that the second does not name is %+v", got)
	}
}

func TestStateOfANewerPosternIsKnownAsSuch(t *testing.T) {
	b, err := fullState(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ from, to string }{
		{`"format":1`, `"format":2`},
		{`"format":1`, `"format":1,"lanes":4`},
		{`"lease":"5s"`, `"lease":"5s","laneCount":4`},
		{`"order":"ORDER_PARTITION"`, `"order":"ORDER_OF_LATER"`},
	} {
		text := strings.Replace(string(b), change.from, change.to, 1)
		if text == string(b) {
			t.Fatalf("%s is not in %s", change.from, b)
		}
		if _, err := decodeState("mail", []byte(text)); !errors.Is(err, errNewerFormat) {
			t.Errorf("%s: %v", change.to, err)
		}
	}
	for _, damaged := range []string{"", "{", "[]", `{"format":0}`, strings.Replace(string(b), `"name":"mail"`, `"name":"other"`, 1)} {
		if s, err := decodeState("mail", []byte(damaged)); err == nil {
			t.Errorf("%q is read as %+v", damaged, s)
		}
	}
}

func FuzzState(f *testing.F) {
	b, err := fullState(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1,"subscription":{"name":"mail"},"seeks":[{"offsets":[1,-1]}]}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := decodeState("mail", value)
		if err != nil {
			return
		}
		written, err := s.encode()
		if err != nil {
			return
		}
		if _, err := decodeState("mail", written); err != nil {
			t.Errorf("what was read cannot be written and read: %v\n%s\n%s", err, value, written)
		}
	})
}

func TestSeeksOfASubscriptionMadeAnewAreLaterThanThoseOfTheOneBefore(t *testing.T) {
	now := time.Now()
	old := seek(seek(delivery.Desired{}, now, nil), now, nil)
	anew := seek(delivery.Desired{}, now.Add(time.Second), nil)
	if old.SeekEpoch <= uint64(now.UnixMilli()) || anew.SeekEpoch <= old.SeekEpoch {
		t.Errorf("epochs %d and then %d", old.SeekEpoch, anew.SeekEpoch)
	}
}
