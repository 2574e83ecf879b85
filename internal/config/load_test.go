package config

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagStandsOverEnvironmentOverFileOverDefault(t *testing.T) {
	path := write(t, "kafka: {brokers: ['file:1'], publish_buffer: 2MiB, session_timeout: 7s}\nlisten: {http: '127.0.0.1:1', grpc: '127.0.0.1:2'}\n")
	c, err := Load(path, []string{"POSTERN_LISTEN_HTTP=127.0.0.1:3", "POSTERN_LISTEN_GRPC=127.0.0.1:4", "POSTERN_DRAIN_TIMEOUT=3s"}, map[string]string{"listen.grpc": "127.0.0.1:5"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Kafka.Brokers, []string{"file:1"}) || c.Kafka.PublishBuffer != 2<<20 || c.Kafka.SessionTimeout != 7*time.Second ||
		c.Listen.HTTP != "127.0.0.1:3" || c.Listen.GRPC != "127.0.0.1:5" || c.Listen.Admin != "127.0.0.1:7602" || c.DrainTimeout != 3*time.Second {
		t.Errorf("%+v", c)
	}
}

func TestSecretsComeFromFilesAndTheEnvironmentAndNeverShow(t *testing.T) {
	t.Setenv("POSTERN_TEST_USER", "anna: {not: yaml}")
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("canary-7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(write(t, "kafka:\n  brokers: [a:1]\n  sasl: {mechanism: PLAIN, username: '${env:POSTERN_TEST_USER}', password: {file: "+file+"}}\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kafka.SASL.Username != "anna: {not: yaml}" || c.Kafka.SASL.Password.Reveal() != "canary-7" {
		t.Errorf("%+v %q", c.Kafka.SASL, c.Kafka.SASL.Password.Reveal())
	}
	t.Setenv("POSTERN_TEST_SECRET", `back\slash "quote" and 50%`)
	again, err := Load(write(t, "kafka:\n  brokers: [\"a:1\"]\n  client_id: ${env:POSTERN_TEST_NONE:-fallback}\n  publish_buffer: ${env:POSTERN_TEST_SIZE:-3MiB}\n  sasl: {mechanism: PLAIN, username: x, password: '${env:POSTERN_TEST_SECRET}'}\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := again.Kafka.SASL.Password.Reveal(); p != `back\slash "quote" and 50%` || again.Kafka.ClientID != "fallback" || again.Kafka.PublishBuffer != 3<<20 {
		t.Errorf("%q %s %s", p, again.Kafka.ClientID, again.Kafka.PublishBuffer)
	}
	if s := c.Kafka.SASL.Password; strings.Contains(s.String()+s.GoString(), "canary") {
		t.Error("the password shows")
	}
}

func TestEverySettingHasOneNameInEachPlace(t *testing.T) {
	names := Settings()
	for _, want := range []string{"kafka.brokers", "kafka.sasl.password", "kafka.tls.ca_file", "listen.http", "authz.mode", "publish.max_wait", "telemetry.log.level", "drain_timeout"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s cannot be set by flag or environment", want)
		}
	}
	if Variable("kafka.tls.ca_file") != "POSTERN_KAFKA_TLS_CA_FILE" || Flag("kafka.tls.ca_file") != "kafka-tls-ca-file" {
		t.Error(Variable("kafka.tls.ca_file"), Flag("kafka.tls.ca_file"))
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("kafka: {brokers: [a:1]}\nsubscriptions: [{name: mail, topics: [t], lease: 5s, start: latest, webhook: {url: https://x.example/}}]\n")
	f.Add("kafka:\n\tbrokers")
	f.Add("a: &a [*a]")
	f.Add("kafka: {file: nowhere}")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "file") && strings.Contains(text, "/") {
			t.Skip("it would read this machine's files")
		}
		_, _ = Load(write(t, text), nil, nil) // it must not panic
	})
}

func TestATagInAFileIsRefusedWithItsPlace(t *testing.T) {
	for _, text := range []string{"topics: !!seq # none", "topics: [!!str a]"} {
		_, err := Load(write(t, "subscriptions:\n  - name: a\n    "+text), nil, nil)
		if err == nil || !strings.Contains(err.Error(), "gateway.yaml:3:") || !strings.Contains(err.Error(), "leave it out") {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := ReadSubscription("mail.yaml", []byte("name: a\n"+text)); err == nil || !strings.Contains(err.Error(), "mail.yaml:2:") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestValuesThatReadThemselvesAreReportedWithTheirPlaces(t *testing.T) {
	path := write(t, `publish:
  max_event_bytes: 3 elephants
subscriptions:
  - name: mail
    topics: [orders]
    order: sideways
  - {name: sms, topics: [orders], order: up, lease: 3 elephants}
`)
	_, err := Load(path, nil, nil)
	for _, place := range []string{":2:20: ", ":6:12: \"sideways\" is not an order", ":7:42: \"up\" is not an order", ":7:53: \"3 elephants\" is not a duration such as 30s"} {
		if err == nil || !strings.Contains(err.Error(), path+place) {
			t.Errorf("no fault at %s in %v", place, err)
		}
	}
}

// TestALongFileIsReadInTheTimeOfItsLength: what is read of a value must not grow with
// what stands around it.
func TestALongFileIsReadInTheTimeOfItsLength(t *testing.T) {
	memory := func(webhooks int, more string) uint64 {
		var b strings.Builder
		b.WriteString("kafka: {brokers: ['a:9092']}\nsubscriptions:\n")
		for i := range webhooks {
			fmt.Fprintf(&b, "  - {name: w%d, topics: [t], order: key, webhook: {url: https://example.com/, secrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]%s}}\n", i, more)
		}
		path := write(t, b.String())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Load(path, nil, nil)
		runtime.ReadMemStats(&after)
		if (err != nil) != (more != "") {
			t.Fatal(err)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	for what, more := range map[string]string{"good": "", "wrong": ", concurrency: -1"} {
		if few, many := memory(200, more), memory(1600, more); many > 12*few {
			t.Errorf("%s: 200 webhooks take %d bytes to read, 1600 take %d", what, few, many)
		}
	}
}
