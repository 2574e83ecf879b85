package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS is how the gateway and an endpoint prove themselves with certificates.
type TLS struct {
	// CAFile holds the PEM certificates to trust. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the gateway's certificate, for mutual TLS. They are
	// read again when they change.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName overrides the name checked in the endpoint's certificate.
	ServerName string `yaml:"server_name"`
}

// Config makes the client's TLS settings. reload reports whether the gateway's own
// certificate was replaced, and is asked from time to time; nil without one.
func (t *TLS) Config() (config *tls.Config, reload func(now time.Time) bool, err error) {
	c, own, err := t.config()
	if own == nil {
		return c, nil, err
	}
	return c, own.changed, err
}

func (t *TLS) config() (*tls.Config, *certificate, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil, nil
	}
	c.ServerName = t.ServerName
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("tls.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, nil, errors.New("tls.ca_file: there is no certificate in it")
		}
	}
	if t.CertFile == "" && t.KeyFile == "" {
		return c, nil, nil
	}
	if t.CertFile == "" || t.KeyFile == "" {
		return nil, nil, errors.New("tls: cert_file and key_file are both needed")
	}
	own := &certificate{certFile: t.CertFile, keyFile: t.KeyFile}
	if err := own.load(); err != nil {
		return nil, nil, err
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		own.changed(time.Now())
		own.mu.Lock()
		defer own.mu.Unlock()
		return own.loaded, nil
	}
	return c, own, nil
}

// certificate is our own, read again when its files change.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	loaded  *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
	err     error // of the last reading; the certificate before it goes on
}

type fileStamp struct {
	at   time.Time
	size int64
}

// certificateCheck is how often the files are looked at.
const certificateCheck = 5 * time.Second

func (c *certificate) stamps() (s [2]fileStamp) {
	for i, name := range [...]string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			s[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return s
}

func (c *certificate) load() error {
	stamp := c.stamps()
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("tls: read the certificate: %w", err)
	}
	c.loaded, c.stamp = &pair, stamp
	return nil
}

// changed looks at the files, not more often than certificateCheck, and reports
// whether there is a new certificate. Files that do not fit together are being
// written: the old one goes on.
func (c *certificate) changed(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) < certificateCheck {
		return false
	}
	c.checked = now
	if c.stamps() == c.stamp {
		return false
	}
	c.err = c.load()
	return c.err == nil
}
