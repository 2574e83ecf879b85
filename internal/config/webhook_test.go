package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEverythingAnEndpointMaySayIsRead(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `
kafka: {brokers: ['a:1']}
webhooks:
  issuer: https://events.example.com
  signing_keys: [{secret: whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=}]
  requests_per_host: 100
  deny_cidrs: [203.0.113.0/24]
  log_attempts: failures
subscriptions:
  - name: mail
    topics: [orders]
    webhook:
      url: https://example.com/hook
      secrets: [{file: SECRET}]
      keys:
        - {secret: {file: SECRET}, not_after: 2026-12-02T00:00:00Z}
        - {secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, not_before: 2026-12-01T00:00:00+01:00}
      asymmetric: true
      mode: batch
      batch: {max_events: 50, max_bytes: 64KiB, max_wait: 1s}
      handshake: {origin: events.example.com, request_rate: 600, revalidate: 1h}
      outcomes: {409: ack, "5xx": throttle, timeout: retry}
      connect_timeout: 1s
      requests_per_second: 2.5
      disable_after: -1s
      auth: {oauth2: {token_url: https://id.example.com/token, client_id: canary-id, client_secret: canary-1, scopes: [hooks]}}
      headers: {X-Api-Key: canary-2}
      proxy: http://me:canary-3@proxy.example.com:3128
      allow_ports: [587]
  - name: app
    topics: [orders]
    push: {address: "127.0.0.1:9000", batch: {}, metadata: {x-token: canary-4}}
  - name: minted
    topics: [orders]
    webhook: {url: https://example.com/hook, auth: {jwt: {audience: https://shop.example.com, lifetime: 10m}}}
`
	c, err := Load(write(t, strings.ReplaceAll(text, "SECRET", secret)), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := c.Subscriptions[0].Webhook
	if w.Outcomes["409"] != "ack" || w.Outcomes["5xx"] != "throttle" || w.Batch.MaxEvents != 50 || w.Batch.MaxBytes != 64<<10 || w.Batch.MaxWait != time.Second ||
		!w.Keys[0].NotAfter.Equal(time.Date(2026, 12, 2, 0, 0, 0, 0, time.UTC)) || !w.Keys[1].NotBefore.Equal(time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)) ||
		w.Handshake.RequestRate != 600 || w.RequestsPerSecond != 2.5 || w.Auth.OAuth2.ClientSecret.Reveal() != "canary-1" || w.AllowPorts[0] != 587 || w.DisableAfter != -time.Second {
		t.Errorf("%+v", w)
	}
	if c.Webhooks.RequestsPerHost != 100 || c.Webhooks.LogAttempts != "failures" || len(c.Webhooks.Deny()) != 1 || c.Subscriptions[1].Push.Address != "127.0.0.1:9000" {
		t.Errorf("%+v", c.Webhooks)
	}
	for _, dump := range []string{fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", *w), fmt.Sprintf("%+v", *w.Auth.OAuth2), fmt.Sprintf("%v", c.Webhooks.SigningKeys)} {
		for _, shown := range []string{"canary-1", "canary-2", "canary-3", "canary-4", "C2FVsBQ", "MfKQ9r8", "nWGxne"} {
			if strings.Contains(dump, shown) {
				t.Errorf("%s shows in %s", shown, dump)
			}
		}
	}
}

func TestEndpointThatNeedsTheGatewaysKeysSaysSoBeforeTheStart(t *testing.T) {
	_, err := Load(write(t, `
kafka: {brokers: ['a:1']}
subscriptions:
  - {name: a, topics: [t], webhook: {url: https://example.com/, asymmetric: true}}
  - {name: b, topics: [t], webhook: {url: https://example.com/, auth: {jwt: {audience: x}}}}
  - {name: c, topics: [t], webhook: {url: https://example.com/}, push: {address: "a:1"}}
`), nil, nil)
	for _, want := range []string{"webhooks.signing_keys", "webhooks.issuer", "use webhook or push"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing is said of %s: %v", want, err)
		}
	}
}
