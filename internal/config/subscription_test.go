package config

import (
	"strings"
	"testing"
	"time"
)

func TestASubscriptionsFileIsReadAsTheConfigurationIsAndSecretsAreNames(t *testing.T) {
	s, err := ReadSubscription("hook.yaml", []byte(`name: hook
topics: [orders]
lease: 2m
order: none
retry: {max_attempts: 3, on_block: move_on}
filter: {all: [{exact: {type: a}}, {cel: 'data.total > 1'}]}
on_filter_error: skip
webhook:
  url: https://example.com/
  secrets: [{name: one}, {name: two}]
  headers: {Authorization: {name: token}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Lease != 2*time.Minute || len(s.Filter.All) != 2 || s.Retry.MaxAttempts != 3 || len(s.References.Secrets) != 2 || s.References.Headers["Authorization"] != "token" || s.Webhook.Secrets != nil {
		t.Errorf("%+v", s)
	}
	s, err = ReadSubscription("hook.yaml", []byte(`name: hook
topics: [orders]
webhook:
  url: https://example.com/
  mode: batch
  batch: {max_events: 10, max_bytes: 64KiB}
  keys: [{secret: {name: old}, not_after: 2030-01-01T00:00:00Z}, {secret: {name: new}}]
  handshake: {origin: events.example.com}
  outcomes: {"409": ack}
  auth:
    basic:
      username: postern
      password: {name: password}
  tls:
    ca:
      name: ca
`))
	if err != nil || len(s.Webhook.Keys) != 2 || s.References.Keys[1] != "new" || s.References.Password != "password" || s.References.TLS["ca"] != "ca" || s.Webhook.Outcomes["409"] != "ack" {
		t.Errorf("%+v %v", s, err)
	}
	s, err = ReadSubscription("app.yaml", []byte("name: app\ntopics: [orders]\npush: {address: 'app:9000', metadata: {token: {name: t}}, tls: {certificate: {name: c}, key: {name: k}}}"))
	if err != nil || s.References.Metadata["token"] != "t" || s.References.TLS["certificate"] != "c" || s.References.TLS["key"] != "k" {
		t.Errorf("%+v %v", s, err)
	}
	for text, want := range map[string]string{
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  proxy: http://u:hunter2@p/":                      "the API takes no proxy",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  allow_ports: [25]":                               "the API takes no ports",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  tls: {ca_file: /etc/ca}":                         "the API takes no paths of files",
		"name: a\ntopics: [t]\npush: {address: 'a:1', tls: {key_file: /etc/key}}":                              "the API takes no paths of files",
		"name: a\ntopics: [t]\npush: {address: 'a:1', metadata: {token: hunter2}}":                             "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  auth: {bearer: hunter2}":                         "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  auth: {oauth2: {client_secret: hunter2}}":        "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  keys: [{secret: hunter2}]":                       "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  auth: {basic: {username: a, password: hunter2}}": "a secret is named here",
		"":                               "is empty",
		"name: a\ntopix: [t]":            "hook.yaml:2:1: unknown field",
		"name: A\ntopics: [t]":           "hook.yaml:1:7: name:",
		"name: a\ntopics: [t]\nlease: 1": "lease",
		"name: a\ntopics: [t]\nfilter: {cel: 'x ='}":                                      "filter.cel",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  secrets: [whsec_hunter2]":   "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  secrets: whsec_hunter2":     "secrets is a list",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  headers: {A: hunter2}":      "a secret is named here",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  headers: [hunter2]":         "headers is a mapping",
		"name: a\ntopics: [t]\nwebhook:\n  url: https://x/\n  secrets: [{file: hunter2}]": "a secret is named here",
	} {
		_, err := ReadSubscription("hook.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

func FuzzReadSubscription(f *testing.F) {
	f.Add([]byte("name: a\ntopics: [t]\nwebhook: {url: https://x/, secrets: [{name: one}], headers: {A: {name: b}}}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ReadSubscription("x", text)
		if err == nil {
			s.ToProto() // it must not panic
		}
	})
}
