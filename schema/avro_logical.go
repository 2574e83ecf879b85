package schema

import (
	"encoding/hex"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// logical is an Avro logical type.
type logical uint8

const (
	noLogical logical = iota
	logicalDecimal
	logicalUUID
	logicalDate
	logicalTimeMillis
	logicalTimeMicros
	logicalMillis
	logicalMicros
	logicalNanos
	logicalLocalMillis
	logicalLocalMicros
	logicalLocalNanos
	logicalDuration
)

var logicals = [...]struct {
	name  string
	kinds []avroKind
}{
	logicalDecimal:     {"decimal", []avroKind{avroBytes, avroFixed}},
	logicalUUID:        {"uuid", []avroKind{avroString, avroFixed}},
	logicalDate:        {"date", []avroKind{avroInt}},
	logicalTimeMillis:  {"time-millis", []avroKind{avroInt}},
	logicalTimeMicros:  {"time-micros", []avroKind{avroLong}},
	logicalMillis:      {"timestamp-millis", []avroKind{avroLong}},
	logicalMicros:      {"timestamp-micros", []avroKind{avroLong}},
	logicalNanos:       {"timestamp-nanos", []avroKind{avroLong}},
	logicalLocalMillis: {"local-timestamp-millis", []avroKind{avroLong}},
	logicalLocalMicros: {"local-timestamp-micros", []avroKind{avroLong}},
	logicalLocalNanos:  {"local-timestamp-nanos", []avroKind{avroLong}},
	logicalDuration:    {"duration", []avroKind{avroFixed}},
}

func (l logical) String() string { return logicals[l].name }

// logicalOf finds the logical type called name where it may stand on t; one
// that is unknown, or stands where it may not, is ignored (Avro 1.12, "Logical Types").
func logicalOf(name string, t *avroType) logical {
	for l := range logicals {
		if name == "" || logicals[l].name != name {
			continue
		}
		for _, k := range logicals[l].kinds {
			if k != t.kind || name == "uuid" && k == avroFixed && t.size != 16 || name == "duration" && t.size != 12 {
				continue
			}
			return logical(l)
		}
	}
	return noLogical
}

// unit is what one step of a time's number is.
func (l logical) unit() time.Duration {
	switch l {
	case logicalTimeMillis, logicalMillis, logicalLocalMillis:
		return time.Millisecond
	case logicalTimeMicros, logicalMicros, logicalLocalMicros:
		return time.Microsecond
	}
	return time.Nanosecond
}

const (
	dayLayout   = "2006-01-02"
	clockLayout = "15:04:05.999999999"
	localLayout = "2006-01-02T15:04:05.999999999"
)

// spelled says for people how a value of l is written in plain JSON.
func (l logical) spelled() string {
	switch l {
	case logicalDecimal:
		return "a decimal number"
	case logicalUUID:
		return "a UUID such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	case logicalDate:
		return "a date such as 2026-01-31"
	case logicalTimeMillis, logicalTimeMicros:
		return "a time of day such as 10:15:00"
	case logicalLocalMillis, logicalLocalMicros, logicalLocalNanos:
		return "a local time such as 2026-01-31T10:15:00"
	case logicalDuration:
		return `an object {"months", "days", "milliseconds"}`
	}
	return "a time such as 2026-01-31T10:15:00Z"
}

// parseTime reads a date, a time of day or a time as its number of l's units.
// A part finer than the unit is refused: dropping it would change the event.
func (l logical) parseTime(text string) (int64, bool) {
	layout := time.RFC3339Nano
	switch l {
	case logicalDate:
		t, err := time.Parse(dayLayout, text)
		return floorDiv(t.Unix(), 86400), err == nil
	case logicalTimeMillis, logicalTimeMicros:
		t, err := time.Parse(clockLayout, text)
		d := t.Sub(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC))
		return int64(d / l.unit()), err == nil && d%l.unit() == 0
	case logicalLocalMillis, logicalLocalMicros, logicalLocalNanos:
		layout = localLayout
	}
	t, err := time.Parse(layout, text)
	if err != nil || time.Duration(t.Nanosecond())%l.unit() != 0 {
		return 0, false
	}
	switch l.unit() {
	case time.Millisecond:
		return t.UnixMilli(), true
	case time.Microsecond:
		return t.UnixMicro(), true
	}
	// Nanoseconds fit for the years 1678 to 2261 only.
	return t.UnixNano(), t.Year() > 1677 && t.Year() < 2262
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// appendTime writes v, a number of l's units, as plain JSON; false when no
// calendar reaches there, and the number itself must do.
func (l logical) appendTime(b []byte, v int64) ([]byte, bool) {
	var t time.Time
	layout := time.RFC3339Nano
	switch l {
	case logicalDate:
		t, layout = time.Unix(v*86400, 0).UTC(), dayLayout
	case logicalTimeMillis, logicalTimeMicros:
		if v < 0 || v >= int64(24*time.Hour/l.unit()) {
			return b, false
		}
		t, layout = time.Unix(0, 0).UTC().Add(time.Duration(v)*l.unit()), clockLayout
	case logicalMillis, logicalLocalMillis:
		t = time.UnixMilli(v).UTC()
	case logicalMicros, logicalLocalMicros:
		t = time.UnixMicro(v).UTC()
	default:
		t = time.Unix(0, v).UTC()
	}
	switch l {
	case logicalLocalMillis, logicalLocalMicros, logicalLocalNanos:
		layout = localLayout
	}
	if y := t.Year(); y < 0 || y > 9999 {
		return b, false
	}
	b = append(b, '"')
	b = t.AppendFormat(b, layout)
	return append(b, '"'), true
}

// maxDecimalDigits bounds a decimal's text: reading it costs the square of its length.
const maxDecimalDigits = 1000

// parseDecimal reads text as the unscaled number of a decimal with scale.
func parseDecimal(text string, scale int) (*big.Int, bool) {
	mantissa, exponent := text, 0
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		n, err := strconv.Atoi(text[i+1:])
		if err != nil || n > maxDecimalDigits || n < -maxDecimalDigits {
			return nil, false
		}
		mantissa, exponent = text[:i], n
	}
	sign := ""
	if strings.HasPrefix(mantissa, "-") || strings.HasPrefix(mantissa, "+") {
		sign, mantissa = mantissa[:1], mantissa[1:]
	}
	whole, part, dotted := strings.Cut(mantissa, ".")
	if whole == "" || dotted && part == "" || strings.Trim(whole+part, "0123456789") != "" {
		return nil, false
	}
	exponent += scale - len(part) // how far the digits are to be moved
	digits := whole + part
	for exponent < 0 {
		if !strings.HasSuffix(digits, "0") {
			if strings.Trim(digits, "0") == "" { // zero is zero at any scale
				break
			}
			return nil, false
		}
		digits = digits[:len(digits)-1]
		exponent++
	}
	if exponent > 0 {
		if exponent > maxDecimalDigits {
			return nil, false
		}
		digits += strings.Repeat("0", exponent)
	}
	if len(digits) > maxDecimalDigits {
		return nil, false
	}
	if digits == "" {
		digits = "0"
	}
	return new(big.Int).SetString(sign+digits, 10)
}

// twosComplement writes v big-endian in the fewest bytes, or in size when it is not 0.
func twosComplement(v *big.Int, size int) ([]byte, bool) {
	n := v.BitLen()/8 + 1
	if v.Sign() < 0 { // -128 needs one byte, 128 two
		n = new(big.Int).Not(v).BitLen()/8 + 1
	}
	if size == 0 {
		size = n
	}
	if n > size {
		return nil, false
	}
	b := make([]byte, size)
	if v.Sign() >= 0 {
		v.FillBytes(b)
		return b, true
	}
	new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), uint(size)*8), v).FillBytes(b)
	return b, true
}

// appendDecimal writes the two's complement b as a decimal with scale.
func appendDecimal(out, b []byte, scale int) []byte {
	v := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	if v.Sign() < 0 {
		out = append(out, '-')
		v.Neg(v)
	}
	digits := v.Append(nil, 10)
	if len(digits) <= scale {
		digits = append([]byte(strings.Repeat("0", scale-len(digits)+1)), digits...)
	}
	out = append(out, digits[:len(digits)-scale]...)
	if scale > 0 {
		out = append(append(out, '.'), digits[len(digits)-scale:]...)
	}
	return out
}

// digitsOf counts the decimal digits of v.
func digitsOf(v *big.Int) int {
	n := len(v.Text(10))
	if v.Sign() < 0 {
		n--
	}
	return n
}

// parseUUID reads the 36 characters of RFC 9562.
func parseUUID(text string) ([16]byte, bool) {
	var id [16]byte
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(strings.ReplaceAll(text, "-", "")))
	return id, err == nil && strings.Count(text, "-") == 4
}

func appendUUID(b, id []byte) []byte {
	for i, part := range [...][]byte{id[0:4], id[4:6], id[6:8], id[8:10], id[10:16]} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, part)
	}
	return b
}
