package delivery

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMetadataComesBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProgress(t)
		text := p.encode()
		if len(text) > metadataMaxText {
			t.Skip("more than the tracker would ever let stand")
		}
		got, err := decodeMetadata(text, p.topicID, p.base)
		if err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, want %+v", got, p)
		}
	})
}

// drawProgress draws what a tracker may have: disjoint settled ranges above
// the base that do not touch, and attempts between them.
func drawProgress(t *rapid.T) progress {
	p := progress{topicID: [16]byte{1, 2, 3}, base: rapid.Int64Range(0, 1<<40).Draw(t, "base"), epoch: uint64(rapid.IntRange(0, 9).Draw(t, "epoch"))}
	at := p.base
	for range rapid.IntRange(0, 200).Draw(t, "steps") {
		gap := rapid.Int64Range(1, 40).Draw(t, "gap")
		for o := at; o < at+gap; o++ {
			if n := rapid.IntRange(0, 4).Draw(t, "attempts"); n > 0 {
				p.attempts = append(p.attempts, attempts{o, n})
			}
		}
		at += gap
		length := rapid.Int64Range(1, 300).Draw(t, "length")
		p.settled = append(p.settled, span{at, at + length})
		at += length
	}
	return p
}

func TestMetadataOfSomebodyElseIsToldFromOursAndFromANewerVersion(t *testing.T) {
	id, base := [16]byte{7}, int64(10)
	good := (&progress{topicID: id, base: base, settled: []span{{12, 14}}}).encode()
	for _, c := range []struct {
		name, text string
		want       error
	}{
		{"the member id that kgo writes", "kgo-8f2c", errForeign},
		{"nothing", "", errForeign},
		{"a newer version", "p2.AAAA", errNewer},
		{"a changed character", good[:5] + "A" + good[6:], errDamaged},
		{"the end cut off", good[:len(good)-2], errDamaged},
		{"too long", metadataPrefix + strings.Repeat("A", 5000), errDamaged},
	} {
		if _, err := decodeMetadata(c.text, id, base); err != c.want { //nolint:errorlint // the very values
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := decodeMetadata(good, id, base+1); err != errOther { //nolint:errorlint // the very value
		t.Errorf("after a reset of the offset: got %v", err)
	}
	if _, err := decodeMetadata(good, [16]byte{8}, base); err != errOther { //nolint:errorlint // the very value
		t.Errorf("after the topic was made again: got %v", err)
	}
}

func FuzzDecodeMetadata(f *testing.F) {
	f.Add((&progress{base: 5, settled: []span{{7, 9}, {11, 300}}, attempts: []attempts{{5, 1}, {10, 3}}}).encode(), int64(5))
	f.Add("p1.", int64(0))
	f.Add("p9.x", int64(0))
	f.Fuzz(func(t *testing.T, text string, base int64) {
		p, err := decodeMetadata(text, [16]byte{}, base)
		if err != nil {
			return
		}
		again, err := decodeMetadata(p.encode(), [16]byte{}, base)
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}
