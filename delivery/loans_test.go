package delivery

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/postern-dev/postern/event"
)

// offerFetched offers n events of n keys, from offset on, in one piece of memory, as a
// fetch brings them. gone reports whether nobody holds that memory any more.
func offerFetched(q *Queue, offset int64, n, size int) (gone func() bool) {
	memory := make([]byte, n*size)
	slab, records := make([]event.Record, n), make([]*event.Record, 0, n)
	for i := range slab {
		value := memory[i*size : (i+1)*size : (i+1)*size]
		copy(value, fmt.Append(nil, "value-", offset+int64(i)))
		key := value[6:len(fmt.Append(nil, "value-", offset+int64(i)))]
		slab[i] = event.Record{Topic: "t", Offset: offset + int64(i), Key: key, Value: value, Headers: []event.Header{{Name: "h", Value: value[:5]}}}
		records = append(records, &slab[i])
	}
	q.offer(records)
	at := weak.Make(&memory[0])
	return func() bool {
		for range 3 {
			runtime.GC()
		}
		return at.Value() == nil
	}
}

// whole reports whether l's event is as it was fetched.
func whole(l Lease) bool {
	want := fmt.Append(nil, "value-", l.Record.Offset)
	return bytes.HasPrefix(l.Record.Value, want) && bytes.Equal(l.Record.Key, want[6:]) && string(l.Record.Headers[0].Value) == "value"
}

// ackAllBut settles what a has, but for the events at these offsets, whose ids it gives.
func ackAllBut(t *testing.T, q *Queue, a *Attachment, but ...int64) (kept []ID) {
	t.Helper()
	for _, l := range next(t, a) {
		if !whole(l) {
			t.Fatalf("offset %d came as %q %q", l.Record.Offset, l.Record.Key, l.Record.Value)
		}
		ours := false
		for _, o := range but {
			ours = ours || l.Record.Offset == o
		}
		if ours {
			kept = append(kept, l.ID)
			continue
		}
		q.Settle([]Settlement{{ID: l.ID, Word: Ack}})
	}
	return kept
}

func TestEventsThatStayDoNotKeepWhatTheyWereFetchedWithInMemory(t *testing.T) {
	q := loaded(t, 0)
	a := attach(t, q, 1000)
	gone := offerFetched(q, 0, 100, 10<<10)
	kept := ackAllBut(t, q, a, 3, 50) // 3 stays with its borrower, 50 waits for its next attempt
	q.Settle([]Settlement{{ID: kept[1], Word: Nack, HasDelay: true, Delay: time.Hour}})
	if gone() {
		t.Fatal("the fetch is gone already: this test shows nothing")
	}
	for offset, read := int64(100), 0; read <= maxLoaned; offset += 100 {
		offerFetched(q, offset, 100, 10<<10)
		read += 100 * 10 << 10
		ackAllBut(t, q, a)
	}
	if !gone() {
		t.Error("two events keep their whole fetch in memory, after 64 MiB more were read")
	}
	q.Settle([]Settlement{{ID: kept[0], Word: Nack, HasDelay: true}})
	q.mu.Lock()
	q.onTime()
	q.mu.Unlock()
	if again := ackAllBut(t, q, a, 3); len(again) != 1 {
		t.Errorf("the event that stayed came %d times", len(again))
	}
}

func TestEventsThatNobodyTakesDoNotKeepTheirFetchForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := loaded(t, 0)
		a := attach(t, q, 2)
		gone := offerFetched(q, 0, 5000, 1<<10) // two are lent and unread, the rest waits for room
		time.Sleep(loanTime - time.Second)
		settleDown := func() {
			for range 100 {
				q.mu.Lock()
				wait := q.onTime()
				q.mu.Unlock()
				if wait > loanPause {
					return
				}
				time.Sleep(wait)
			}
			t.Error("what is on loan is looked at without an end")
		}
		if settleDown(); gone() {
			t.Fatal("the events were copied at once: each costs a sixth of its delivery")
		}
		time.Sleep(time.Second)
		if settleDown(); !gone() {
			t.Errorf("after %s the fetch is still in memory", loanTime)
		}
		for came := 0; came < 5000; came += 2 {
			ackAllBut(t, q, a)
		}
		if !q.idle() || len(q.loans.runs) != 0 || q.loans.bytes != 0 {
			t.Errorf("left: %d runs on loan of %d bytes", len(q.loans.runs), q.loans.bytes)
		}
	})
}

func TestWhatIsOnLoanIsBounded(t *testing.T) {
	q := loaded(t, 0)
	for offset := int64(0); offset < 100*100; offset += 100 { // 100 MiB, and nobody there
		offerFetched(q, offset, 100, 10<<10)
		if q.loans.bytes > maxLoaned+1<<20 {
			t.Fatalf("%d bytes are on loan, at most %d may", q.loans.bytes, maxLoaned)
		}
	}
	if q.loans.bytes < maxLoaned/2 {
		t.Errorf("only %d bytes are on loan", q.loans.bytes)
	}
}

func TestAnEventOfHeadersAloneIsOnLoanToo(t *testing.T) {
	q := loaded(t, 0)
	memory := make([]byte, 1<<16)
	at := weak.Make(&memory[0])
	q.offer([]*event.Record{{Topic: "t", Headers: []event.Header{{Name: "h", Value: memory[:4:4]}}}})
	q.mu.Lock()
	q.endLoans(q.now() + loanTime)
	q.mu.Unlock()
	runtime.GC()
	if runtime.GC(); at.Value() != nil {
		t.Error("its headers keep its fetch in memory")
	}
	if leases := next(t, attach(t, q, 1)); len(leases) != 1 || len(leases[0].Record.Headers[0].Value) != 4 {
		t.Errorf("it came as %v", leases)
	}
}
