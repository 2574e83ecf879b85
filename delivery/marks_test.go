package delivery

import (
	"encoding/json"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-dev/postern/event"
)

func TestMarksTellOfEachLetterWhatWasDoneLast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m marks
		redriven, purged := map[int64]string{}, map[int64]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "marks") {
			job := rapid.SampledFrom([]string{"j1", "j2", "j3"}).Draw(t, "job")
			purge := rapid.IntRange(0, 3).Draw(t, "purge") == 0
			var spans []span
			for _, o := range rapid.SliceOfN(rapid.Int64Range(0, 60), 1, 12).Draw(t, "offsets") {
				spans = addSpan(spans, span{o, o + 1})
				if purge {
					purged[o] = true
				} else {
					redriven[o] = job
				}
			}
			r, err := markRecord("marks", mark{Topic: "id", Partition: 2, Job: job, Purged: purge}, spans)
			if err != nil {
				t.Fatal(err)
			}
			got, runs, err := decodeMark(r.Value)
			if err != nil {
				t.Fatal(err)
			}
			m.add(got.Partition, got.Job, got.Purged, runs)
		}
		for o := range int64(62) {
			if job, gone := m.of(2, o); job != redriven[o] || gone != purged[o] {
				t.Errorf("letter %d is told to be redriven by %q and purged %t, and it was %q, %t", o, job, gone, redriven[o], purged[o])
			}
		}
		p := m.by[2]
		for i := 1; i < len(p.redriven); i++ {
			if p.redriven[i-1].to > p.redriven[i].from {
				t.Errorf("runs overlap: %v", p.redriven)
			}
		}
		for i := 1; i < len(p.purged); i++ {
			if p.purged[i-1].to >= p.purged[i].from {
				t.Errorf("runs are not joined: %v", p.purged)
			}
		}
	})
}

func TestMarksOfAllLettersAreOneRun(t *testing.T) {
	var m marks
	for o := int64(0); o < 100_000; o += 500 {
		m.add(0, "j", false, []span{{o, o + 500}})
	}
	if n := m.count(); n != 1 {
		t.Errorf("they are %d runs", n)
	}
}

func FuzzDecodeMark(f *testing.F) {
	f.Add([]byte(`{"format":1,"topic_id":"x","partition":0,"job":"j","runs":[0,5,2,1]}`))
	f.Add([]byte(`{"format":1,"job":"j","runs":[9223372036854775807,1]}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		_, spans, err := decodeMark(value)
		if err != nil {
			return
		}
		for i, s := range spans {
			if s.from < 0 || s.to <= s.from || i > 0 && s.from < spans[i-1].to {
				t.Errorf("the runs are %v", spans)
			}
		}
	})
}

func FuzzDecodeJob(f *testing.F) {
	s := storedJob{ID: "id", Subscription: "s", State: JobRunning, Asked: storedAsk{Kind: JobRedrive}, Planned: true, Plan: []storedSlice{{"t", 1, 2, 3}}}
	b, err := s.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := decodeJob("id", value)
		if err != nil {
			return
		}
		if s.At > len(s.Plan) || s.At < 0 {
			t.Errorf("slice %d of %d", s.At, len(s.Plan))
		}
		s.job()
	})
}

func FuzzLetterToken(f *testing.F) {
	q := LettersQuery{Size: 5}
	t0 := letterToken{topic: "id", group: 1, began: true, at: map[int32]int64{3: 4, 900: 1 << 40}}
	f.Add(t0.encode(&q))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := parseLetterToken(text, "id", &q)
		if err != nil || text == "" {
			return
		}
		for p, at := range token.at {
			if p < 0 || at < 0 {
				t.Errorf("partition %d from %d", p, at)
			}
		}
		if again, err := parseLetterToken(token.encode(&q), "id", &q); err != nil || len(again.at) != len(token.at) {
			t.Errorf("%+v became %+v, %v", token, again, err)
		}
	})
}

func TestTheTokenOfTheLargestGroupFitsItsField(t *testing.T) {
	token := letterToken{topic: "id", group: 20, began: true, at: map[int32]int64{}}
	for p := range int32(maxColumns) {
		token.at[20*maxColumns+p] = 1 << 34 // more than a dead-letter topic ever has
	}
	if n := len(token.encode(&LettersQuery{})); n > 4096 {
		t.Errorf("it takes %d characters", n)
	}
}

func FuzzLetterOf(f *testing.F) {
	f.Add(event.DeadLetterVersion, []byte("1"), event.DeadLetterOffset, []byte("-5"), event.RedriveCount, []byte("99999999999"))
	f.Fuzz(func(t *testing.T, n1 string, v1 []byte, n2 string, v2 []byte, n3 string, v3 []byte) {
		r := &event.Record{Topic: "dead", Headers: []event.Header{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n3, Value: v3}}}
		l, _ := letterOf(r)
		if l.Redrives < 0 || l.Redrives > maxRedriveCount || l.Attempts < 0 || l.hasOrigin() && (l.Origin.Offset < 0 || l.Origin.Partition < 0) {
			t.Errorf("%v is read as %+v", r.Headers, l)
		}
		if _, err := json.Marshal(l.Origin); err != nil {
			t.Error(err)
		}
	})
}
