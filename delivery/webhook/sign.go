package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/postern-dev/postern/internal/setting"
)

// secretPrefix begins a symmetric secret's serialisation (Standard Webhooks 1.0.0).
const secretPrefix = "whsec_"

// Lengths of a secret's random bytes that the specification allows.
const (
	minSecret = 24
	maxSecret = 64
)

// secretKey gives the bytes of a whsec_ secret. Errors never quote it.
func secretKey(s setting.Secret) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Reveal(), secretPrefix)
	if !ok {
		return nil, errors.New("a secret is whsec_ and the base64 of 24 to 64 random bytes, for example from: echo whsec_$(openssl rand -base64 32)")
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) < minSecret || len(key) > maxSecret {
		return nil, errors.New("what follows whsec_ is not the base64 of 24 to 64 bytes")
	}
	return key, nil
}

// sign gives the webhook-signature header: a v1 token for each key, over id,
// timestamp and exactly the bytes of body (Standard Webhooks 1.0.0). Empty
// without keys.
func sign(keys [][]byte, id string, at time.Time, body []byte) string {
	var b strings.Builder
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id))
		mac.Write([]byte{'.'})
		mac.Write(strconv.AppendInt(nil, at.Unix(), 10))
		mac.Write([]byte{'.'})
		mac.Write(body)
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("v1,")
		b.WriteString(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return b.String()
}
