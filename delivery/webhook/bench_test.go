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

// BenchmarkSign is a signature of 1 KiB by each kind of key, and by two keys while one is changed.
func BenchmarkSign(b *testing.B) {
	key := func(secret setting.Secret) signingKey {
		k, err := parseKey(Key{Secret: secret})
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	hmac, other, asymmetric := key(setting.NewSecret(secretA)), key(setting.NewSecret(secretB)), key(asymmetric())
	body := make([]byte, 1024)
	for _, c := range []struct {
		name string
		keys []signingKey
	}{{"hmac", []signingKey{hmac}}, {"two", []signingKey{hmac, other}}, {"ed25519", []signingKey{asymmetric}}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if header, _, err := sign(c.keys, vectorID, vectorTime, body); err != nil || header == "" {
					b.Fatal(header, err)
				}
			}
		})
	}
}
