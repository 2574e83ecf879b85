package brokertest

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// SetGroup sets a setting of a group, which need not be there yet.
func (c *Cluster) SetGroup(group, name, value string) {
	c.t.Helper()
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	of := kmsg.NewIncrementalAlterConfigsRequestResource()
	of.ResourceType, of.ResourceName = kmsg.ConfigResourceTypeGroupConfig, group
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Value = name, &value
	of.Configs = append(of.Configs, config)
	request.Resources = append(request.Resources, of)
	answer, err := request.RequestWith(context.Background(), c.Kgo())
	if err != nil || answer.Resources[0].ErrorCode != 0 {
		c.t.Fatalf("set %s of group %s: %v %v", name, group, err, answer)
	}
}
