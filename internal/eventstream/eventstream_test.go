package eventstream

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// answer is a client's side of a Writer: what came, in how many pieces, and by when each must.
type answer struct {
	*httptest.ResponseRecorder
	writes    int
	deadlines []time.Time
	broken    error
}

func (a *answer) Write(b []byte) (int, error) {
	a.writes++
	if a.broken != nil {
		return 0, a.broken
	}
	return a.ResponseRecorder.Write(b)
}

func (a *answer) SetWriteDeadline(t time.Time) error {
	a.deadlines = append(a.deadlines, t)
	return nil
}

func writerTo(t *testing.T, a *answer, accept string) *Writer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.Header.Set("Accept", accept)
	w, err := New(a, r)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestEventsOfAnySizeComeWholeAndInOrder(t *testing.T) {
	for accept, form := range map[string]func(data string) string{
		mediaSSE:    func(data string) string { return "id: 7\nevent: delivery\ndata: " + data + "\n\n" },
		mediaNDJSON: func(data string) string { return data + "\n" },
	} {
		a := &answer{ResponseRecorder: httptest.NewRecorder()}
		w := writerTo(t, a, accept)
		want := ""
		for _, size := range []int{2, 1000, gather - 1, 3, gather, 2 * keep, 5} {
			data := strings.Repeat("x", size)
			want += form(data)
			if err := w.End(append(w.Begin("delivery", "7"), data...)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := a.Body.String(); got != want {
			t.Errorf("%s: %d bytes came, want %d", accept, len(got), len(want))
		}
		if len(a.deadlines) != a.writes || time.Until(a.deadlines[0]) > writeTimeout {
			t.Errorf("%s: %d writes have %d deadlines", accept, a.writes, len(a.deadlines))
		}
	}
}

func TestASmallEventWaitsForFlush(t *testing.T) {
	a := &answer{ResponseRecorder: httptest.NewRecorder()}
	w := writerTo(t, a, mediaSSE)
	if err := w.End(append(w.Begin("delivery", ""), `{}`...)); err != nil {
		t.Fatal(err)
	}
	if a.writes != 0 {
		t.Errorf("%d writes before Flush", a.writes)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := a.Body.String(); got != "event: delivery\ndata: {}\n\n" {
		t.Errorf("came: %q", got)
	}
}

func TestAStreamWithoutEventsHoldsNoBuffer(t *testing.T) {
	w := writerTo(t, &answer{ResponseRecorder: httptest.NewRecorder()}, mediaSSE)
	for range 3 {
		if err := w.Event("heartbeat", "1", []byte("{}")); err != nil {
			t.Fatal(err)
		}
		if w.out != nil {
			t.Fatal("it holds a buffer after its events were sent")
		}
	}
}

func TestReadersOfNDJSONSeeOfOtherEventsAnEmptyLine(t *testing.T) {
	a := &answer{ResponseRecorder: httptest.NewRecorder()}
	w := writerTo(t, a, mediaNDJSON)
	for range 2 { // the first begins the answer
		if err := w.Event("heartbeat", "1", []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.Body.Bytes(); !bytes.Equal(got, []byte("\n")) {
		t.Errorf("came: %q", got)
	}
}

func TestAConnectionThatBreaksEndsTheStream(t *testing.T) {
	broken := errors.New("broken pipe")
	w := writerTo(t, &answer{ResponseRecorder: httptest.NewRecorder(), broken: broken}, mediaSSE)
	if err := w.End(append(w.Begin("delivery", ""), make([]byte, gather)...)); !errors.Is(err, broken) {
		t.Errorf("a full buffer: %v", err)
	}
	if err := w.Event("heartbeat", "", nil); !errors.Is(err, broken) {
		t.Errorf("a heartbeat: %v", err)
	}
}
