package gateway

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
)

// lock sets how long a share group's events are locked, in milliseconds.
func lock(t *testing.T, cluster *brokertest.Cluster, group, ms string) {
	t.Helper()
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	of := kmsg.NewIncrementalAlterConfigsRequestResource()
	of.ResourceType, of.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Value = "share.record.lock.duration.ms", &ms
	of.Configs = append(of.Configs, config)
	request.Resources = append(request.Resources, of)
	answer, err := request.RequestWith(t.Context(), cluster.Kgo())
	if err != nil || answer.Resources[0].ErrorCode != 0 {
		t.Fatalf("set the lock: %v %v", err, answer)
	}
}
