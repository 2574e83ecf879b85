package broker

import (
	"testing"
)

// The stand-in cannot be made to forget a member in the middle of a held-back
// commit on purpose; what is decided then is a function of ids.
func TestACommitOfAForgottenMemberIsRefused(t *testing.T) {
	a, b := TopicPartition{"t", 0}, TopicPartition{"t", 1}
	consumer := &Consumer{members: map[TopicPartition]string{a: "first", b: "second"}}
	if err := consumer.refuseStale("second", map[TopicPartition]Committing{a: {}, b: {}}); err == nil {
		t.Error("a commit of what an earlier member had was let through")
	}
	if err := consumer.refuseStale("second", map[TopicPartition]Committing{b: {}, {"park", 0}: {}}); err != nil {
		t.Errorf("a commit of our own: %v", err)
	}
	consumer.forget([]TopicPartition{a})
	if err := consumer.refuseStale("second", map[TopicPartition]Committing{a: {}}); err != nil {
		t.Errorf("a commit of what is not known: %v", err)
	}
}

func TestAPartitionIsKeptAcrossANewMemberIDOnlyIfNobodyCommittedMeanwhile(t *testing.T) {
	same, moved, never := TopicPartition{"t", 0}, TopicPartition{"t", 1}, TopicPartition{"t", 2}
	consumer := &Consumer{
		members: map[TopicPartition]string{same: "first", moved: "first", never: "first"},
		last:    map[TopicPartition]Committing{same: {7, "m"}, moved: {7, "m"}, never: {0, ""}},
	}
	stale := consumer.ofOthers("second")
	if len(stale) != 3 {
		t.Fatalf("of others: %v", stale)
	}
	changed := consumer.adopt("second", stale, map[TopicPartition]Committing{same: {7, "m"}, moved: {7, "another's"}})
	if len(changed) != 1 || changed[0] != moved {
		t.Errorf("changed: %v", changed)
	}
	if left := consumer.ofOthers("second"); len(left) != 1 || left[0] != moved {
		t.Errorf("still of others: %v", left)
	}
}
