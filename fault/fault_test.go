package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestEveryReasonHasItsRowAndItsWordsForPeople(t *testing.T) {
	source, err := os.ReadFile("reasons.go")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[Reason]int{}
	for _, r := range Reasons {
		rows[r.Reason]++
		if r.Means == "" || r.Do == "" {
			t.Errorf("%s says nothing to people", r.Reason)
		}
	}
	for _, m := range regexp.MustCompile(`Reason = "([A-Z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		if rows[Reason(m[1])] != 1 {
			t.Errorf("%s has %d rows", m[1], rows[Reason(m[1])])
		}
	}
}

func TestErrorsOfContextsAndStrangersBecomeFaults(t *testing.T) {
	for err, want := range map[error]Reason{
		context.Canceled: Cancelled, fmt.Errorf("x: %w", context.DeadlineExceeded): DeadlineExceeded, errors.New("what"): Internal,
		fmt.Errorf("wrapped: %w", New(UnknownTopic, "no such topic")): UnknownTopic,
	} {
		if got := Of(err).Reason; got != want {
			t.Errorf("%v became %s, want %s", err, got, want)
		}
	}
	if Of(nil) != nil || KindOf(nil) != KindNone {
		t.Error("no error became one")
	}
	cause := errors.New("cause")
	if err := New(KafkaRefused, "doing: %w", cause); !errors.Is(err, cause) || !strings.Contains(err.Error(), "doing: cause") {
		t.Errorf("the cause is lost: %v", err)
	}
}
