package delivery

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
)

// A commit's metadata carries what its offset cannot say: which events above
// the offset are settled already, and how often the others were lent. With it
// a restart or a rebalance forgets no acknowledgement.
//
// The text is "p1." and the unpadded base64url of
//
//	crc32c      4 bytes, of all that follows
//	topic id    16 bytes
//	base        uvarint, equal to the committed offset
//	epoch       uvarint, the last seek applied
//	settled     set of offsets above base
//	attempted   set of unsettled offsets lent at least once
//	repeats     uvarint n, then n times: uvarint offset delta, uvarint attempts (2 or more)
//
// A set is a byte 0, uvarint n and n times (uvarint gap, uvarint length), or a
// byte 1, uvarint n and a bitmap of n bits (bit 0 is base); whichever is
// shorter. Runs suit a long tail behind one blocked key, the bitmap suits many
// handlers finishing in any order.
//
// Kafka keeps at most 4096 characters (offset.metadata.max.bytes) and refuses
// the partition's commit when there are more, so the tracker lends nothing
// whose settlement might not fit (see Tracker.fits).
const (
	metadataPrefix  = "p1."
	metadataMaxText = 4096
	metadataHeader  = 4 + 16 + 2*binary.MaxVarintLen64
)

// metadataMaxSets is what the three sections may take together.
var metadataMaxSets = base64.RawURLEncoding.DecodedLen(metadataMaxText-len(metadataPrefix)) - metadataHeader

// span is the offsets [from, to).
type span struct{ from, to int64 }

// attempts says how often an unsettled offset was lent.
type attempts struct {
	offset int64
	count  int
}

// progress is the content of a commit's metadata.
type progress struct {
	topicID  [16]byte
	base     int64
	epoch    uint64
	settled  []span     // ascending, disjoint, above base
	attempts []attempts // ascending, counts of 1 and more
}

func (p *progress) empty() bool { return len(p.settled) == 0 && len(p.attempts) == 0 && p.epoch == 0 }

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	encoding   = base64.RawURLEncoding
)

// encode gives the metadata text; it is too long only if Tracker.fits is wrong.
func (p *progress) encode() string {
	body := make([]byte, 4, 256)
	body = append(body, p.topicID[:]...)
	body = binary.AppendUvarint(body, uint64(p.base))
	body = binary.AppendUvarint(body, p.epoch)
	body = appendSet(body, p.base, p.settled)
	var once []span
	var repeats []attempts
	for _, a := range p.attempts {
		if n := len(once); n > 0 && once[n-1].to == a.offset {
			once[n-1].to++
		} else {
			once = append(once, span{a.offset, a.offset + 1})
		}
		if a.count > 1 {
			repeats = append(repeats, a)
		}
	}
	body = appendSet(body, p.base, once)
	body = binary.AppendUvarint(body, uint64(len(repeats)))
	at := p.base
	for _, a := range repeats {
		body = binary.AppendUvarint(body, uint64(a.offset-at))
		body = binary.AppendUvarint(body, uint64(a.count))
		at = a.offset
	}
	binary.BigEndian.PutUint32(body, crc32.Checksum(body[4:], castagnoli))
	return metadataPrefix + encoding.EncodeToString(body)
}

func appendSet(b []byte, base int64, spans []span) []byte {
	runs := 0
	at := base
	for _, s := range spans {
		runs += uvarintLen(uint64(s.from-at)) + uvarintLen(uint64(s.to-s.from))
		at = s.to
	}
	width := at - base
	if len(spans) == 0 || int64(runs) <= width/8+1 {
		b = append(b, 0)
		b = binary.AppendUvarint(b, uint64(len(spans)))
		at = base
		for _, s := range spans {
			b = binary.AppendUvarint(b, uint64(s.from-at))
			b = binary.AppendUvarint(b, uint64(s.to-s.from))
			at = s.to
		}
		return b
	}
	b = append(b, 1)
	b = binary.AppendUvarint(b, uint64(width))
	start := len(b)
	b = append(b, make([]byte, (width+7)/8)...)
	for _, s := range spans {
		for o := s.from - base; o < s.to-base; o++ {
			b[start+int(o/8)] |= 1 << (o % 8)
		}
	}
	return b
}

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// setBound is the most that appendSet takes for n spans within width offsets.
func setBound(n int, width int64) int {
	const head = 1 + binary.MaxVarintLen32
	// 2n numbers that sum to at most width: a number needs a second byte only
	// from 128 on, of which there are at most width/128, and so forth.
	runs := int64(2 * n)
	for limit := int64(1 << 7); limit <= width; limit <<= 7 {
		runs += min(int64(2*n), width/limit)
	}
	return head + int(min(runs, width/8+1))
}

// repeatsBound is the most that n repeats within width offsets take; attempts are below 2^14.
func repeatsBound(n int, width int64) int {
	size := int64(3 * n) // one byte of delta, two of attempts
	for limit := int64(1 << 7); limit <= width; limit <<= 7 {
		size += min(int64(n), width/limit)
	}
	return binary.MaxVarintLen32 + int(size)
}

// Why metadata is not used.
var (
	errForeign = errors.New("not written by us")             // other tools write there too: ignored, and counted
	errDamaged = errors.New("damaged")                       // ignored, and counted
	errNewer   = errors.New("written by a newer Postern")    // the partition stops: acks in it must not be forgotten
	errOther   = errors.New("of another offset or topic id") // the offset was reset, or the topic made again: ignored, and counted
)

// decodeMetadata reads what encode wrote, for the partition committed at base of topicID.
func decodeMetadata(text string, topicID [16]byte, base int64) (progress, error) {
	none := progress{topicID: topicID, base: base}
	body, ok := strings.CutPrefix(text, metadataPrefix)
	if !ok {
		if newerVersion(text) {
			return none, errNewer
		}
		return none, errForeign
	}
	if len(text) > metadataMaxText {
		return none, errDamaged
	}
	b, err := encoding.DecodeString(body)
	if err != nil || len(b) < 4+16 || binary.BigEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return none, errDamaged
	}
	p := progress{topicID: [16]byte(b[4:20])}
	d := decoder{b: b[20:]}
	p.base = d.offset(0)
	p.epoch = d.uvarint()
	if d.bad {
		return none, errDamaged
	}
	if p.topicID != topicID || p.base != base {
		return none, errOther
	}
	p.settled = d.set(base)
	for _, s := range d.set(base) {
		if s.to-s.from > maxAttempted || len(p.attempts) > maxAttempted {
			return none, errDamaged
		}
		for o := s.from; o < s.to; o++ {
			p.attempts = append(p.attempts, attempts{o, 1})
		}
	}
	at, i := base, 0
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		at = d.offset(at)
		count := d.uvarint()
		for i < len(p.attempts) && p.attempts[i].offset < at {
			i++
		}
		if d.bad || count < 2 || count > 1<<14 || i == len(p.attempts) || p.attempts[i].offset != at {
			return none, errDamaged
		}
		p.attempts[i].count = int(count)
	}
	if d.bad || len(d.b) > 0 {
		return none, errDamaged
	}
	return p, nil
}

// newerVersion reports whether text begins as a later version of ours would: p, digits, dot.
func newerVersion(text string) bool {
	digits, _, ok := strings.Cut(strings.TrimPrefix(text, "p"), ".")
	if !ok || !strings.HasPrefix(text, "p") || digits == "" || len(digits) > 3 {
		return false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// decoder reads the numbers of a body that passed its checksum; bad stays set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// offset reads a delta from at.
func (d *decoder) offset(at int64) int64 {
	v := d.uvarint()
	if v > 1<<62 || at+int64(v) < at {
		d.bad = true
		return at
	}
	return at + int64(v)
}

// maxAttempted bounds what a crafted set of runs may make us hold.
const maxAttempted = 1 << 20

func (d *decoder) set(base int64) []span {
	if len(d.b) == 0 {
		d.bad = true
		return nil
	}
	kind := d.b[0]
	d.b = d.b[1:]
	n := d.uvarint()
	var spans []span
	switch {
	case d.bad:
	case kind == 0:
		at := base
		for ; n > 0 && !d.bad; n-- {
			from := d.offset(at)
			to := d.offset(from)
			if to == from || from == at && len(spans) > 0 {
				d.bad = true
			}
			spans = append(spans, span{from, to})
			at = to
		}
	case kind == 1:
		if n > 8*metadataMaxText || int(n+7)/8 > len(d.b) {
			d.bad = true
			break
		}
		for i := int64(0); i < int64(n); i++ {
			if d.b[i/8]&(1<<(i%8)) == 0 {
				continue
			}
			if k := len(spans); k > 0 && spans[k-1].to == base+i {
				spans[k-1].to++
			} else {
				spans = append(spans, span{base + i, base + i + 1})
			}
		}
		d.b = d.b[(n+7)/8:]
	default:
		d.bad = true
	}
	return spans
}

func (s span) String() string { return fmt.Sprintf("%d-%d", s.from, s.to-1) }
