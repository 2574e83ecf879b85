package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/internal/setting"
)

// seed is that of RFC 8032, section 7.1, test 1.
const (
	seed       = "\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60"
	publicOf   = "\xd7\x5a\x98\x01\x82\xb1\x0a\xb7\xd5\x4b\xfe\xd3\xc9\x64\x07\x3a\x0e\xe1\x72\xf3\xda\xa6\x23\x25\xaf\x02\x1a\x68\xf7\x07\x51\x1a"
	vectorID   = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"
	vectorBody = `{"email":"test@example.com","username":"test_user"}`
)

var vectorTime = time.Unix(1649367553, 0)

func keyOf(t *testing.T, k Key) signingKey {
	t.Helper()
	out, err := parseKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func asymmetric() setting.Secret {
	return setting.NewSecret(privatePrefix + base64.StdEncoding.EncodeToString([]byte(seed)))
}

func TestAsymmetricSignatureIsEd25519OfTheSameText(t *testing.T) {
	for _, secret := range []string{privatePrefix + base64.StdEncoding.EncodeToString([]byte(seed)), privatePrefix + base64.StdEncoding.EncodeToString([]byte(seed+publicOf))} {
		k := keyOf(t, Key{Secret: setting.NewSecret(secret)})
		header, names, err := sign([]signingKey{k}, vectorID, vectorTime, []byte(vectorBody))
		if err != nil {
			t.Fatal(err)
		}
		token, ok := strings.CutPrefix(header, "v1a,")
		signature, err := base64.StdEncoding.DecodeString(token)
		if !ok || err != nil || !ed25519.Verify([]byte(publicOf), []byte(vectorID+".1649367553."+vectorBody), signature) {
			t.Errorf("header %q: %v", header, err)
		}
		// The thumbprint of this key is RFC 8037's own example (appendix A.3).
		if len(names) != 1 || names[0] != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
			t.Errorf("the key is called %v", names)
		}
	}
}

func TestPublishedKeyIsTheOneOfTheStandard(t *testing.T) {
	now := vectorTime
	keys := []signingKey{
		keyOf(t, Key{Secret: asymmetric()}), keyOf(t, Key{Secret: asymmetric()}), // twice the same
		keyOf(t, Key{Secret: setting.NewSecret(secretA)}), // symmetric ones are nobody's to see
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(jwks(keys, now), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%v: %v", err, set)
	}
	// RFC 8037, appendix A.2.
	if k := set.Keys[0]; k["kty"] != "OKP" || k["crv"] != "Ed25519" || k["x"] != "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" ||
		k["standard_webhooks_key"] != "whpk_"+base64.StdEncoding.EncodeToString([]byte(publicOf)) {
		t.Errorf("%v", k)
	}
	if b := jwks(nil, now); string(b) != `{"keys":[]}` {
		t.Errorf("%s", b)
	}
	over := keyOf(t, Key{Secret: asymmetric(), NotAfter: now.Add(-time.Second)})
	soon := keyOf(t, Key{Secret: asymmetric(), NotBefore: now.Add(time.Hour)})
	if strings.Contains(string(jwks([]signingKey{over}, now)), "OKP") || !strings.Contains(string(jwks([]signingKey{soon}, now)), "OKP") {
		t.Error("a key that is over is listed, or one that comes is not")
	}
}

func TestRotationOverlapsAndThenTheOldKeySignsNoMore(t *testing.T) {
	change := vectorTime
	keys := []signingKey{
		keyOf(t, Key{Secret: setting.NewSecret(secretA), NotAfter: change.Add(24 * time.Hour)}),
		keyOf(t, Key{Secret: setting.NewSecret(secretB), NotBefore: change}),
	}
	for _, c := range []struct {
		at   time.Duration
		want []int
	}{{-time.Second, []int{0}}, {0, []int{0, 1}}, {24*time.Hour - 1, []int{0, 1}}, {24 * time.Hour, []int{1}}, {1000 * time.Hour, []int{1}}} {
		at := change.Add(c.at)
		header, names, err := sign(keys, vectorID, at, []byte(vectorBody))
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, i := range c.want {
			one, _, err := sign(keys[i:i+1], vectorID, at, []byte(vectorBody))
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, one)
		}
		if header != strings.Join(want, " ") || len(names) != len(c.want) {
			t.Errorf("%s after the change: %q by %v", c.at, header, names)
		}
	}
}

func TestEndpointWithoutAValidKeyGetsNothingUnsigned(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was sent something") }))
	defer server.Close()
	p := pusherTo(t, server.URL, func(o *Options) {
		o.Secrets, o.Keys = nil, []Key{{Secret: setting.NewSecret(secretA), NotAfter: time.Now().Add(-time.Hour)}}
	})
	l := newLender(t, record("k", "v"))
	run(t, p, l)
	if s := l.only(); s.Word != delivery.Nack || !strings.Contains(s.Reason, "not_after") {
		t.Errorf("%+v", s)
	}
}

func TestSignatureHeaderIsWhatPickyLibrariesSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var keys []signingKey
		n := rapid.IntRange(1, maxKeys).Draw(t, "keys")
		for range n {
			if rapid.Bool().Draw(t, "asymmetric") {
				private, _ := GenerateKeyPair()
				k, err := parseKey(Key{Secret: setting.NewSecret(private)})
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, k)
				continue
			}
			k, err := parseKey(Key{Secret: setting.NewSecret(GenerateSecret())})
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k)
		}
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		header, names, err := sign(keys, vectorID, vectorTime, body)
		if err != nil || len(names) != n {
			t.Fatalf("%v %v", names, err)
		}
		tokens := strings.Split(header, " ")
		if len(tokens) != n {
			t.Fatalf("%d tokens of %d keys", len(tokens), n)
		}
		for _, token := range tokens {
			if parts := strings.Split(token, ","); len(parts) != 2 || parts[0] != "v1" && parts[0] != "v1a" || parts[1] == "" {
				t.Fatalf("token %q", token)
			}
		}
	})
}

func TestWrongAsymmetricKeysAreRefusedAndNeverQuoted(t *testing.T) {
	for _, s := range []string{
		"whsk_", "whsk_hunter2", "whsk_" + base64.StdEncoding.EncodeToString([]byte("short")),
		"whsk_" + base64.StdEncoding.EncodeToString([]byte(seed+seed)), "whpk_" + base64.StdEncoding.EncodeToString([]byte(publicOf)),
	} {
		_, err := parseKey(Key{Secret: setting.NewSecret(s)})
		if err == nil {
			t.Errorf("%q is taken", s)
		} else if len(s) > 6 && strings.Contains(err.Error(), s[5:]) {
			t.Errorf("the error quotes the key: %v", err)
		}
	}
	if _, err := parseKey(Key{Secret: setting.NewSecret(secretA), NotBefore: vectorTime, NotAfter: vectorTime}); err == nil {
		t.Error("a key that never signs is taken")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(secretA)
	f.Add("whsk_" + base64.StdEncoding.EncodeToString([]byte(seed)))
	f.Fuzz(func(t *testing.T, s string) {
		k, err := parseKey(Key{Secret: setting.NewSecret(s)})
		if err != nil {
			return
		}
		if header, _, err := sign([]signingKey{k}, vectorID, vectorTime, nil); err != nil || header == "" {
			t.Errorf("a key that was taken does not sign: %v", err)
		}
	})
}
