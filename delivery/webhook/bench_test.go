package webhook

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/postern-dev/postern/delivery/endpoint"
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
		x := c.exchanges.take(time.Minute)
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

// BenchmarkCarry is one event's whole way to an endpoint of this process and back.
func BenchmarkCarry(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	o := Options{URL: server.URL, AllowHTTP: true, AllowLoopback: true, Secrets: []setting.Secret{setting.NewSecret(secretA)}}.WithDefaults()
	c, err := newCarrier("mail", o, Environment{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := parcel()
	p.Records[0].Value = make([]byte, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if a := c.Carry(b.Context(), p); a.Action != endpoint.Ack {
			b.Fatal(a)
		}
	}
}
