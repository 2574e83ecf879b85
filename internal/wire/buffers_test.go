package wire

import (
	"testing"
)

func TestABufferHasTheSizeThatIsAskedFor(t *testing.T) {
	var p Buffers
	for _, n := range []int{0, 1, 255, 256, 257, 1 << 10, 100_000, 1<<24 - 1, 1 << 24, 1<<24 + 1} {
		for range 3 { // made, and used again
			b := p.Get(n)
			if len(*b) != n {
				t.Errorf("%d bytes are asked for, %d given", n, len(*b))
			}
			if n <= 1<<24 && cap(*b) >= 2*max(n, 1<<minTier) {
				t.Errorf("%d bytes are asked for, from %d", n, cap(*b))
			}
			p.Put(b)
		}
	}
}

func TestABufferOfOthersIsNotKept(t *testing.T) {
	var p Buffers
	for _, size := range []int{0, 10, 300, 1 << 25} {
		b := make([]byte, size)
		p.Put(&b)
	}
	for _, n := range []int{1, 300, 1 << 24} {
		if b := p.Get(n); cap(*b) < n {
			t.Errorf("%d bytes are asked for, %d given", n, cap(*b))
		}
	}
}

func TestABufferIsUsedAgain(t *testing.T) {
	var p Buffers
	if n := testing.AllocsPerRun(1000, func() { p.Put(p.Get(100_000)) }); n > 0.1 {
		t.Errorf("%v allocations", n)
	}
}
