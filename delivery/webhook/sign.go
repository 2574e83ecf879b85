package webhook

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"strconv"
	"time"
)

// sign gives the webhook-signature header: a token for each key that is valid at
// the time, over id, timestamp and exactly the bytes of body (Standard Webhooks
// 1.0.0): v1 with HMAC-SHA256, v1a with ed25519. Empty without keys. Every token
// has one comma, and one space stands between two: some receivers' libraries
// take nothing else.
//
// Keys of which none is valid any more are an error: an endpoint that asked for
// signatures never gets a request without one.
func sign(keys []signingKey, id string, at time.Time, body []byte) (header string, names []string, err error) {
	if len(keys) == 0 {
		return "", nil, nil
	}
	var sum [sha256.Size]byte
	var signed []byte // id.timestamp.body; ed25519 needs it whole
	stamp := strconv.AppendInt(make([]byte, 0, 20), at.Unix(), 10)
	b := make([]byte, 0, 64*len(keys))
	for i := range keys {
		k := &keys[i]
		if !k.live(at) {
			continue
		}
		if len(b) > 0 {
			b = append(b, ' ')
		}
		names = append(names, k.name)
		if k.private != nil {
			if signed == nil {
				signed = make([]byte, 0, len(id)+len(stamp)+len(body)+2)
				signed = append(append(append(append(append(signed, id...), '.'), stamp...), '.'), body...)
			}
			b = base64.StdEncoding.AppendEncode(append(b, "v1a,"...), ed25519.Sign(k.private, signed))
			continue
		}
		mac := k.macs.Get().(hash.Hash)
		mac.Reset()
		mac.Write([]byte(id))
		mac.Write([]byte{'.'})
		mac.Write(stamp)
		mac.Write([]byte{'.'})
		mac.Write(body)
		b = base64.StdEncoding.AppendEncode(append(b, "v1,"...), mac.Sum(sum[:0]))
		k.macs.Put(mac)
	}
	if len(b) == 0 {
		return "", nil, errors.New("none of the endpoint's keys is valid now: add one to keys, or correct not_before and not_after")
	}
	return string(b), names, nil
}
