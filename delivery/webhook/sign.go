package webhook

import (
	"crypto/ed25519"
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
	var signed []byte // id.timestamp.body; ed25519 needs it whole
	var memory [256]byte
	b := memory[:0]
	names = make([]string, 0, len(keys))
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
				signed = append(appendPrefix(make([]byte, 0, len(id)+len(body)+22), id, at), body...)
			}
			b = base64.StdEncoding.AppendEncode(append(b, "v1a,"...), ed25519.Sign(k.private, signed))
			continue
		}
		m := k.macs.Get().(*mac)
		m.Reset()
		m.memory = appendPrefix(m.memory[:0], id, at)
		m.Write(m.memory)
		m.Write(body)
		m.memory = m.Sum(m.memory[:0])
		b = base64.StdEncoding.AppendEncode(append(b, "v1,"...), m.memory)
		k.macs.Put(m)
	}
	if len(b) == 0 {
		return "", nil, errors.New("none of the endpoint's keys is valid now: add one to keys, or correct not_before and not_after")
	}
	return string(b), names, nil
}

// appendPrefix writes what is signed before the body.
func appendPrefix(b []byte, id string, at time.Time) []byte {
	return append(strconv.AppendInt(append(append(b, id...), '.'), at.Unix(), 10), '.')
}

// mac is an HMAC over a secret, and memory for what it reads and gives.
type mac struct {
	hash.Hash
	memory []byte
}
