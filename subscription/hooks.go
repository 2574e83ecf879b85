package subscription

import (
	"context"

	"github.com/postern-dev/postern/delivery"
)

// What the services here ask of delivery. Each is asked about a subscription as
// it is declared, whether or not this instance works on it.

// Letters reads dead letters.
type Letters interface {
	// ListLetters gives a page. A search that finds nothing for long answers an empty page with a token.
	ListLetters(ctx context.Context, of delivery.Options, q delivery.LettersQuery) (delivery.LettersPage, error)
}

// Jobs runs what goes on after it is answered. They are kept in Kafka: another
// instance goes on with those of one that stopped.
type Jobs interface {
	// StartJob answers when the job is kept; a dry run when it has ended.
	StartJob(ctx context.Context, of delivery.Options, r delivery.JobRequest) (delivery.Job, error)
	// ListJobs gives the subscription's jobs, the newest first.
	ListJobs(ctx context.Context, subscription string) ([]delivery.Job, error)
	// CancelJob is UNKNOWN_JOB for one that is not there, and leaves alone one that has ended.
	CancelJob(ctx context.Context, subscription, id string) (delivery.Job, error)
}

// Reporter tells what this instance knows of a subscription: at least the cause
// of its lag, also when it does not work on it.
type Reporter interface {
	Report(ctx context.Context, of delivery.Options) (delivery.Report, error)
}

// Steered does what people want a subscription to do. It is told at once and at
// each change, from one goroutine, and returns soon.
type Steered interface {
	Desire(subscription string, d delivery.Desired)
}
