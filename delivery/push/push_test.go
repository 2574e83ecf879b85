package push

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
)

func TestStatusesMeanWhatTheTableSays(t *testing.T) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		want := endpoint.Retry
		switch code {
		case codes.OK:
			want = endpoint.Ack
		case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.DataLoss:
			want = endpoint.Reject
		case codes.ResourceExhausted:
			want = endpoint.Throttle
		default: // retried, UNIMPLEMENTED among them
		}
		o := judge(status.New(code, "\x1b[31mbecause\r\n"))
		if strings.ContainsAny(o.Why, "\x1b\r\n") {
			t.Errorf("%s: %q goes to a log", code, o.Why)
		}
		if o.Action != want || (code != codes.OK) != strings.Contains(o.Why, "because") {
			t.Errorf("%s: %+v, want %s", code, o, want)
		}
	}
	if o := judge(status.New(99, "")); o.Action != endpoint.Retry {
		t.Errorf("an unknown code: %+v", o)
	}
}

func TestRetryInfoIsObeyedUpToADay(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, 100 * time.Hour: maxPause, -time.Hour: 0} {
		s, err := status.New(codes.ResourceExhausted, "").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(asked)})
		if err != nil {
			t.Fatal(err)
		}
		if o := judge(s); o.Pause != want {
			t.Errorf("asked for %s: %+v", asked, o)
		}
	}
}

func TestEverythingWrongWithAnApplicationIsSaidAtOnce(t *testing.T) {
	errs := Options{
		Address: "nowhere", Timeout: time.Hour, Concurrency: -1, RequestsPerSecond: -1, Batch: &endpoint.Batch{MaxEvents: -1}, TLS: &webhook.TLS{CertFile: "x"}, View: "xml",
		Metadata: map[string]setting.Secret{"grpc-timeout": {}, "X-Upper": {}, "fine": setting.NewSecret("hunter2")},
	}.Validate()
	all := fmt.Sprint(errors.Join(errs...))
	for _, want := range []string{"push.address", "push.timeout", "push.concurrency", "push.requests_per_second", "push.batch.max_events", "push.tls", "push.view", "grpc-timeout", "X-Upper"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing is said of %s: %s", want, all)
		}
	}
	if strings.Contains(all, "hunter2") || strings.Contains(all, `"fine"`) {
		t.Errorf("%s", all)
	}
	for _, address := range []string{"127.0.0.1:9000", "app:9000", "[::1]:9000", "unix:/run/app.sock"} {
		if errs := (Options{Address: address}).Validate(); len(errs) > 0 {
			t.Errorf("%s: %v", address, errs)
		}
	}
}
