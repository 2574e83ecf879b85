package delivery

import (
	"errors"
	"testing"
	"time"

	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
)

func TestTheCauseOfLagIsTheOneThatStopsMost(t *testing.T) {
	now := time.Now()
	denied := fault.New(fault.KafkaNotAuthorized, "no")
	away := fault.New(fault.BrokerUnavailable, "away")
	blocked := &BlockedKey{Key: []byte("k"), Position: event.Position{Topic: "t", Offset: 7}, Attempts: 3, Error: "500", Waiting: 12}
	working := facts{backlog: 10, partitions: 1, consumers: 1, window: 10, room: 10}
	with := func(change func(*facts)) facts {
		f := working
		change(&f)
		return f
	}
	for name, c := range map[string]struct {
		facts facts
		want  CauseKind
	}{
		"nothing to do":                 {with(func(f *facts) { f.backlog = 0 }), CauseNone},
		"on its way":                    {working, CauseNone},
		"paused, whatever else":         {with(func(f *facts) { f.paused, f.readFailing, f.consumers = true, away, 0 }), CausePaused},
		"not allowed to read":           {with(func(f *facts) { f.readFailing = denied }), CauseNotAuthorized},
		"not allowed to commit":         {with(func(f *facts) { f.readFailing, f.commitFailing = away, denied }), CauseNotAuthorized},
		"not allowed to join":           {facts{openFailing: denied}, CauseNotAuthorized},
		"position lost":                 {with(func(f *facts) { f.openFailing = fault.New(fault.PositionLost, "gone") }), CausePositionLost},
		"newer metadata":                {with(func(f *facts) { f.newer = "t[0]" }), CauseNewerFormat},
		"broker away":                   {with(func(f *facts) { f.readFailing = away }), CauseBrokerUnavailable},
		"broker away while preparing":   {with(func(f *facts) { f.prepareFailing = errors.New("x") }), CauseBrokerUnavailable},
		"cannot put aside":              {with(func(f *facts) { f.moveFailing = away }), CauseBrokerUnavailable},
		"dead letters fail":             {with(func(f *facts) { f.letterFailing, f.blocked = away, blocked }), CauseDeadLetterFailing},
		"endpoint disabled, no backlog": {with(func(f *facts) { f.backlog, f.carrier = 0, &Cause{Kind: CauseEndpointDisabled} }), CauseEndpointDisabled},
		"endpoint throttled":            {with(func(f *facts) { f.carrier = &Cause{Kind: CauseEndpointThrottled} }), CauseEndpointThrottled},
		"endpoint open":                 {with(func(f *facts) { f.carrier, f.blocked = &Cause{Kind: CauseEndpointOpen}, blocked }), CauseEndpointOpen},
		"endpoint open, no backlog":     {with(func(f *facts) { f.backlog, f.carrier = 0, &Cause{Kind: CauseEndpointOpen} }), CauseNone},
		"rate limited":                  {with(func(f *facts) { f.carrier = &Cause{Kind: CauseRateLimited} }), CauseRateLimited},
		"nobody there":                  {with(func(f *facts) { f.consumers = 0 }), CauseNoConsumer},
		"no partition yet":              {with(func(f *facts) { f.partitions = 0 }), CauseRebalancing},
		"slow handlers, full windows":   {with(func(f *facts) { f.ready, f.room, f.lent, f.oldest = 5, 0, 10, time.Minute }), CauseHandlerSlow},
		"windows too small":             {with(func(f *facts) { f.ready, f.room, f.lent, f.oldest = 5, 0, 10, time.Millisecond }), CauseWindowFull},
		"metadata full":                 {with(func(f *facts) { f.narrow, f.ready, f.blocked = "t[0]", 5, blocked }), CauseMetadataFull},
		"blocked key":                   {with(func(f *facts) { f.blocked, f.keys = blocked, 2 }), CauseBlockedKey},
		"tracker full":                  {with(func(f *facts) { f.full = "t[0]" }), CauseTrackerFull},
		"filter fails":                  {with(func(f *facts) { f.filter = &lastError{"no field", 3, now} }), CauseFilterError},
		"filter failed long ago":        {with(func(f *facts) { f.filter = &lastError{"no field", 3, now.Add(-time.Hour)} }), CauseNone},
		"undecodable":                   {with(func(f *facts) { f.undecoded = &lastError{"no schema", 3, now} }), CauseUndecodable},
		"retrying":                      {with(func(f *facts) { f.retrying = 3 }), CauseRetrying},
		"handlers at work":              {with(func(f *facts) { f.lent, f.room = 3, 7 }), CauseHandlerSlow},
		"retention passed, no backlog":  {with(func(f *facts) { f.backlog, f.missed = 0, &gap{"t[0]", 5, 9, now} }), CauseRetentionPassed},
	} {
		got := cause(c.facts, now)
		if got.Kind != c.want {
			t.Errorf("%s: the cause is %d (%s), want %d", name, got.Kind, got.Summary, c.want)
		}
	}
	c := cause(with(func(f *facts) { f.blocked, f.keys = blocked, 2 }), now)
	if want := `Key "k" is blocked by t[0]@7, which failed 3 times (500); 12 events are known to wait behind it.`; c.Summary != want || c.Blocked != blocked || c.Figures["blocked_keys"] != "2" {
		t.Errorf("told as %q with %v", c.Summary, c.Figures)
	}
}
