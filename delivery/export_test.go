package delivery

import (
	"time"

	"github.com/postern-dev/postern/event"
)

// SetTimes makes a test's jobs quicker to write progress and to be taken over.
func (j *Jobs) SetTimes(save, beat, stale time.Duration) {
	j.times = jobTimes{save: save, beat: beat, stale: stale, retry: time.Second}
}

// Dead writes r as the dead letter it would be.
func Dead(topic string, partition int32, r *event.Record, subscription, reason, detail string) *event.Record {
	d := deadLetter(topic, r, letter{reason: reason, detail: detail, attempts: 3, last: time.Now(), subscription: subscription})
	d.Partition = partition
	return d
}
