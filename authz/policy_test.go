package authz

import (
	"context"
	"testing"

	"github.com/postern-dev/postern/fault"
)

func TestCallerWithoutIdentityIsRefusedEverythingEvenByTheOpenPolicy(t *testing.T) {
	who := FromContext(context.Background())
	for _, verb := range []Verb{Publish, Subscribe, Tail, Describe} {
		if err := Open().Check(who, verb, "orders"); !fault.Is(err, fault.NotAuthorized) {
			t.Errorf("%s: got %v, want NOT_AUTHORIZED", verb, err)
		}
	}
}

func TestZeroPolicyRefusesEveryone(t *testing.T) {
	if err := (Policy{}).Check(Anonymous("loopback"), Publish, "orders"); !fault.Is(err, fault.NotAuthorized) {
		t.Errorf("got %v, want NOT_AUTHORIZED", err)
	}
}

func TestOpenPolicyAllowsWhomTheListenerAdmitted(t *testing.T) {
	ctx := NewContext(context.Background(), Anonymous("loopback"))
	if err := Open().Check(FromContext(ctx), Publish, "orders"); err != nil {
		t.Error(err)
	}
}
