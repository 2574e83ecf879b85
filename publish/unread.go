package publish

import (
	"time"

	"google.golang.org/grpc"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func unread(waited time.Duration) error {
	return fault.New(fault.SlowConsumer, "the answers were not read for %v: read them while you send", waited.Round(time.Second))
}

// answers is a stream's way out, with its client watched.
type answers struct {
	grpc.BidiStreamingServer[posternv1.PublishStreamRequest, posternv1.PublishStreamResponse]
	reading wire.Reading
}

func (a *answers) Send(m *posternv1.PublishStreamResponse) error {
	return a.reading.Write(func() error { return a.BidiStreamingServer.Send(m) })
}
