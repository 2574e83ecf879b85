//go:build synctests

package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// A minute without Kafka: callers wait as long as they said and not longer, what
// waits is bounded by bytes, who comes when there is no room is told at once when
// to come again, and nothing needs a restart afterwards.
func TestKafkaIsAwayForAMinuteAndPublishersAreToldTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("outage", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), func(c *config.Config) { c.Kafka.PublishBuffer = 1 << 20 })
		publish := func(wait time.Duration, data string) (*posternv1.PublishResult, time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			began := time.Now()
			answer, err := b.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte(data)}}})
			if err != nil { // the client's own deadline came first
				return nil, time.Since(began)
			}
			return answer.Results[0], time.Since(began)
		}
		if r, _ := publish(time.Second, "before"); r == nil || r.Error != nil {
			t.Fatalf("before: %v", r)
		}

		// Kafka hears nothing and answers nothing for a minute.
		back := make(chan struct{})
		cluster.Fake.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
			cluster.Fake.KeepControl()
			cluster.Fake.SleepControl(func() { <-back })
			return nil, nil, false
		})
		var all sync.WaitGroup
		request, err := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1:7600/v1/topics/"+topic+"/events", strings.NewReader("waited"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Prefer", "wait=7")
		request.Header.Set("Idempotency-Key", "once")
		began := time.Now()
		response, err := b.web.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close() // it was read
		if took := time.Since(began); response.StatusCode != http.StatusGatewayTimeout || !strings.Contains(string(body), string(fault.OutcomeUnknown)) || took < 7*time.Second || took > 8*time.Second {
			t.Errorf("a wait of 7s: %d after %s: %s", response.StatusCode, took, body)
		}
		// Others wait longer than a minute and are stored in the end.
		stored := make([]*posternv1.PublishResult, 8)
		for i := range stored {
			all.Go(func() { stored[i], _ = publish(5*time.Minute, fmt.Sprint("patient-", i)) })
		}
		synctest.Wait()
		// The topic's half of the buffer fills; then the answer comes at once.
		for i := range 20 {
			all.Go(func() { publish(5*time.Minute, fmt.Sprint(i)+strings.Repeat("x", 64<<10)) })
		}
		synctest.Wait()
		r, took := publish(5*time.Minute, strings.Repeat("y", 64<<10))
		if f := wire.FromStatus(r.GetError()); r.GetError() == nil || f.Reason != fault.BufferFull || f.RetryAfter <= 0 || took > 100*time.Millisecond {
			t.Errorf("with the buffer full: %v after %s", r, took)
		}
		big, err := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1:7600/v1/topics/"+topic+"/events", strings.NewReader(strings.Repeat("y", 64<<10)))
		if err != nil {
			t.Fatal(err)
		}
		if response, err = b.web.Do(big); err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close() // the status is all
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") == "" {
			t.Errorf("with the buffer full by HTTP: %d %v", response.StatusCode, response.Header)
		}
		if records, bytes := b.gateway.producer.Buffered(); bytes > 1<<20 || records > 40 {
			t.Errorf("%d records of %d bytes wait", records, bytes)
		}
		time.Sleep(90*time.Second - time.Since(began))
		close(back)
		all.Wait()
		for i, r := range stored {
			if r == nil || r.Error != nil {
				t.Errorf("patient %d: %v", i, r)
			}
		}
		// The one that was told it is unknown is there; its retry is told so.
		again := request.Clone(t.Context())
		again.Body = io.NopCloser(strings.NewReader("waited"))
		if response, err = b.web.Do(again); err != nil {
			t.Fatal(err)
		}
		body, _ = io.ReadAll(response.Body)
		_ = response.Body.Close() // it was read
		if response.StatusCode != 200 || !strings.Contains(string(body), `"duplicate":true`) {
			t.Errorf("the retry: %d %s", response.StatusCode, body)
		}
		seen := map[string]int{}
		for _, r := range cluster.Read(topic) {
			seen[string(r.Value[:min(len(r.Value), 20)])]++
		}
		for _, want := range []string{"before", "waited", "patient-0", "patient-7"} {
			if seen[want] != 1 {
				t.Errorf("%s is stored %d times", want, seen[want])
			}
		}
		b.stop()
	})
}

// Brokers that are gone, rather than silent: connections break, dials are
// refused, for longer than a record's life by default; the buffer has its default size.
func TestBrokersAreGoneForAMinuteAndAHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic, other := cluster.Topic("gone", 1), cluster.Topic("gone-too", 1)
		var mu sync.Mutex
		gone := false
		var conns []net.Conn
		dial := cluster.Dial
		cluster.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if gone {
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
			c, err := dial(ctx, network, address)
			conns = append(conns, c)
			return c, err
		}
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		publish := func(wait time.Duration, topic, data string) *posternv1.PublishResult {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			answer, err := b.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte(data)}}})
			if err != nil {
				t.Errorf("%s: %v", data, err)
				return nil
			}
			return answer.Results[0]
		}
		if r := publish(time.Second, topic, "before"); r == nil || r.Error != nil {
			t.Fatalf("before: %v", r)
		}
		mu.Lock()
		gone = true
		for _, c := range conns {
			_ = c.Close() // as a broker that dies does
		}
		mu.Unlock()
		var all sync.WaitGroup
		stored := make([]*posternv1.PublishResult, 8)
		for i := range stored {
			all.Go(func() { stored[i] = publish(3*time.Minute, topic, fmt.Sprint("patient-", i)) })
		}
		synctest.Wait()
		if r := publish(5*time.Second, topic, "impatient"); r == nil || wire.FromStatus(r.GetError()).Reason != fault.OutcomeUnknown {
			t.Errorf("a short wait: %v", r)
		}
		// The topic's half of the default buffer fills, and the answer comes at once; another topic has its own.
		for range 600 {
			all.Go(func() { publish(100*time.Second, topic, strings.Repeat("x", 64<<10)) })
		}
		synctest.Wait()
		began := time.Now()
		if r := publish(time.Minute, topic, strings.Repeat("y", 64<<10)); r == nil || wire.FromStatus(r.GetError()).Reason != fault.BufferFull || time.Since(began) > 100*time.Millisecond {
			t.Errorf("with its half full: %v after %s", r, time.Since(began))
		}
		if _, bytes := b.gateway.producer.Buffered(); bytes > 33<<20 {
			t.Errorf("%d bytes wait", bytes)
		}
		var elsewhere *posternv1.PublishResult
		all.Go(func() { elsewhere = publish(3*time.Minute, other, "elsewhere") })
		time.Sleep(90 * time.Second)
		mu.Lock()
		gone = false
		mu.Unlock()
		all.Wait()
		for i, r := range append(stored, elsewhere) {
			if r == nil || r.Error != nil {
				t.Errorf("patient %d: %v", i, r)
			}
		}
		if r := publish(5*time.Second, topic, "after"); r == nil || r.Error != nil {
			t.Errorf("after: %v", r)
		}
		b.stop()
	})
}

// A caller that leaves takes nothing with it: its event is stored or not, and the
// producer goes on for everybody.
func TestCallersThatLeaveDoNotPoisonTheProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("leavers", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		cluster.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			cluster.Fake.KeepControl()
			cluster.Fake.SleepControl(func() { time.Sleep(50 * time.Millisecond) })
			return nil, nil, false
		})
		var all sync.WaitGroup
		acked := make([]bool, 200)
		for i := range acked {
			all.Go(func() {
				wait := time.Hour
				if i%2 == 0 {
					wait = time.Duration(i) * time.Millisecond
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				defer cancel()
				answer, err := b.publisher().Publish(ctx, &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: fmt.Append(nil, i)}}})
				acked[i] = err == nil && answer.Results[0].Error == nil
			})
		}
		all.Wait()
		stored := map[string]int{}
		for _, r := range cluster.Read(topic) {
			stored[string(r.Value)]++
		}
		for i, ok := range acked {
			if n := stored[fmt.Sprint(i)]; n > 1 || ok && n != 1 || i%2 == 1 && !ok {
				t.Errorf("event %d: acknowledged %t, stored %d times", i, ok, n)
			}
		}
		b.stop()
	})
}

// Slow clients cost a connection for a while and nothing else.
func TestAClientThatSendsSlowlyIsCutAndTheOthersAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("slow-clients", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		for name, c := range map[string]struct {
			sent   string
			within time.Duration
			answer string
		}{
			"headers that never end": {"POST /v1/topics/" + topic + "/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", 11 * time.Second, ""},
			"a body that never ends": {"POST /v1/topics/" + topic + "/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nabc", 61 * time.Second, string(fault.BodyTimeout)},
			"a publish through grpc-gateway that never ends": {
				"POST /v1/topics/" + topic + ":publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{", 61 * time.Second,
				string(fault.BodyTimeout),
			},
			"a gzip header that never ends": {
				"POST /v1/topics/" + topic + "/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b", 61 * time.Second,
				string(fault.BodyTimeout),
			},
			"a gzip header of lines that never ends": {
				"POST /v1/topics/" + topic + "/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\nAccept: application/x-ndjson\r\n" +
					"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b", 6 * time.Minute, "application/x-ndjson",
			},
			"a body of a topic that is no topic": {"POST /v1/topics/no+topic/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\na", 61 * time.Second, string(fault.InvalidTopic)},
			"a chunk that never ends": {
				"POST /v1/topics/" + topic + "/events HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 61 * time.Second,
				string(fault.BodyTimeout),
			},
			"nothing after a request": {"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 3 * time.Minute, "openapi"},
		} {
			conn, err := b.network.DialContext(t.Context(), "tcp", "127.0.0.1:7600")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, c.sent); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			text, err := io.ReadAll(bufio.NewReader(conn))
			if took := time.Since(began); err != nil || took > c.within || !strings.Contains(string(text), c.answer) {
				t.Errorf("%s: %q (%v) after %s", name, text, err, took)
			}
			_ = conn.Close() // it was cut
			if r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}); err != nil || r.Results[0].Error != nil {
				t.Errorf("after %s: %v %v", name, r, err)
			}
		}
		b.stop()
	})
}

// A body that drips in over HTTP/2 is cut like one over HTTP/1.1, keeps no more
// than what came of it, and the other streams of its connection go on.
func TestABodyThatDripsOverHTTP2IsCutAndItsConnectionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("dripping", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		h2 := new(http.Protocols)
		h2.SetUnencryptedHTTP2(true)
		dials := 0
		transport := &http.Transport{Protocols: h2, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return b.network.DialContext(ctx, network, address)
		}}
		post := func(path string, body io.Reader, headers ...string) (int, fault.Reason) {
			request, err := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1:7600/v1/topics/"+path, body)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(headers); i += 2 {
				request.Header.Set(headers[i], headers[i+1])
			}
			answer, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatalf("%s %v: %v", path, headers, err)
			}
			defer answer.Body.Close() //nolint:errcheck // it was read
			var problem struct{ Reason fault.Reason }
			if text, err := io.ReadAll(answer.Body); err != nil || json.Unmarshal(text, &problem) != nil {
				t.Errorf("%s %v: %s %v", path, headers, text, err)
			}
			return answer.StatusCode, problem.Reason
		}
		for name, c := range map[string]struct {
			path, begins string
			headers      []string
		}{
			"a payload":                 {topic + "/events", "a", nil},
			"a batch":                   {topic + "/events", "[", []string{"Content-Type", event.MediaBatch}},
			"lines answered as a whole": {topic + "/events", "{", []string{"Content-Type", event.MediaNDJSON}},
			"a publish through gRPC":    {topic + ":publish", "{", nil},
			"a file name in gzip":       {topic + "/events", "\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\xff", []string{"Content-Encoding", "gzip"}},
			"a frame that zstd skips":   {topic + "/events", "\x50\x2a\x4d\x18\xff\xff\x00\x00", []string{"Content-Encoding", "zstd"}},
		} {
			out, in := io.Pipe()
			var dripping sync.WaitGroup
			dripped := 0
			dripping.Go(func() {
				_, err := io.WriteString(in, c.begins)
				for err == nil { // a client that is never silent for long
					time.Sleep(time.Second)
					_, err = io.WriteString(in, " ")
					dripped++
				}
			})
			began := time.Now()
			status, reason := post(c.path, out, c.headers...)
			took := time.Since(began)
			if status != http.StatusRequestTimeout || reason != fault.BodyTimeout || took < 59*time.Second || took > 61*time.Second {
				t.Errorf("%s: %d %s after %s", name, status, reason, took)
			}
			dripping.Wait()
			if dripped > 65 {
				t.Errorf("%s: %d bytes were taken", name, dripped)
			}
			if status, reason := post(topic+"/events", strings.NewReader("x")); status != 200 {
				t.Errorf("after %s: %d %s", name, status, reason)
			}
		}
		if dials != 1 {
			t.Errorf("%d connections were needed, want 1", dials)
		}
		transport.CloseIdleConnections()
		b.stop()
	})
}

// A gRPC client that sends and reads no answer is read no further than its window
// and cut: its stream counts no more, and behind the answers that were sent it
// finds the reason.
func TestAPublishStreamThatNobodyReadsIsCutWithItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("unread-stream", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), func(c *config.Config) { c.Limits.PerIdentity.Streams = 1 })
		stream, err := b.publisher().PublishStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan int)
		go func() {
			n := 0
			for ; ; n++ {
				request := &posternv1.PublishRequest{Topic: "no topic", Events: []*posternv1.Event{{Data: make([]byte, 1000)}}}
				if err := stream.Send(&posternv1.PublishStreamRequest{Sequence: uint64(n + 1), Request: request}); err != nil {
					sent <- n
					return
				}
			}
		}()
		another := func() error {
			next, err := b.publisher().PublishStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := next.Send(&posternv1.PublishStreamRequest{Sequence: 1, Request: &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}}); err != nil {
				t.Fatal(err)
			}
			_ = next.CloseSend() // its error is Recv's
			for stored := false; ; {
				m, err := next.Recv()
				switch {
				case err == io.EOF && stored:
					return nil
				case err != nil:
					return err
				}
				stored = stored || len(m.Done) == 1 && m.Done[0].Error == nil
			}
		}
		time.Sleep(50 * time.Second)
		if err := another(); reasonOfStatus(err) != fault.TooManyStreams {
			t.Errorf("before its minute is over: %v", err)
		}
		time.Sleep(20 * time.Second)
		if err := another(); err != nil {
			t.Errorf("the stream that nobody read still counts: %v", err)
		}
		answered := 0
		for err == nil {
			var m *posternv1.PublishStreamResponse
			m, err = stream.Recv()
			answered += len(m.GetDone())
		}
		if got := reasonOfStatus(err); got != fault.SlowConsumer || answered == 0 {
			t.Errorf("%d answers, then the stream ended with %v", answered, err)
		}
		if n := <-sent; n > 10_000+16_000 { // its window, and gRPC's, which grows to 16 MiB
			t.Errorf("%d requests were taken of a client that reads nothing", n)
		}
		b.stop()
	})
}

// A client that sends lines and reads no answer is sent no more than its window,
// is read no further, and is cut; over HTTP/2 its connection goes on.
func TestAClientThatNeverReadsItsAnswersIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("unread", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		h2 := new(http.Protocols)
		h2.SetUnencryptedHTTP2(true)
		for name, transport := range map[string]*http.Transport{
			"HTTP/1.1": {DialContext: b.network.DialContext},
			"HTTP/2":   {DialContext: b.network.DialContext, Protocols: h2},
		} {
			out, in := io.Pipe()
			request, err := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1:7600/v1/topics/"+topic+"/events", out)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/x-ndjson")
			request.Header.Set("Accept", "application/x-ndjson")
			answer, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			began, sent := time.Now(), 0
			for time.Since(began) < 10*time.Minute {
				n, err := io.WriteString(in, strings.Repeat("no json\n", 1000))
				if sent += n; err != nil {
					break
				}
			}
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("%s: cut after %v", name, took)
			}
			if sent > 4<<20 { // its answers are some forty times as long
				t.Errorf("%s: %d bytes were read of a client that reads nothing", name, sent)
			}
			if _, err := io.Copy(io.Discard, answer.Body); err == nil {
				t.Errorf("%s: the answer ends as if it were whole", name)
			}
			_ = answer.Body.Close() // it was cut
			_ = in.Close()
			if r, err := b.publisher().Publish(t.Context(), &posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}}); err != nil || r.Results[0].Error != nil {
				t.Errorf("after %s: %v %v", name, r, err)
			}
			transport.CloseIdleConnections()
		}
		b.stop()
	})
}
