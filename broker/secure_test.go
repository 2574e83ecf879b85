package broker_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/setting"
)

// secure gives the addresses of a real Kafka's protected listeners, as
// tools/test-kafka starts them.
func secure(t *testing.T) (saslSSL, mutual, ca, cert, key string) {
	t.Helper()
	saslSSL, mutual = os.Getenv("KAFKA_SASL_SSL"), os.Getenv("KAFKA_MTLS")
	if saslSSL == "" || mutual == "" {
		t.Skip("no Kafka with protected listeners is named (KAFKA_SASL_SSL, KAFKA_MTLS); tools/test-kafka starts one")
	}
	return saslSSL, mutual, os.Getenv("KAFKA_CA"), os.Getenv("KAFKA_CLIENT_CERT"), os.Getenv("KAFKA_CLIENT_KEY")
}

func TestEveryWayToProveWhoWeArePublishes(t *testing.T) {
	saslSSL, mutual, ca, cert, key := secure(t)
	topic := brokertest.New(t).Topic("secure", 1)
	login := func(mechanism string) *broker.SASL {
		return &broker.SASL{Mechanism: mechanism, Username: "alice", Password: setting.NewSecret("alice-secret")}
	}
	for name, o := range map[string]broker.Options{
		"PLAIN":         {Brokers: []string{saslSSL}, TLS: &broker.TLS{CAFile: ca}, SASL: login("PLAIN")},
		"SCRAM-SHA-256": {Brokers: []string{saslSSL}, TLS: &broker.TLS{CAFile: ca}, SASL: login("SCRAM-SHA-256")},
		"SCRAM-SHA-512": {Brokers: []string{saslSSL}, TLS: &broker.TLS{CAFile: ca}, SASL: login("SCRAM-SHA-512")},
		"mutual TLS":    {Brokers: []string{mutual}, TLS: &broker.TLS{CAFile: ca, CertFile: cert, KeyFile: key}},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := broker.New(o)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			producer, err := client.NewProducer()
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			if a := produce(t, producer, broker.AllReplicas, record(topic, "k", name))[0]; a.err != nil {
				t.Error(a.err)
			}
		})
	}
}

func TestWrongPasswordAndUnknownAuthorityAreToldApart(t *testing.T) {
	saslSSL, _, ca, _, _ := secure(t)
	for name, c := range map[string]struct {
		options broker.Options
		want    fault.Reason
	}{
		"wrong password": {broker.Options{Brokers: []string{saslSSL}, TLS: &broker.TLS{CAFile: ca}, SASL: &broker.SASL{Mechanism: "SCRAM-SHA-512", Username: "alice", Password: setting.NewSecret("guess")}}, fault.KafkaNotAuthorized},
		"unknown CA":     {broker.Options{Brokers: []string{saslSSL}, TLS: &broker.TLS{}, SASL: &broker.SASL{Mechanism: "SCRAM-SHA-512", Username: "alice", Password: setting.NewSecret("alice-secret")}}, fault.BrokerUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := broker.New(c.options)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err = client.Ping(ctx)
			if f := fault.Of(err); f == nil || f.Reason != c.want && f.Reason != fault.DeadlineExceeded {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
