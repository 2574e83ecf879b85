package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// Key signs requests while it is valid. During a rotation the old and the new
// one are valid side by side; the receiver takes either.
type Key struct {
	// Secret is whsec_... (HMAC, scheme v1) or whsk_... (ed25519, scheme v1a).
	Secret setting.Secret `yaml:"secret"`
	// NotBefore is when the key begins to sign, RFC 3339. Default: always.
	NotBefore time.Time `yaml:"not_before"`
	// NotAfter is when the key ends to sign, RFC 3339. Default: never.
	NotAfter time.Time `yaml:"not_after"`
}

// Prefixes of keys in their serialised form (Standard Webhooks 1.0.0).
const (
	secretPrefix  = "whsec_" // symmetric, v1
	privatePrefix = "whsk_"  // ed25519, v1a
	publicPrefix  = "whpk_"
)

// Lengths of a secret's random bytes that the specification allows.
const (
	minSecret = 24
	maxSecret = 64
)

// maxKeys bounds the keys of an endpoint, and so the length of its signature header.
const maxKeys = 10

// signingKey is a key ready to sign.
type signingKey struct {
	name        string     // for the log of attempts; says nothing of the key
	secret      []byte     // v1
	macs        *sync.Pool // of *mac over secret: making one costs as much as signing 300 bytes
	private     ed25519.PrivateKey
	from, until time.Time // zero: no bound
}

func (k *signingKey) live(now time.Time) bool {
	return !now.Before(k.from) && (k.until.IsZero() || now.Before(k.until))
}

// secretKey gives the bytes of a whsec_ secret. Errors never quote it.
func secretKey(s setting.Secret) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Reveal(), secretPrefix)
	if !ok {
		return nil, errors.New("a secret is whsec_ and the base64 of 24 to 64 random bytes (or whsk_ and an ed25519 key), for example from: postern webhooks keygen")
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) < minSecret || len(key) > maxSecret {
		return nil, errors.New("what follows whsec_ is not the base64 of 24 to 64 bytes")
	}
	return key, nil
}

// privateKey gives a whsk_ key: the base64 of a seed of 32 bytes, or of seed and
// public key together. Errors never quote it.
func privateKey(s setting.Secret) (ed25519.PrivateKey, error) {
	text, ok := strings.CutPrefix(s.Reveal(), privatePrefix)
	if !ok {
		return nil, errors.New("an asymmetric key is whsk_ and the base64 of an ed25519 private key, for example from: postern webhooks keygen --asymmetric")
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != ed25519.SeedSize && len(b) != ed25519.PrivateKeySize {
		return nil, errors.New("what follows whsk_ is not the base64 of 32 or 64 bytes")
	}
	key := ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
	if len(b) == ed25519.PrivateKeySize && !hmac.Equal(key, b) {
		return nil, errors.New("the public half of the whsk_ key is not that of its private half")
	}
	return key, nil
}

// parseKey reads a key of either kind.
func parseKey(k Key) (signingKey, error) {
	if !k.NotAfter.IsZero() && !k.NotBefore.Before(k.NotAfter) {
		return signingKey{}, errors.New("not_after is not after not_before: the key would never sign")
	}
	out := signingKey{from: k.NotBefore, until: k.NotAfter}
	var err error
	if strings.HasPrefix(k.Secret.Reveal(), privatePrefix) {
		if out.private, err = privateKey(k.Secret); err == nil {
			out.name = thumbprint(out.private)
		}
		return out, err
	}
	if out.secret, err = secretKey(k.Secret); err == nil {
		secret := out.secret
		out.macs = &sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }}
		sum := sha256.Sum256(append([]byte("postern key name\x00"), out.secret...))
		out.name = "v1-" + hex.EncodeToString(sum[:4])
	}
	return out, err
}

// thumbprint names a public key (RFC 7638, with RFC 8037 for ed25519).
func thumbprint(k ed25519.PrivateKey) string {
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"Ed25519","kty":"OKP","x":"%s"}`, publicText(k)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func publicText(k ed25519.PrivateKey) string {
	return base64.RawURLEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
}

// jwk is a public key as a JWKS lists it.
type jwk struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	ID        string `json:"kid"`
	Algorithm string `json:"alg"`
	Use       string `json:"use"`
	// Whpk is the same key as Standard Webhooks writes it, for receivers that verify v1a.
	Whpk string `json:"standard_webhooks_key"`
}

// jwks lists the public halves of keys that are valid now or will be: a receiver
// may fetch a key before it first signs. What is over is not listed.
func jwks(keys []signingKey, now time.Time) []byte {
	list := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	seen := map[string]bool{}
	for _, k := range keys {
		if k.private == nil || seen[k.name] || !k.until.IsZero() && !now.Before(k.until) {
			continue
		}
		seen[k.name] = true
		list.Keys = append(list.Keys, jwk{
			"OKP", "Ed25519", publicText(k.private), k.name, "EdDSA", "sig",
			publicPrefix + base64.StdEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey)),
		})
	}
	b, _ := json.Marshal(list) // strings only
	return b
}
