//go:build synctests

package gateway

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/broker/brokertest"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// TestAGRPCMessageThatDripsEndsItsCallAndItsConnectionGoesOn speaks HTTP/2 by frames:
// no client library sends so slowly.
func TestAGRPCMessageThatDripsEndsItsCallAndItsConnectionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := brokertest.Virtual(t)
		topic := cluster.Topic("dripping", 1)
		b := inBubble(t, cluster, new(kfake.VirtualNetwork), nil)
		conn, err := b.network.DialContext(t.Context(), "tcp", "127.0.0.1:7601")
		if err != nil {
			t.Fatal(err)
		}
		defer b.stop()
		defer conn.Close() //nolint:errcheck // it ends the reader
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		frames := http2.NewFramer(conn, conn)
		var writing sync.Mutex
		open := func(stream uint32, method string, message []byte) {
			t.Helper()
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			for _, f := range [][2]string{
				{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "postern"}, {"content-type", "application/grpc"}, {"te", "trailers"},
			} {
				must(enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
			}
			writing.Lock()
			defer writing.Unlock()
			must(frames.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}))
			must(frames.WriteData(stream, false, message))
		}
		type end struct {
			stream uint32
			status string
			after  time.Duration
		}
		ends := make(chan end, 10)
		began := time.Now()
		go func() {
			decoder := hpack.NewDecoder(4096, nil)
			for {
				f, err := frames.ReadFrame()
				if err != nil {
					return // the test closes it
				}
				switch f := f.(type) {
				case *http2.SettingsFrame:
					if !f.IsAck() {
						writing.Lock()
						_ = frames.WriteSettingsAck() // it would end the test otherwise
						writing.Unlock()
					}
				case *http2.PingFrame:
					writing.Lock()
					_ = frames.WritePing(true, f.Data)
					writing.Unlock()
				case *http2.HeadersFrame:
					fields, err := decoder.DecodeFull(f.HeaderBlockFragment())
					if err != nil {
						return
					}
					for _, h := range fields {
						if h.Name == "grpc-status" {
							ends <- end{f.StreamID, h.Value, time.Since(began)}
						}
					}
				}
			}
		}()
		writing.Lock()
		_, err = io.WriteString(conn, http2.ClientPreface)
		must(err)
		must(frames.WriteSettings())
		writing.Unlock()
		length := func(n byte) []byte { return []byte{0, 0, 0, 0, n} }
		open(1, "/postern.v1.Publisher/Publish", append(length(100), 'a'))
		open(3, "/postern.v1.Subscriber/Stream", append(length(100), 'a'))
		open(5, "/postern.v1.Publisher/PublishStream", nil) // may be as quiet as it likes
		go func() {
			for range 200 { // a byte a second
				time.Sleep(time.Second)
				writing.Lock()
				_ = frames.WriteData(1, false, []byte{'b'}) // it is cut meanwhile
				writing.Unlock()
			}
		}()
		next := func() (e end) {
			select {
			case e = <-ends:
			case <-time.After(10 * time.Minute):
			}
			return e
		}
		for range 2 {
			if e := next(); e.stream == 5 || e.status != "4" || e.after < 59*time.Second || e.after > 61*time.Second {
				t.Errorf("%+v", e)
			}
		}
		// The same connection serves a call that comes in one piece.
		request, err := proto.Marshal(&posternv1.PublishRequest{Topic: topic, Events: []*posternv1.Event{{}}})
		must(err)
		open(7, "/postern.v1.Publisher/Publish", append(length(byte(len(request))), request...))
		writing.Lock()
		must(frames.WriteData(7, true, nil))
		writing.Unlock()
		if e := next(); e.stream != 7 || e.status != "0" {
			t.Errorf("%+v", e)
		}
		must(conn.Close())
		time.Sleep(5 * time.Minute) // the dripping goroutine ends
	})
}
