package endpoint

import (
	"encoding/json"
	"time"

	"github.com/postern-dev/postern/event"
)

// Types of operational events. Others' subscriptions match them: a type is never renamed.
const (
	NoticeThrottled = "dev.postern.endpoint.throttled"
	NoticeOpened    = "dev.postern.endpoint.opened"
	NoticeRecovered = "dev.postern.endpoint.recovered"
	NoticeFailing   = "dev.postern.endpoint.failing" // 50, 70, 90 % of the way to being disabled
	NoticeDisabled  = "dev.postern.endpoint.disabled"
	NoticeEnabled   = "dev.postern.endpoint.enabled"
	NoticeConsent   = "dev.postern.endpoint.consent_refused"
	NoticeExhausted = "dev.postern.attempts.exhausted"
)

// Notice is one operational event.
type Notice struct {
	Type         string
	Subscription string
	Host         string
	Detail       string
	State        State
	Until        time.Time
	At           time.Time
	// Of an event that is out of attempts.
	Position  event.Position
	WebhookID string
	Attempts  int
}

// Event writes n as a CloudEvent. id names this occurrence.
func (n Notice) Event(instance, id string) event.Event {
	data := struct {
		Subscription string    `json:"subscription"`
		Host         string    `json:"host"`
		State        State     `json:"state,omitempty"`
		Until        time.Time `json:"until,omitzero"`
		Detail       string    `json:"detail,omitempty"`
		Topic        string    `json:"topic,omitempty"`
		Partition    *int32    `json:"partition,omitempty"`
		Offset       *int64    `json:"offset,omitempty"`
		WebhookID    string    `json:"webhook_id,omitempty"`
		Attempts     int       `json:"attempts,omitempty"`
		Instance     string    `json:"instance"`
	}{
		Subscription: n.Subscription, Host: n.Host, State: n.State, Until: n.Until, Detail: n.Detail,
		WebhookID: n.WebhookID, Attempts: n.Attempts, Instance: instance,
	}
	if n.Position.Topic != "" {
		data.Topic, data.Partition, data.Offset = n.Position.Topic, &n.Position.Partition, &n.Position.Offset
	}
	body, _ := json.Marshal(data) // no value of it can fail
	return event.Event{
		ID: id, Source: "/postern/" + instance, Type: n.Type, Subject: n.Subscription, Time: n.At.UTC(),
		ContentType: "application/json", Key: []byte(n.Subscription), Data: body, Partition: event.AnyPartition,
	}
}
