package tail

import (
	"maps"
	"strings"
	"testing"

	"github.com/postern-dev/postern/fault"
)

func TestCursorComesBackAsItWasGiven(t *testing.T) {
	for _, c := range []Cursor{{}, {0: 0}, {0: 5, 1: 1 << 40, 7: 0, 300: 9}} {
		got, err := ParseCursor(c.String())
		if err != nil || !maps.Equal(got, c) {
			t.Errorf("%v became %v, %v", c, got, err)
		}
	}
}

func TestCursorOfFiveHundredBusyPartitionsFitsIntoFourKilobytes(t *testing.T) {
	c := Cursor{}
	for p := range int32(500) {
		c[p] = 1 << 33
	}
	if n := len(c.String()); n > maxCursorText {
		t.Errorf("%d bytes", n)
	}
}

func TestDamagedCursorsAreRefusedWithTheirReason(t *testing.T) {
	good := Cursor{0: 5, 3: 77}.String()
	for _, text := range []string{"x", "c1.", "c2." + good[3:], good[:len(good)-1], good + "A", strings.Replace(good, good[6:7], "_", 1), "c1." + strings.Repeat("A", 5000), "42"} {
		if _, err := ParseCursor(text); !fault.Is(err, fault.InvalidCursor) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseCursor(f *testing.F) {
	f.Add(Cursor{0: 5, 3: 77}.String())
	f.Add("c1.AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCursor(text)
		if err != nil {
			return
		}
		again, err := ParseCursor(c.String())
		if err != nil || !maps.Equal(again, c) {
			t.Errorf("%v became %v, %v", c, again, err)
		}
	})
}
