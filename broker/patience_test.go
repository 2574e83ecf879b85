package broker

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetch is a request as the client writes it.
func fetch(version int16, wait time.Duration) []byte {
	request := kmsg.NewPtrFetchRequest()
	request.SetVersion(version)
	request.MaxWaitMillis, request.SessionEpoch = int32(wait.Milliseconds()), 3
	id := "postern"
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(id)).AppendRequest(nil, request, 7)
}

// written is what reaches the broker.
func written(t *testing.T, p *patience, request []byte) []byte {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { _ = here.Close() })
	t.Cleanup(func() { _ = there.Close() })
	before := bytes.Clone(request)
	go func() { _, _ = (&patientConn{here, p}).Write(request) }()
	got := make([]byte, len(request))
	for n := 0; n < len(got); {
		m, err := there.Read(got[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if !bytes.Equal(before, request) {
		t.Error("the caller's bytes were changed")
	}
	return got
}

func TestFetchesOfAnIdleConsumerWaitLong(t *testing.T) {
	paused := false
	p := &patience{paused: func() bool { return paused }}
	newest := kmsg.NewPtrFetchRequest().MaxVersion()
	for version := int16(4); version <= newest; version++ {
		want := fetch(version, fetchLongWait)
		if version < 12 {
			want = fetch(version, fetchMaxWait)
		}
		if got := written(t, p, fetch(version, fetchMaxWait)); !bytes.Equal(got, want) {
			t.Errorf("version %d:\n%x\n%x", version, got, want)
		}
	}
	unchanged := func(when string, request []byte) {
		t.Helper()
		if got := written(t, p, request); !bytes.Equal(got, request) {
			t.Errorf("%s: %x", when, got)
		}
	}
	unchanged("another wait", fetch(newest, time.Second))
	heartbeat := kmsg.NewPtrHeartbeatRequest()
	heartbeat.SetVersion(4)
	unchanged("a heartbeat", kmsg.NewRequestFormatter().AppendRequest(nil, heartbeat, 7))
	paused = true
	unchanged("paused", fetch(newest, fetchMaxWait))
	paused = false
	p.note()
	unchanged("something just came", fetch(newest, fetchMaxWait))
}

// FuzzFetchWait looks that bytes of any kind pass, and that only the wait of a fetch changes.
func FuzzFetchWait(f *testing.F) {
	for _, version := range []int16{11, 12, 15, 17} {
		f.Add(fetch(version, fetchMaxWait))
		f.Add(fetch(version, fetchMaxWait)[:30])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		at := maxWaitAt(b)
		if at == 0 {
			return
		}
		if at < 15 || at+4 > len(b) || binary.BigEndian.Uint16(b[4:]) != keyFetch || binary.BigEndian.Uint32(b[at:]) != uint32(fetchMaxWait.Milliseconds()) {
			t.Fatalf("%d of %x", at, b)
		}
	})
}
