package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// knative/eventing#6984: what was not delivered when a subscription was deleted was
// lost to the one made again under its name.
func TestPeer_ASubscriptionDeletedAndMadeAgainGoesOnWhereItStood(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	name := cluster.Name("mail")
	again := &posternv1.Subscription{Name: name, Topics: []string{topic}}
	put(cluster, topic, 1, "a", "b", "c")
	g.create(again)
	s := g.subscribe(&posternv1.Open{Subscription: name, Window: &posternv1.Window{MaxMessages: 1}})
	s.ack(s.next())
	eventually(t, "the ack's being in Kafka", func() bool { at, _ := cluster.Committed(name, topic, 0); return at == 1 })
	if _, err := g.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if reason := reasonOf(t, err); reason != fault.SubscriptionDeleted {
			t.Errorf("the stream ended with %s", reason)
		}
	case <-time.After(patience):
		t.Fatal("the stream of a deleted subscription does not end")
	}
	put(cluster, topic, 1, "d")
	// Where it begins is asked of a group that has no position yet: this one has.
	again.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
	g.create(again)
	s = g.subscribe(&posternv1.Open{Subscription: name})
	for offset := range int64(3) {
		d := s.next()
		if d.GetPosition().GetOffset() != offset+1 {
			t.Fatalf("offset %d came, want %d", d.GetPosition().GetOffset(), offset+1)
		}
		s.ack(d)
	}
}

// grpc/grpc-go#8981: a path in another spelling passed by the rules of its method and
// reached it. Here it reaches nothing.
func TestPeer_PathsInOtherSpellingsReachNoMethod(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	message, err := proto.Marshal(&posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{Data: []byte("x")}}})
	if err != nil {
		t.Fatal(err)
	}
	if status := rawCall(t, g.gateway.Addrs().GRPC, "/postern.v1.Publisher/Publish", message); status != "grpc-status 0" {
		t.Fatalf("the right path: %s", status)
	}
	for _, path := range []string{
		"postern.v1.Publisher/Publish", "//postern.v1.Publisher/Publish", "/postern.v1.Publisher//Publish", "/postern.v1.Publisher/Publish/",
		"/postern.v1.Publisher/%50ublish", "/postern%2ev1.Publisher/Publish", "/postern.v1.Publisher/Publish;x", "/postern.v1.Publisher/Publish?x",
		"/./postern.v1.Publisher/Publish", "/x/../postern.v1.Publisher/Publish", "/Postern.v1.Publisher/Publish", "/postern.v1.Publisher/publish",
		"/postern.v1.Publisher/Publish ", "\\postern.v1.Publisher\\Publish", "*",
	} {
		if status := rawCall(t, g.gateway.Addrs().GRPC, path, message); status == "grpc-status 0" {
			t.Errorf("%q is answered with OK", path)
		}
	}
	for _, path := range []string{
		"//v1/topics/" + topic + "/events", "/v1//topics/" + topic + "/events", "/V1/topics/" + topic + "/events", "/v1/topics/" + topic + "/events/",
		"/v1/topics/" + topic + "/events;x", "/x/../v1/topics/" + topic + "/events", "/v1/./topics/" + topic + "/events", "/v1/topics%2f" + topic + "/events",
		"v1/topics/" + topic + "/events",
	} {
		conn, err := net.Dial("tcp", g.gateway.Addrs().HTTP)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx", path)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if response.StatusCode < 300 {
			t.Errorf("POST %s is answered with %s", path, response.Status)
		}
		response.Body.Close() //nolint:errcheck // the status was asked for
		conn.Close()          //nolint:errcheck // it was read to the end
	}
	if all := cluster.Read(topic); len(all) != 1 {
		t.Errorf("%d events are stored, one was published by its right path", len(all))
	}
}

// rawCall makes a gRPC call by its frames, so that the path is sent as it is, and
// tells how it was answered.
func rawCall(t *testing.T, address, path string, message []byte) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // what came is what counts
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", address}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := headers.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	body := append([]byte{0, byte(len(message) >> 24), byte(len(message) >> 16), byte(len(message) >> 8), byte(len(message))}, message...)
	for _, send := range []func() error{
		func() error { return framer.WriteSettings() },
		func() error {
			return framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
		},
		func() error { return framer.WriteData(1, true, body) },
	} {
		if err := send(); err != nil {
			return "closed: " + err.Error()
		}
	}
	said := ""
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return said + "closed: " + err.Error()
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" {
					return "grpc-status " + h.Value
				}
			}
			said = "HTTP " + f.PseudoValue("status") + " "
			if f.StreamEnded() {
				return said
			}
		case *http2.RSTStreamFrame:
			return said + "reset: " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return said + "goaway: " + f.ErrCode.String()
		}
	}
}
