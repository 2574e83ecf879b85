package server

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS of the listeners for callers.
type TLS struct {
	// CertFile and KeyFile are PEM; they are read again when they change.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// config gives settings for the application protocols named.
func (t *TLS) config(protocols ...string) (*tls.Config, error) {
	pair := &keyPair{cert: t.CertFile, key: t.KeyFile}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get, NextProtos: protocols}, nil
}

// keyPair is a certificate that follows its files, so that a rotated one is used
// without a restart. A new one that cannot be read leaves the old in use.
type keyPair struct {
	cert, key string

	mu      sync.Mutex
	current *tls.Certificate
	changed time.Time
}

func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.cert)
	if err == nil && p.current != nil && info.ModTime().Equal(p.changed) {
		return p.current, nil
	}
	if err == nil {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(p.cert, p.key); err == nil {
			p.current, p.changed = &pair, info.ModTime()
		}
	}
	if p.current == nil {
		return nil, fmt.Errorf("read cert_file and key_file: %w", err)
	}
	return p.current, nil
}
