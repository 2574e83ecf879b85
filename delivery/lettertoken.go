package delivery

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"slices"
)

// letterToken is where a list of dead letters goes on. Its text is the unpadded
// base64url of a version byte, the checksum of what was asked for and of which
// topic, and unsigned varints: the group, whether it began (0 or 1), and for each
// column its partition, from the one before, and how far it was looked at.
type letterToken struct {
	topic string
	group int
	began bool // false: at the beginning of the group
	at    map[int32]int64
}

const letterTokenVersion = 1

// asked is a checksum of what a token is good for.
func asked(topic string, q *LettersQuery) uint32 {
	b, err := json.Marshal(struct {
		Topic  string
		Oldest bool
		Filter LetterFilter
	}{topic, q.OldestFirst, q.Filter})
	if err != nil {
		return 0 // a filter is plain values
	}
	return crc32.Checksum(b, castagnoli)
}

func (t *letterToken) encode(q *LettersQuery) string {
	b := []byte{letterTokenVersion}
	b = binary.BigEndian.AppendUint32(b, asked(t.topic, q))
	b = binary.AppendUvarint(b, uint64(t.group))
	began := uint64(0)
	if t.began {
		began = 1
	}
	b = binary.AppendUvarint(b, began)
	var partitions []int32
	for p := range t.at {
		partitions = append(partitions, p)
	}
	slices.Sort(partitions)
	last := int32(0)
	for _, p := range partitions {
		b = binary.AppendUvarint(b, uint64(p-last))
		b = binary.AppendUvarint(b, uint64(t.at[p]))
		last = p
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseLetterToken reads what encode wrote; "" is the beginning.
func parseLetterToken(text, topic string, q *LettersQuery) (letterToken, error) {
	t := letterToken{topic: topic, at: map[int32]int64{}}
	if text == "" {
		return t, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	switch {
	case err != nil || len(b) < 7 || len(text) > 8<<10:
		return t, filterFault("cannot be read")
	case b[0] != letterTokenVersion:
		return t, filterFault("is of another version")
	case binary.BigEndian.Uint32(b[1:]) != asked(topic, q):
		return t, filterFault("is of another filter, order or topic")
	}
	d := decoder{b: b[5:]}
	group, began := d.uvarint(), d.uvarint()
	if d.bad || group > 1<<20 || began > 1 {
		return t, filterFault("cannot be read")
	}
	t.group, t.began = int(group), began == 1
	last := int64(0)
	for len(d.b) > 0 {
		last = last + int64(d.uvarint()&(1<<31-1))
		at := d.offset(0)
		if d.bad || last > 1<<31-1 {
			return t, filterFault("cannot be read")
		}
		t.at[int32(last)] = at
	}
	return t, nil
}
