package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/event"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
	"github.com/postern-dev/postern/subscription"
)

func TestOfTwoGatewaysThatCreateANameAtOnceOneDoes(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	gateways := []*running{start(t, cluster, nil), start(t, cluster, nil), start(t, cluster, nil)}
	for round := range 3 {
		name := cluster.Name(fmt.Sprintf("mail%d", round))
		errs := make([]error, len(gateways))
		var group sync.WaitGroup
		for i, g := range gateways {
			group.Go(func() {
				_, errs[i] = g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{
					Subscription: &posternv1.Subscription{Name: name, Topics: []string{topic}, Labels: map[string]string{"by": fmt.Sprint(i)}},
				})
			})
		}
		group.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("both %d and %d made %s", winner, i, name)
			case err == nil:
				winner = i
			case reasonOf(t, err) != fault.SubscriptionExists:
				t.Errorf("the loser got %v", err)
			}
		}
		for _, g := range gateways {
			eventually(t, "the winner's at every gateway", func() bool {
				got, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
				return err == nil && got.Labels["by"] == fmt.Sprint(winner)
			})
		}
	}
}

func TestWhatANewerPosternWroteIsVisibleAndNotTouched(t *testing.T) {
	cluster := brokertest.New(t)
	topic := cluster.Topic("orders", 1)
	g := start(t, cluster, nil)
	name := cluster.Name("mail")
	g.create(&posternv1.Subscription{Name: name, Topics: []string{topic}})
	ledger := cluster.Name("_own." + subscriptionsTopic)
	newer := `{"format":2,"lanes":"many","subscription":{"name":"` + name + `"}}`
	cluster.Put(&event.Record{Topic: ledger, Key: []byte(name), Value: []byte(newer)})
	eventually(t, "the newer record", func() bool {
		got, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: name})
		return err == nil && strings.Contains(got.Problem, "newer Postern")
	})
	for what, call := range map[string]func() error{
		"update": func() error {
			_, err := g.subscriptions().UpdateSubscription(t.Context(), &posternv1.UpdateSubscriptionRequest{
				Subscription: &posternv1.Subscription{Name: name}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
			})
			return err
		},
		"delete": func() error {
			_, err := g.subscriptions().DeleteSubscription(t.Context(), &posternv1.DeleteSubscriptionRequest{Name: name})
			return err
		},
		"pause": func() error {
			_, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: name})
			return err
		},
		"pull": func() error {
			_, err := g.subscriber().Pull(t.Context(), &posternv1.PullRequest{Name: name})
			return err
		},
	} {
		if err := call(); reasonOf(t, err) != fault.NewerFormat {
			t.Errorf("%s: %v", what, err)
		}
	}
	all := cluster.Read(ledger)
	if last := all[len(all)-1]; string(last.Value) != newer {
		t.Errorf("the record was touched: %s", last.Value)
	}
	if st, err := g.subscriptions().GetSubscriptionStatus(t.Context(), &posternv1.GetSubscriptionStatusRequest{Name: name}); err != nil || st.Cause.Kind != posternv1.CauseKind_CAUSE_KIND_NEWER_FORMAT {
		t.Errorf("%v %v", st, err)
	}
}

func TestDeclaredSubscriptionIsServedWhenKafkaComesLate(t *testing.T) {
	address := freeAddress(t)
	c := config.Config{Kafka: broker.Options{Brokers: []string{address}}, DrainTimeout: time.Second}
	c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.Subscriptions = []subscription.Spec{{Name: "mail", Topics: []string{"orders"}}}
	g := startWith(t, c)
	if got, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: "mail"}); err != nil || got.DeclaredIn != posternv1.DeclaredIn_DECLARED_IN_FILE {
		t.Errorf("without Kafka: %v %v", got, err)
	}
	if _, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: "other"}); reasonOf(t, err) != fault.BrokerUnavailable {
		t.Errorf("whether there is another one cannot be known: %v", err)
	}
	if _, err := g.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: "new", Topics: []string{"orders"}}}); reasonOf(t, err) != fault.BrokerUnavailable {
		t.Errorf("created without Kafka: %v", err)
	}
	_, port, _ := strings.Cut(address, ":")
	var number int
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(number), kfake.SeedTopics(1, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	eventually(t, "the gateway's finding Kafka", func() bool {
		_, err := g.subscriptions().GetSubscription(t.Context(), &posternv1.GetSubscriptionRequest{Name: "other"})
		return reasonOf(t, err) == fault.UnknownSubscription
	})
	g.publish("orders", "anna", "tea")
	s := g.subscribe(&posternv1.Open{Subscription: "mail"})
	d := s.next()
	s.ack(d)
	s.close()
	if paused, err := g.subscriptions().PauseSubscription(t.Context(), &posternv1.PauseSubscriptionRequest{Name: "mail"}); err != nil || !paused.Paused {
		t.Errorf("%v %v", paused, err)
	}
}

func TestGatewayWithoutTheRightToKeepSubscriptionsSaysWhichAtTheStart(t *testing.T) {
	allow := func(resource kmsg.ACLResourceType, name string, operations ...kmsg.ACLOperation) (acls []kfake.ACL) {
		for _, op := range operations {
			acls = append(acls, kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true})
		}
		return acls
	}
	of := kmsg.ACLResourceTypeTopic
	rights := allow(of, "orders", kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe)
	rights = append(rights, allow(kmsg.ACLResourceTypeGroup, "mail", kmsg.ACLOperationRead)...)
	full := append(allow(of, "_postern.subscriptions", kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationCreate, kmsg.ACLOperationDescribeConfigs),
		allow(kmsg.ACLResourceTypeTransactionalId, "_postern.subscriptions", kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe)...)
	cluster := brokertest.Fake(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "secret"), kfake.SeedTopics(1, "orders"),
		kfake.User("PLAIN", "poor", "secret", rights...), kfake.User("PLAIN", "rich", "secret", append(full, rights...)...))
	run := func(user string, change func(*config.Config)) (*Gateway, chan error) {
		t.Helper()
		c := config.Config{Kafka: cluster.Options(), DrainTimeout: time.Second}
		c.Kafka.SASL = &broker.SASL{Mechanism: "PLAIN", Username: user, Password: setting.NewSecret("secret")}
		c.Listen.HTTP, c.Listen.GRPC, c.Listen.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		c.Subscriptions = []subscription.Spec{{Name: "mail", Topics: []string{"orders"}}}
		if change != nil {
			change(&c)
		}
		g, err := New(t.Context(), c.WithDefaults(), Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done, stopped := make(chan error, 1), make(chan struct{})
		go func() { defer close(stopped); done <- g.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-stopped })
		return g, done
	}
	_, done := run("poor", nil)
	select {
	case err := <-done:
		for _, want := range []string{"_postern.subscriptions", "Read, Write, Describe and Create", "transactional id", "subscriptions_api"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want %q in %v", want, err)
			}
		}
	case <-time.After(patience):
		t.Fatal("the gateway runs without the right")
	}
	// Without declared subscriptions, or without keeping them, the right is not needed.
	for _, change := range []func(*config.Config){
		func(c *config.Config) { c.Subscriptions = nil },
		func(c *config.Config) { c.SubscriptionsAPI.Disabled = true },
	} {
		g, done := run("poor", change)
		r := &running{t: t, gateway: g, conn: dialGRPC(t, g)}
		_, err := r.subscriptions().CreateSubscription(t.Context(), &posternv1.CreateSubscriptionRequest{Subscription: &posternv1.Subscription{Name: "new", Topics: []string{"orders"}}})
		if reason := reasonOf(t, err); reason != fault.KafkaNotAuthorized && reason != fault.NotOffered {
			t.Errorf("create: %v", err)
		}
		select {
		case err := <-done:
			t.Errorf("the gateway ended: %v", err)
		default:
		}
	}
	g, _ := run("rich", nil)
	r := &running{t: t, gateway: g, conn: dialGRPC(t, g)}
	r.create(&posternv1.Subscription{Name: "new", Topics: []string{"orders"}})
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	return l.Addr().String()
}
