package wire

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// Buffers is a pool of buffers for gRPC whose content is anything: grpc-go fills what it
// takes, and its own pool for others to use clears each whole buffer before it gives it,
// which was 8 % of a publish of a hundred events.
type Buffers struct {
	tiers [maxTier - minTier + 1]sync.Pool // of buffers of 1 << (minTier + i) bytes
}

// A buffer has the next power of two of what is asked for, from 256 bytes to 16 MiB. A
// larger one is made for its use.
const (
	minTier = 8
	maxTier = 24
)

var _ mem.BufferPool = (*Buffers)(nil)

// Get gives a buffer of n bytes.
func (p *Buffers) Get(n int) *[]byte {
	tier := tierOf(n)
	if tier > maxTier {
		return new(make([]byte, n))
	}
	b, ok := p.tiers[tier-minTier].Get().(*[]byte)
	if !ok {
		b = new(make([]byte, 1<<tier))
	}
	*b = (*b)[:n]
	return b
}

// Put takes a buffer back. One that Get did not make is left to the collector.
func (p *Buffers) Put(b *[]byte) {
	if tier := tierOf(cap(*b)); tier <= maxTier && cap(*b) == 1<<tier {
		p.tiers[tier-minTier].Put(b)
	}
}

func tierOf(n int) int { return max(minTier, bits.Len(uint(max(n, 1)-1))) }
