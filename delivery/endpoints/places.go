package endpoints

import (
	"cmp"
	"slices"

	"github.com/postern-dev/postern/event"
)

// sortPlaces puts places into Kafka's order.
func sortPlaces(places []event.Position) {
	slices.SortFunc(places, func(a, b event.Position) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
}
