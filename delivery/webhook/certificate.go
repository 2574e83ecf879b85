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
// Its files are read again when they change.
type TLS struct {
	// CAFile holds the PEM certificates to trust. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the gateway's certificate, for mutual TLS.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName overrides the name checked in the endpoint's certificate.
	ServerName string `yaml:"server_name"`
}

// Certificates are the TLS settings that files hold, as they were last read.
// A nil one has no files.
type Certificates struct {
	options TLS

	mu      sync.Mutex
	config  *tls.Config
	stamps  [3]fileStamp
	checked time.Time
	err     error // of the last reading; what was read before it goes on
}

type fileStamp struct {
	at   time.Time
	size int64
}

// certificateCheck is how often the files are looked at.
const certificateCheck = 5 * time.Second

// Open reads the files.
func (t *TLS) Open() (*Certificates, error) {
	c := &Certificates{}
	if t != nil {
		c.options = *t
	}
	return c, c.load()
}

// Config is for handshakes that begin now.
func (c *Certificates) Config(now time.Time) *tls.Config {
	c.changed(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config.Clone() // a transport writes to its own
}

// changed looks at the files, not more often than certificateCheck, and reports
// whether there are new certificates. Files that do not fit together, or cannot
// be read, are being written: the old ones go on.
func (c *Certificates) changed(now time.Time) bool {
	if c.options.CAFile == "" && c.options.CertFile == "" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) < certificateCheck {
		return false
	}
	c.checked = now
	if c.stampsNow() == c.stamps {
		return false
	}
	c.err = c.load()
	return c.err == nil
}

func (c *Certificates) stampsNow() (s [3]fileStamp) {
	for i, name := range [...]string{c.options.CAFile, c.options.CertFile, c.options.KeyFile} {
		if name == "" {
			continue
		}
		if info, err := os.Stat(name); err == nil {
			s[i] = fileStamp{info.ModTime(), info.Size()}
		}
	}
	return s
}

// load reads all files. The stamps are taken before: what changes in between is read again.
func (c *Certificates) load() error {
	o, stamps := c.options, c.stampsNow()
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.ServerName}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return fmt.Errorf("tls.ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return errors.New("tls.ca_file: there is no certificate in it")
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return errors.New("tls: cert_file and key_file are both needed")
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return fmt.Errorf("tls: read the certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	c.config, c.stamps = config, stamps
	return nil
}
