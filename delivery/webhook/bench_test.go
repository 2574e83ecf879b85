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
		if _, _, _, err := c.write(p, now); err != nil {
			b.Fatal(err)
		}
	}
}
