package webhook

import (
	"testing"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// BenchmarkWriting is one event's request without the sending.
func BenchmarkWriting(b *testing.B) {
	c, err := newCarrier("mail", Options{URL: "https://example.com/", Secrets: []setting.Secret{setting.NewSecret(secretA)}}.WithDefaults(), Environment{})
	if err != nil {
		b.Fatal(err)
	}
	p := parcel()
	p.Records[0].Value = make([]byte, 1024)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		x := c.exchanges.take()
		if _, _, err := c.write(p, x.header, now); err != nil {
			b.Fatal(err)
		}
		x.kept, x.written = true, true
		c.exchanges.giveBack(x)
	}
}
