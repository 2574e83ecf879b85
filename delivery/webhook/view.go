package webhook

// View is how an endpoint is shown events.
type View string

// The views.
const (
	ViewRaw  View = "raw"  // the bytes that are in Kafka
	ViewJSON View = "json" // JSON, whatever the topic holds
)
