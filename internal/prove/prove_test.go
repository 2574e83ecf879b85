package prove

import (
	"slices"
	"testing"

	"github.com/postern-dev/postern/history"
)

func TestEveryAnomalyBreaksAPromise(t *testing.T) {
	for _, kind := range history.Anomalies {
		result := Result{Promises: promises(history.Report{Anomalies: []history.Anomaly{{Kind: kind}}})}
		broken := slices.DeleteFunc(slices.Clone(result.Promises), func(p Promise) bool { return p.Held })
		if len(broken) != 1 || result.OK() {
			t.Errorf("%q breaks %d promises", kind, len(broken))
		}
	}
	if held := (Result{Promises: promises(history.Report{})}); !held.OK() {
		t.Error("without an anomaly something is broken")
	}
}
