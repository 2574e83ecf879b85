package prove

import (
	"maps"
	"slices"

	"github.com/postern-dev/postern/history"
)

// Promise is one of the product's, and whether it held.
type Promise struct {
	Text   string            `json:"promise"`
	Held   bool              `json:"held"`
	Broken []history.Anomaly `json:"broken,omitempty"`
}

// judged says which anomalies break which promise. Every anomaly breaks one.
var judged = []struct {
	text      string
	anomalies []string
}{
	{"an acknowledged publish is in Kafka, where the answer says", []string{history.LostWrite, history.WrongPosition}},
	{"a failed publish is not; an unknown one is called unknown", []string{history.AbortedRead}},
	{"nothing is stored twice without an unknown outcome", []string{history.DuplicateWrite}},
	{"an atomic request is there whole or not at all", []string{history.TornRequest}},
	{"a publisher's events of a key are stored in its order", []string{history.ConnectionOrder}},
	{"no caller waits beyond its deadline", []string{history.LateAnswer}},
	{"no event of a subscription is skipped, and each is settled in the end", []string{history.LostDelivery, history.SkippedOffset, history.Stuck, history.Phantom}},
	{"order per key holds, over retries, dead letters and restarts", []string{history.KeyOrder}},
	{"an ack that is called committed never comes undone", []string{history.CommittedAgain}},
	{"an ack that is called accepted comes undone only by a crash", []string{history.DuplicateDelivery, history.LentTwice, history.AttemptsWentBack}},
	{"what is rejected is in the dead letters", []string{history.MissingDeadLetter}},
	{"the publisher's trace reaches the subscriber", []string{history.MissingTrace}},
}

func promises(r history.Report) []Promise {
	all := make([]Promise, len(judged))
	for i, j := range judged {
		all[i] = Promise{Text: j.text, Held: true}
		for _, a := range r.Anomalies {
			if slices.Contains(j.anomalies, a.Kind) {
				all[i].Held = false
				all[i].Broken = append(all[i].Broken, a)
			}
		}
	}
	return all
}

func sortedKeys(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }
