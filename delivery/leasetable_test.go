package delivery

import (
	"testing"

	"pgregory.net/rapid"
)

func TestLeasesAreFoundByTheirIdsAsInAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table leaseTable
		model := map[ID]*entry{}
		var ids []ID
		next := ID(0)
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			if len(ids) > 0 && rapid.Bool().Draw(t, "remove") {
				i := rapid.IntRange(0, len(ids)-1).Draw(t, "which")
				e := model[ids[i]]
				delete(model, ids[i])
				ids = append(ids[:i], ids[i+1:]...)
				table.remove(e)
			} else {
				next += ID(rapid.SampledFrom([]int{1, 1, 1, 63, 64, 128}).Draw(t, "step"))
				e := &entry{lease: Instance(7).id(uint64(next))}
				model[e.lease] = e
				ids = append(ids, e.lease)
				table.add(e)
			}
			if table.count != len(model) || len(table.all()) != len(model) {
				t.Fatalf("%d of %d leases", table.count, len(model))
			}
		}
		for id, e := range model {
			if table.get(id) != e {
				t.Fatalf("lease %d is not found", id)
			}
			if table.get(id+1<<40) != nil {
				t.Fatal("one is found that is not there")
			}
		}
	})
}
