package delivery_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
)

// source is an event of a topic as it was when it died.
func source(topic, text string, offset int64) *event.Record {
	return &event.Record{
		Topic: topic, Partition: 0, Offset: offset, Timestamp: time.UnixMilli(1_700_000_000_000 + offset), Key: []byte(text[:1]), Value: []byte(text),
		Headers: []event.Header{{Name: "h", Value: []byte(text)}},
	}
}

// list gives all pages of a list.
func list(t *testing.T, letters *delivery.Letters, o delivery.Options, q delivery.LettersQuery) []delivery.DeadLetter {
	t.Helper()
	var all []delivery.DeadLetter
	if q.Size == 0 {
		q.Size = 100
	}
	for {
		page, err := letters.ListLetters(t.Context(), o, q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Letters) > q.Size {
			t.Errorf("a page of %d has %d", q.Size, len(page.Letters))
		}
		all = append(all, page.Letters...)
		if q.Token = page.Next; q.Token == "" {
			return all
		}
	}
}

func texts(letters []delivery.DeadLetter) string {
	var all []string
	for i := range letters {
		all = append(all, string(letters[i].Record.Value))
	}
	return strings.Join(all, " ")
}

func TestDeadLettersAreListedByEachFilter(t *testing.T) {
	c := brokertest.New(t)
	topic, other := c.Topic("orders", 2), c.Topic("bills", 1)
	o := options(c, "filters", topic, other)
	dead := c.Topic("filters.dead", 2)
	c.Put(
		delivery.Dead(dead, 0, source(topic, "a0", 5), o.Name, "rejected", "no such customer"),
		delivery.Dead(dead, 0, source(topic, "b1", 6), o.Name, "attempts_exhausted", "status 500"),
		delivery.Dead(dead, 0, source(topic, "x", 7), "somebody else's", "rejected", "none of ours"),
	)
	second := source(other, "a2", 1)
	c.Put(delivery.Dead(dead, 1, second, o.Name, "rejected", "ünknown 7"))
	letters := delivery.NewLetters(c.Client(), c.Name("_side."))
	oldest := list(t, letters, o, delivery.LettersQuery{OldestFirst: true})
	if got := texts(oldest); got != "a0 b1 a2" {
		t.Fatalf("the list is %s", got)
	}
	one := int32(1)
	zero := int32(0)
	six, seven := int64(6), int64(7)
	for name, row := range map[string]struct {
		filter delivery.LetterFilter
		want   string
	}{
		"all":        {delivery.LetterFilter{}, "a2 b1 a0"},
		"reason":     {delivery.LetterFilter{Reasons: []string{"rejected", "undecodable"}}, "a2 a0"},
		"key":        {delivery.LetterFilter{HasKey: true, Key: []byte("a")}, "a2 a0"},
		"text":       {delivery.LetterFilter{Text: "status"}, "b1"},
		"text, data": {delivery.LetterFilter{Text: "a2"}, "a2"},
		"origin":     {delivery.LetterFilter{OriginTopic: topic}, "b1 a0"},
		"partition":  {delivery.LetterFilter{OriginTopic: topic, OriginPartition: &one}, ""},
		"offsets":    {delivery.LetterFilter{OriginTopic: topic, OriginPartition: &zero, OriginFrom: &six, OriginTo: &seven}, "b1"},
		"after":      {delivery.LetterFilter{After: oldest[2].Written}, "a2"},
		"before":     {delivery.LetterFilter{Before: oldest[2].Written}, "b1 a0"},
		"positions":  {delivery.LetterFilter{Positions: []event.Position{oldest[0].At, oldest[2].At, {Topic: dead, Partition: 1, Offset: 900}}}, "a2 a0"},
		"nothing":    {delivery.LetterFilter{Text: "status", Reasons: []string{"rejected"}}, ""},
	} {
		if got := texts(list(t, letters, o, delivery.LettersQuery{Filter: row.filter})); got != row.want {
			t.Errorf("%s: the list is %q, want %q", name, got, row.want)
		}
	}
	if l := oldest[0]; l.Reason != "rejected" || l.Detail != "no such customer" || l.Attempts != 3 || l.Redrives != 0 || l.RedrivenBy != "" ||
		l.Origin != (event.Position{Topic: topic, Offset: 5}) || !l.OriginTimestamp.Equal(time.UnixMilli(1_700_000_000_005)) ||
		len(l.Record.Headers) != 1 || l.Record.Headers[0].Name != "h" || l.Record.Offset != 5 || l.Last.IsZero() || !l.First.IsZero() {
		t.Errorf("a dead letter is shown as %+v of %+v", l, l.Record)
	}
	if l := list(t, letters, o, delivery.LettersQuery{Summary: true}); len(l) != 3 || l[0].Record != nil || l[0].Reason != "rejected" {
		t.Errorf("the summary is %+v", l)
	}
}

func TestADeadLetterThatOthersWroteIsShownAsItIs(t *testing.T) {
	c := brokertest.New(t)
	o := options(c, "foreign", c.Topic("orders", 1))
	dead := c.Topic("foreign.dead", 1)
	c.Put(&event.Record{Topic: dead, Key: []byte("k"), Value: []byte("v"), Headers: []event.Header{{Name: "__connect.errors.topic", Value: []byte("t")}}})
	l := list(t, delivery.NewLetters(c.Client(), c.Name("_side.")), o, delivery.LettersQuery{})
	if len(l) != 1 || string(l[0].Record.Value) != "v" || len(l[0].Record.Headers) != 1 || l[0].Reason != "" || l[0].Origin.Topic != "" {
		t.Errorf("it is shown as %+v", l)
	}
}

func TestWithoutDeadLettersTheListIsEmpty(t *testing.T) {
	c := brokertest.New(t)
	o := options(c, "none", c.Topic("orders", 1))
	if l := list(t, delivery.NewLetters(c.Client(), c.Name("_side.")), o, delivery.LettersQuery{}); len(l) != 0 {
		t.Errorf("the list is %+v", l)
	}
}

func TestPagesOfDeadLettersAreCompleteAndStableWhileNewOnesArrive(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "pages", topic)
	dead := c.Topic("pages.dead", 3)
	const many = 300
	n := 0
	more := func(count int) {
		var all []*event.Record
		for range count {
			all = append(all, delivery.Dead(dead, int32(n%3), source(topic, fmt.Sprint("e", n), int64(n)), o.Name, "rejected", ""))
			n++
		}
		c.Put(all...)
	}
	for range many / 10 { // spread over time
		more(10)
	}
	letters := delivery.NewLetters(c.Client(), c.Name("_side."))
	for _, oldestFirst := range []bool{false, true} {
		had := n
		q := delivery.LettersQuery{Size: 7, OldestFirst: oldestFirst}
		var all []delivery.DeadLetter
		for pages := 0; ; pages++ {
			page, err := letters.ListLetters(t.Context(), o, q)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, page.Letters...)
			if pages < 20 {
				more(3)
			}
			if q.Token = page.Next; q.Token == "" {
				break
			}
		}
		seen := map[int64]int{}
		for i := range all {
			seen[all[i].Origin.Offset]++
			if i == 0 {
				continue
			}
			a, b := all[i-1].Written, all[i].Written
			if oldestFirst && a.After(b) || !oldestFirst && a.Before(b) {
				t.Errorf("letter %d of %s comes after one of %s", i, b, a)
			}
		}
		for offset := range int64(had) {
			if seen[offset] != 1 {
				t.Errorf("oldest first %t: letter %d is listed %d times", oldestFirst, offset, seen[offset])
			}
		}
		if !oldestFirst && len(all) != had {
			t.Errorf("%d letters are listed of the %d that there were", len(all), had)
		}
	}
	if _, err := letters.ListLetters(t.Context(), o, delivery.LettersQuery{Size: 1, Token: "AQ"}); err == nil {
		t.Error("a damaged token is taken")
	}
}

func TestPagesOfLargeDeadLettersStayWithinTheirBytes(t *testing.T) {
	c := brokertest.New(t)
	topic := c.Topic("orders", 1)
	o := options(c, "large", topic)
	dead := c.Topic("large.dead", 2)
	for n := range 40 {
		r := source(topic, fmt.Sprint("e", n), int64(n))
		r.Value = make([]byte, 900<<10)
		c.Put(delivery.Dead(dead, int32(n%2), r, o.Name, "rejected", ""))
	}
	letters := delivery.NewLetters(c.Client(), c.Name("_side."))
	var offsets []int64
	q := delivery.LettersQuery{Size: 100}
	for {
		page, err := letters.ListLetters(t.Context(), o, q)
		if err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for _, l := range page.Letters {
			bytes += len(l.Record.Value)
			offsets = append(offsets, l.Origin.Offset)
		}
		if bytes > 4<<20 {
			t.Errorf("a page weighs %d bytes", bytes)
		}
		if q.Token = page.Next; q.Token == "" {
			break
		}
	}
	slices.Sort(offsets)
	if len(slices.Compact(offsets)) != 40 {
		t.Errorf("the pages have letters %d", offsets)
	}
}
