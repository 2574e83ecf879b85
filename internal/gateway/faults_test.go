package gateway

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
)

// holdProduce makes the stand-in keep produce requests until release is closed.
func holdProduce(c *brokertest.Cluster, release <-chan struct{}) {
	c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
}
