package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A disk that fails. The stand-in only warns when it could not write: it answers
// a commit all the same, and takes a batch that it could not store for stored when
// it is sent again. So the first such warning cuts every connection, before the
// answer is on it, and ends the broker as a kill would: what was acknowledged is on
// the disk, and nothing is acknowledged that is not. Kafka ends for it, too.

// unwritten begin the stand-in's warnings that memory holds what the disk does not.
var unwritten = []string{"persist ", "rebuildSegments ", "endTx: failed to persist"}

func isUnwritten(warning string) bool {
	for _, begin := range unwritten {
		if strings.HasPrefix(warning, begin) {
			return true
		}
	}
	return false
}

// line is a listener whose connections can all be cut.
type line struct {
	net.Listener
	mu    sync.Mutex
	conns map[*lineConn]struct{}
	isCut bool
}

type lineConn struct {
	net.Conn
	of *line
}

// Accept gives the next connection, which is known until it is closed.
func (l *line) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	known := &lineConn{c, l}
	l.conns[known] = struct{}{}
	return known, nil
}

// Close closes the connection.
func (c *lineConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut closes the listener and every connection. When it returns, nothing more is answered.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = true
	_ = l.Listener.Close() // whoever dials from now on is refused
	for c := range l.conns {
		_ = c.Conn.Close() // its reader and writer see it
	}
}

// logs are the stand-in's files of entries that are appended.
var logs = []string{"groups.log", "pids.log"}

// cutTorn takes the end off each log of entries from the first one that was not
// written whole. The stand-in reads no further but appends behind it, so that all
// it writes from then on would be gone at the next start.
func cutTorn(dir string) error {
	for _, name := range logs {
		path := filepath.Join(dir, name)
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		whole := wholeEntries(raw)
		if whole == len(raw) {
			continue
		}
		if err := os.Truncate(path, int64(whole)); err != nil {
			return fmt.Errorf("cut the torn end off %s: %w", path, err)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wholeEntries is how many bytes of a log are whole entries: each the length of
// what follows the checksum, a CRC-32C of that, and a version and data (kfake v0,
// persist.go; all little-endian).
func wholeEntries(raw []byte) int {
	const head, version = 8, 2
	at := 0
	for at+head+version <= len(raw) {
		length := int64(binary.LittleEndian.Uint32(raw[at:]))
		if length < version || length > int64(len(raw)-at-head) {
			break
		}
		end := at + head + int(length)
		if crc32.Checksum(raw[at+head:end], castagnoli) != binary.LittleEndian.Uint32(raw[at+4:]) {
			break
		}
		at = end
	}
	return at
}
