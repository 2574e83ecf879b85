package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

// put writes n events to each of keys, in rounds, to partition 0.
func put(cluster *brokertest.Cluster, topic string, n int, keys ...string) {
	var records []*event.Record
	for i := range n {
		for _, k := range keys {
			records = append(records, &event.Record{Topic: topic, Key: []byte(k), Value: fmt.Appendf(nil, "%s%d", k, i)})
		}
	}
	cluster.Put(records...)
}

func TestNackedKeyWaitsWhileAllOtherKeysFlow(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("flow", 1)
	keys := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	put(cluster, topic, 50, keys...)
	s := g.subscribe(inline(cluster.Name("flow-sub"), topic))
	next := map[string]int{}
	attempts := int32(0)
	failing := true
	for done := 0; done < 50*len(keys); {
		d := s.next()
		key, data := string(d.Event.Key), string(d.Event.Data)
		if want := fmt.Sprintf("%s%d", key, next[key]); data != want {
			t.Fatalf("%s came where %s was due", data, want)
		}
		if key == "a" && failing {
			attempts++
			if d.Attempt != attempts || data != "a0" {
				t.Fatalf("attempt %d of %s, want %d of a0", d.Attempt, data, attempts)
			}
			if attempts > 1 && d.GetLastFailure().GetMessage() != "not today" {
				t.Errorf("the failure before is told as %q", d.GetLastFailure().GetMessage())
			}
			s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Nack{Nack: &posternv1.Nack{Delay: durationpb.New(0), Reason: "not today"}}})
			// The other keys come to their end first: only then does a stop failing.
			if done == 50*(len(keys)-1) {
				failing = false
			}
			if attempts == 9 { // one more would be its last
				failing = false
			}
			continue
		}
		next[key]++
		done++
		s.ack(d)
	}
	s.close()
}

func TestSixtyFourPublishersFlowToASubscriberThatNacksOneKey(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	topic := cluster.Topic("crowd", 4)
	open := inline(cluster.Name("crowd-sub"), topic)
	open.Inline.Retry = &posternv1.RetryPolicy{MaxAttempts: 1000, MinBackoff: durationpb.New(time.Millisecond), MaxBackoff: durationpb.New(5 * time.Millisecond)}
	s := g.subscribe(open)
	const each = 10
	var publishers sync.WaitGroup
	for c := range 64 {
		publishers.Go(func() {
			for i := range each {
				if a := g.do("POST", "/v1/topics/"+topic+"/events", fmt.Sprint(i), "Postern-Key", fmt.Sprint("client-", c)); a.Status != 200 {
					t.Errorf("client %d: %d %s", c, a.Status, a.Body)
					return
				}
			}
		})
	}
	next := map[string]int{}
	bad := 0
	for done := 0; done < 63*each; {
		d := s.next()
		key := string(d.Event.Key)
		if key == "client-7" {
			bad++
			if string(d.Event.Data) != "0" {
				t.Fatalf("event %s of the failing key came before its first was settled", d.Event.Data)
			}
			s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Nack{Nack: &posternv1.Nack{}}})
			continue
		}
		if want := fmt.Sprint(next[key]); string(d.Event.Data) != want {
			t.Fatalf("%s: event %s came where %s was due", key, d.Event.Data, want)
		}
		next[key]++
		done++
		s.ack(d)
	}
	publishers.Wait()
	if bad == 0 {
		t.Error("the failing key was never delivered")
	}
	s.cancel()
}

func TestAcksSurviveARestartAndAreNotDeliveredAgain(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("restart", 1)
	group := cluster.Name("restart-sub")
	put(cluster, topic, 30, "a", "b", "c", "d")
	g := start(t, cluster, nil)
	s := g.subscribe(inline(group, topic))
	acked := map[string]bool{}
	var open []*posternv1.Delivery
	// a's first event stays unsettled: the offset cannot move, the others' acks ride beside it.
	for len(acked) < 3*30 {
		d := s.next()
		if string(d.Event.Key) == "a" {
			open = append(open, d)
			continue
		}
		acked[string(d.Event.Data)] = true
		s.ack(d)
		if r := s.receipt(); len(r.Committed) != 1 || r.Committed[0] != d.DeliveryId {
			t.Fatalf("the receipt is %v", r)
		}
	}
	if len(open) != 1 {
		t.Fatalf("%d events of the open key were lent", len(open))
	}
	if offset, metadata := cluster.Committed(group, topic, 0); offset != 0 || !strings.HasPrefix(metadata, "p1.") {
		t.Fatalf("committed offset %d with metadata %q", offset, metadata)
	}
	s.cancel()
	g.stop()

	again := start(t, cluster, nil)
	s = again.subscribe(inline(group, topic))
	for i := range 30 {
		d := s.next()
		if want := fmt.Sprintf("a%d", i); string(d.Event.Data) != want {
			t.Fatalf("%s came where %s was due (acknowledged before: %v)", d.Event.Data, want, acked[string(d.Event.Data)])
		}
		if i == 0 && d.Attempt != 2 {
			t.Errorf("the first event's attempt is %d after the restart, want 2", d.Attempt)
		}
		s.ack(d)
		s.receipt()
	}
	if offset, metadata := cluster.Committed(group, topic, 0); offset != 120 || metadata != "" {
		t.Errorf("at the end offset %d with metadata %q is committed", offset, metadata)
	}
	s.close()
}

func TestRejectedAndExhaustedEventsAreDeadLetteredWithTheirEvidence(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	name := cluster.Name("dead-sub")
	cluster.Put(&event.Record{Topic: topic, Key: []byte("k\xff"), Value: []byte("poison"), Headers: []event.Header{{Name: "h", Value: []byte{0}}, {Name: "h"}}},
		&event.Record{Topic: topic, Key: []byte("k\xff"), Value: []byte("hopeless")},
		&event.Record{Topic: topic, Key: []byte("k\xff"), Value: []byte("good")})
	g := start(t, cluster, nil)
	open := inline(name, topic)
	open.Inline.DeadLetter = &posternv1.DeadLetter{Topic: cluster.Name("graveyard")}
	open.Inline.Retry = &posternv1.RetryPolicy{MaxAttempts: 2, MinBackoff: durationpb.New(time.Millisecond), MaxBackoff: durationpb.New(time.Millisecond)}
	s := g.subscribe(open)
	d := s.next()
	s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Reject{Reject: &posternv1.Reject{Reason: "cannot be read"}}})
	for range 2 {
		d = s.next()
		if string(d.Event.Data) != "hopeless" {
			t.Fatalf("%s came", d.Event.Data)
		}
		s.settle(&posternv1.Settlement{DeliveryId: d.DeliveryId, Action: &posternv1.Settlement_Nack{Nack: &posternv1.Nack{Reason: "no"}}})
	}
	d = s.next() // only now: its key waited for the dead letters
	if string(d.Event.Data) != "good" {
		t.Fatalf("%s came", d.Event.Data)
	}
	letters := cluster.Read(open.Inline.DeadLetter.Topic)
	if len(letters) != 2 {
		t.Fatalf("%d dead letters when the key went on", len(letters))
	}
	for i, want := range []struct{ value, reason, detail, attempts, offset string }{
		{"poison", "rejected", "cannot be read", "1", "0"}, {"hopeless", "attempts_exhausted", "no", "2", "1"},
	} {
		l := letters[slices.IndexFunc(letters, func(r *event.Record) bool { return string(r.Value) == want.value })]
		for name, value := range map[string]string{
			event.DeadLetterReason: want.reason, event.DeadLetterDetail: want.detail, event.DeadLetterAttempts: want.attempts,
			event.DeadLetterTopic: topic, event.DeadLetterPartition: "0", event.DeadLetterOffset: want.offset, event.DeadLetterSubscription: name,
		} {
			if got := header(l, name); got != value {
				t.Errorf("%s of %s is %q, want %q", name, want.value, got, value)
			}
		}
		if string(l.Key) != "k\xff" {
			t.Errorf("the key became %q", l.Key)
		}
		if i == 0 && (l.Headers[0].Name != "h" || string(l.Headers[0].Value) != "\x00" || l.Headers[1].Value != nil) {
			t.Errorf("its own headers became %v", l.Headers[:2])
		}
	}
	s.ack(d)
	s.receipt()
	s.close()
}

func TestLeaseThatRunsOutIsDeliveredAgainAndTheLateAckIsTold(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("lease", 1)
	put(cluster, topic, 1, "a")
	g := start(t, cluster, nil)
	open := inline(cluster.Name("lease-sub"), topic)
	open.Lease = durationpb.New(time.Second)
	open.Inline.Retry = &posternv1.RetryPolicy{MinBackoff: durationpb.New(time.Millisecond)}
	s := g.subscribe(open)
	first := s.next()
	second := s.next()
	if second.Attempt != 2 || second.DeliveryId == first.DeliveryId {
		t.Fatalf("the second delivery is %v", second)
	}
	select {
	case r := <-s.revoked:
		if r.DeliveryIds[0] != first.DeliveryId {
			t.Errorf("revoked %v", r)
		}
	case <-time.After(patience):
		t.Error("the client was not told that its lease ran out")
	}
	s.ack(first)
	if r := s.receipt(); len(r.Results) != 1 || r.Results[0].Outcome != posternv1.Outcome_OUTCOME_LEASE_EXPIRED {
		t.Errorf("the late ack got %v", r)
	}
	s.settle(&posternv1.Settlement{DeliveryId: second.DeliveryId, Action: &posternv1.Settlement_Extend{Extend: &posternv1.Extend{Lease: durationpb.New(time.Minute)}}})
	if r := s.receipt(); len(r.Results) != 1 || time.Until(r.Results[0].GetLeaseExpires().AsTime()) < 50*time.Second {
		t.Errorf("the extension got %v", r)
	}
	s.ack(second)
	s.receipt()
	s.ack(second)
	if r := s.receipt(); len(r.Results) != 1 || r.Results[0].Outcome != posternv1.Outcome_OUTCOME_STALE {
		t.Errorf("the second ack got %v", r)
	}
	s.settle(&posternv1.Settlement{DeliveryId: second.DeliveryId + 1<<30}, &posternv1.Settlement{DeliveryId: second.DeliveryId ^ 1<<60})
	r := s.receipt()
	if len(r.Results) != 2 || r.Results[0].Outcome != posternv1.Outcome_OUTCOME_UNKNOWN_ID || r.Results[1].Outcome != posternv1.Outcome_OUTCOME_WRONG_INSTANCE || r.Results[1].Owner == "" {
		t.Errorf("foreign ids got %v", r)
	}
	s.close()
}

func TestWindowIsNeverExceededAndCanBeChanged(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("window", 2)
	keys := make([]string, 50)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	put(cluster, topic, 4, keys...)
	g := start(t, cluster, nil)
	open := inline(cluster.Name("window-sub"), topic)
	open.Window = &posternv1.Window{MaxMessages: 3}
	s := g.subscribe(open)
	held := []*posternv1.Delivery{s.next(), s.next(), s.next()}
	if err := s.raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Ping{Ping: &posternv1.Ping{Nonce: 9}}}); err != nil {
		t.Fatal(err)
	}
	select {
	case beat := <-s.beats: // frames come in order: what was lent before the ping is here
		if beat.Nonce != 9 || beat.Outstanding != 3 {
			t.Errorf("the ping was answered by %v", beat)
		}
	case <-time.After(patience):
		t.Fatal("the ping was not answered")
	}
	if len(s.events) != 0 {
		t.Fatal("more than the window came")
	}
	s.ack(held[0])
	s.receipt()
	held = append(held, s.next())
	if err := s.raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Window{Window: &posternv1.Window{MaxMessages: 10}}}); err != nil {
		t.Fatal(err)
	}
	for range 7 {
		held = append(held, s.next())
	}
	s.ack(held[1:]...)
	s.close()
}

func TestSecondGatewayTakesOverWhatTheFirstHadAndNoEventIsLostOrOutOfOrder(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("two", 4)
	group := cluster.Name("two-sub")
	var records []*event.Record
	const n = 400
	for i := range n {
		k := i % 20
		records = append(records, &event.Record{Topic: topic, Partition: int32(k % 4), Key: fmt.Append(nil, "k", k), Value: fmt.Append(nil, i/20)})
	}
	cluster.Put(records[:n/2]...)
	first, second := start(t, cluster, nil), start(t, cluster, nil)
	a := first.subscribe(inline(group, topic))
	next := map[string]int{}
	done := 0
	take := func(s *stream, d *posternv1.Delivery) {
		t.Helper()
		key := string(d.Event.Key)
		var at int
		if _, err := fmt.Sscan(string(d.Event.Data), &at); err != nil {
			t.Fatal(err)
		}
		if at > next[key] {
			t.Fatalf("%s: %d came before %d was settled", key, at, next[key])
		}
		if at == next[key] {
			next[key]++
			done++
		}
		s.ack(d)
	}
	for done < 100 {
		take(a, a.next())
	}
	b := second.subscribe(inline(group, topic)) // partitions move while events flow
	joined := make(chan struct{})
	go func() { // what is read at once would be settled before the second one is there
		defer close(joined)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for end := time.After(patience); !shared(members(t, second, group), 2, 2); {
			select {
			case <-ticker.C:
			case <-end:
				return
			}
		}
	}()
	seenB := 0
	stopA := false
	for done < n {
		select {
		case <-joined:
			joined = nil
			cluster.Put(records[n/2:]...)
		case d := <-a.events:
			take(a, d)
		case d := <-b.events:
			seenB++
			take(b, d)
		case err := <-a.ended:
			if !stopA {
				t.Fatalf("the first stream ended: %v", err)
			}
			a.ended = nil
		case <-time.After(patience):
			t.Fatalf("%d of %d events were settled, then none came", done, n)
		}
		if done >= 250 && !stopA {
			stopA = true
			go first.stop() // a rolling restart
		}
	}
	if seenB == 0 {
		t.Error("the second gateway got nothing")
	}
	b.close()
}

func TestBrokenStreamsLeasesAreTakenOverByItsToken(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("resume", 1)
	put(cluster, topic, 1, "a", "b", "c")
	g := start(t, cluster, nil)
	open := inline(cluster.Name("resume-sub"), topic)
	s := g.subscribe(open)
	var ids []uint64
	for range 3 {
		ids = append(ids, s.next().DeliveryId)
	}
	s.cancel()
	if err := <-s.ended; err == nil {
		t.Fatal("the stream goes on")
	}
	open.ResumeToken = s.opened.ResumeToken
	again := g.subscribe(open)
	resumed := slices.Clone(again.opened.ResumedDeliveryIds)
	slices.Sort(resumed)
	slices.Sort(ids)
	if !slices.Equal(resumed, ids) {
		t.Fatalf("resumed %v, had %v", resumed, ids)
	}
	again.ack(again.next(), again.next(), again.next())
	committed := 0
	for committed < 3 {
		committed += len(again.receipt().Committed)
	}
	again.close()
}

func TestBrokenStreamsEventsComeAgainToAnotherWithoutTheToken(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("broken", 1)
	put(cluster, topic, 1, "a")
	g := start(t, cluster, nil)
	open := inline(cluster.Name("broken-sub"), topic)
	s := g.subscribe(open)
	s.next()
	other := g.subscribe(open)
	s.close() // an orderly end keeps nothing back
	if d := other.next(); d.Attempt != 2 {
		t.Errorf("attempt %d", d.Attempt)
	} else {
		other.ack(d)
	}
	other.close()
}

func TestPullAndSettleOverHTTP(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("pull", 1)
	name := strings.ReplaceAll(cluster.Name("pull-sub"), "_", "-")
	put(cluster, topic, 1, "a", "b", "c")
	g := start(t, cluster, func(c *config.Config) {
		c.Subscriptions = []subscription.Spec{{Name: name, Topics: []string{topic}, Retry: delivery.Retry{MinBackoff: time.Millisecond}}}
	})
	var pulled struct {
		Deliveries []struct {
			DeliveryID string `json:"delivery_id"`
			Attempt    int
			Event      struct{ Data []byte }
		}
		Instance string
	}
	pull := func(body string) {
		t.Helper()
		pulled.Deliveries = nil
		a := g.do("POST", "/v1/subscriptions/"+name+":pull", body, "Content-Type", "application/json")
		if err := json.Unmarshal([]byte(a.Body), &pulled); err != nil || a.Status != 200 {
			t.Fatalf("%d %s: %v", a.Status, a.Body, err)
		}
		cookies, err := http.ParseSetCookie(a.Header.Get("Set-Cookie"))
		if err != nil || cookies.Value != g.gateway.Instance() || a.Header.Get("Postern-Instance") != g.gateway.Instance() {
			t.Fatalf("the answer names instance %q, cookie %v (%v)", a.Header.Get("Postern-Instance"), cookies, err)
		}
	}
	pull(`{"max_messages":10,"wait":"30s"}`)
	for len(pulled.Deliveries) == 0 {
		pull(`{"max_messages":10,"wait":"30s"}`)
	}
	got := len(pulled.Deliveries)
	first := pulled.Deliveries[0]
	a := g.do("POST", "/v1/subscriptions/"+name+":settle", fmt.Sprintf(`{"settlements":[{"delivery_id":%q,"nack":{"delay":"0s"}}],"confirm":"CONFIRM_ON_COMMIT"}`, first.DeliveryID))
	if a.Status != 200 || !strings.Contains(a.Body, "OUTCOME_COMMITTED") {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	for _, d := range pulled.Deliveries[1:] {
		if a := g.do("POST", "/v1/subscriptions/"+name+":settle", fmt.Sprintf(`{"acks":[%q]}`, d.DeliveryID)); !strings.Contains(a.Body, "OUTCOME_ACCEPTED") {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
	for done := got - 1; done < 3; {
		pull(`{"max_messages":10,"wait":"30s"}`)
		for _, d := range pulled.Deliveries {
			if again := string(d.Event.Data) == string(first.Event.Data); again != (d.Attempt == 2) {
				t.Errorf("attempt %d of %s", d.Attempt, d.Event.Data)
			}
			if a := g.do("POST", "/v1/subscriptions/"+name+":settle", fmt.Sprintf(`{"acks":[%q]}`, d.DeliveryID)); a.Status != 200 {
				t.Fatal(a.Body)
			}
			done++
		}
	}
}

// lines opens a streaming GET and gives its lines.
func (r *running) lines(path string, headers ...string) (lines <-chan string, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	request, err := http.NewRequestWithContext(ctx, "GET", r.url(path), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request) //nolint:bodyclose // the reading goroutine closes it
	if err != nil {
		r.t.Fatal(err)
	}
	if response.StatusCode != 200 {
		b, _ := io.ReadAll(response.Body)
		r.t.Fatalf("%d %s", response.StatusCode, b)
	}
	out := make(chan string, 10_000)
	go func() {
		defer close(out)
		defer response.Body.Close() //nolint:errcheck // its end is the test's
		scan := bufio.NewScanner(response.Body)
		scan.Buffer(nil, 4<<20)
		for scan.Scan() {
			out <- scan.Text()
		}
	}()
	return out, cancel
}

func nextLine(t *testing.T, lines <-chan string, prefix string) string {
	t.Helper()
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				t.Fatal("the answer ended")
			}
			if rest, ok := strings.CutPrefix(l, prefix); ok && rest != "" {
				return rest
			}
		case <-time.After(patience):
			t.Fatal("no line came")
		}
	}
}

func TestTailResumesAtAnotherGatewayWithoutAGapOrARepeat(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("tail", 3)
	first, second := start(t, cluster, nil), start(t, cluster, nil)
	seen := map[string]int{}
	var records []*event.Record
	for i := range 300 {
		records = append(records, &event.Record{Topic: topic, Partition: int32(i % 3), Value: fmt.Append(nil, "v", i)})
	}
	cluster.Put(records...)
	cursor := ""
	read := func(g *running, n int, headers ...string) {
		t.Helper()
		lines, stop := g.lines("/v1/topics/"+topic+"/events?from=earliest", append([]string{"Accept", "text/event-stream"}, headers...)...)
		defer stop()
		for range n {
			// id, event, data: the id of a heartbeat counts too, its data does not.
			for {
				cursor = nextLine(t, lines, "id: ")
				name, data := nextLine(t, lines, "event: "), nextLine(t, lines, "data: ")
				if name != "event" {
					continue
				}
				var e struct{ Event struct{ Value string } }
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Fatal(err)
				}
				seen[e.Event.Value]++
				break
			}
		}
	}
	read(first, 100)
	read(second, 150, "Last-Event-ID", cursor)
	read(first, 50, "Last-Event-ID", cursor)
	if len(seen) != 300 {
		t.Errorf("%d different events were seen", len(seen))
	}
	for v, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times", v, n)
		}
	}
}

func TestServerSentDeliveriesAreSettledByID(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("sse", 1)
	name := cluster.Name("sse-sub")
	cluster.Put(&event.Record{Topic: topic, Key: []byte{0xff}, Value: []byte(`{"a":1}`), Headers: []event.Header{
		{Name: "ce_specversion", Value: []byte("1.0")},
		{Name: "ce_id", Value: []byte("7")},
		{Name: "ce_source", Value: []byte("/s")},
		{Name: "ce_type", Value: []byte("t")},
		{Name: "content-type", Value: []byte("application/json")},
	}})
	g := start(t, cluster, nil)
	lines, stop := g.lines("/v1/subscriptions/"+name+"/events?topic="+topic, "Accept", "text/event-stream")
	for nextLine(t, lines, "event: ") != "delivery" {
		continue
	}
	var d struct {
		DeliveryID string `json:"delivery_id"`
		Event      struct {
			ID   string
			Data json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(nextLine(t, lines, "data: ")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Event.ID != "7" || string(d.Event.Data) != `{"a":1}` {
		t.Errorf("delivered %+v", d)
	}
	a := g.do("POST", "/v1/subscriptions/"+name+":settle", fmt.Sprintf(`{"acks":[%q],"confirm":"CONFIRM_ON_COMMIT"}`, d.DeliveryID))
	if !strings.Contains(a.Body, "OUTCOME_COMMITTED") {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	stop()
}

func TestNewSubscriptionsFirstPositionIsWrittenBeforeAnythingIsRead(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("first", 2)
	group := cluster.Name("first-sub")
	put(cluster, topic, 1, "old")
	g := start(t, cluster, nil)
	open := inline(group, topic)
	open.Inline.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
	s := g.subscribe(open)
	s.cancel()
	g.stop() // before a single ack
	put(cluster, topic, 1, "between")
	g = start(t, cluster, nil)
	s = g.subscribe(open)
	if d := s.next(); string(d.Event.Data) != "between0" {
		t.Errorf("%s came first: what was published between the two runs is lost", d.Event.Data)
	} else {
		s.ack(d)
	}
	s.close()
}

func TestOpenThatDiffersIsRefused(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("differs", 1)
	g := start(t, cluster, nil)
	open := inline(cluster.Name("differs-sub"), topic)
	s := g.subscribe(open)
	open.Inline.Order = posternv1.Order_ORDER_NONE
	raw, err := g.subscriber().Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Recv(); reasonOfStatus(err) != fault.SubscriptionMismatch {
		t.Errorf("got %v", err)
	}
	s.close()
}

func TestStreamThatDoesNotBeginWithOpenIsRefused(t *testing.T) {
	cluster := brokertest.New(t)
	g := start(t, cluster, nil)
	raw, err := g.subscriber().Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Ping{Ping: &posternv1.Ping{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Recv(); reasonOfStatus(err) != fault.ProtocolViolation {
		t.Errorf("got %v", err)
	}
}

func TestDrainTellsTheClientTakesItsAcksAndThenEndsTheStream(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("drain", 1)
	group := cluster.Name("drain-sub")
	put(cluster, topic, 1, "a")
	g := start(t, cluster, nil)
	s := g.subscribe(inline(group, topic))
	d := s.next()
	stopped := make(chan struct{})
	go func() { defer close(stopped); g.stop() }()
	select {
	case <-s.drained:
	case <-time.After(patience):
		t.Fatal("no drain notice came")
	}
	put(cluster, topic, 1, "b") // not lent any more
	s.ack(d)
	if r := s.receipt(); len(r.Committed) != 1 {
		t.Errorf("the ack during the drain got %v", r)
	}
	<-stopped
	if err := <-s.ended; reasonOfStatus(err) != fault.ShuttingDown {
		t.Errorf("the stream ended with %v", err)
	}
	if offset, _ := cluster.Committed(group, topic, 0); offset != 1 {
		t.Errorf("offset %d is committed", offset)
	}
	if len(s.events) != 0 {
		t.Error("an event was lent during the drain")
	}
}
