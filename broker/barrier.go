package broker

import "github.com/twmb/franz-go/pkg/kgo"

// awaitPartitions waits until what the client has learned of its topics is in force.
// Without it a transaction whose topic the client has just met may be aborted though
// its commit is answered without an error: franz-go v1.22.2 produces what waited for
// the topic's partitions before it stores them (storePartitionsUpdate), and a commit
// that comes in between sees no partition that was written to and becomes an abort
// (EndTransaction). What purges topics runs between two such updates; this one
// purges none.
func awaitPartitions(client *kgo.Client) { client.PurgeTopicsFromProducing("\x00 no topic") }
