package subscription

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/delivery/endpoint"
	"github.com/postern-dev/postern/delivery/push"
	"github.com/postern-dev/postern/delivery/webhook"
	"github.com/postern-dev/postern/internal/setting"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

// References name secrets that the operator provides, of what the API declared. A
// name is empty where a configuration file has the secret itself.
type References struct {
	Secrets []string
	Keys    []string          // of the webhook's keys, in their order
	Headers map[string]string // header to reference
	// TLS has those of ca, certificate and key that there are, of the webhook or the push.
	TLS                            map[string]string
	Password, Bearer, ClientSecret string // of the webhook's auth, as it is one of them
	Metadata                       map[string]string
}

// tlsFiles are the names of TLS, and where the file's path goes.
var tlsFiles = []struct {
	name string
	at   func(*webhook.TLS) *string
	of   func(*posternv1.PushTLS) *posternv1.SecretReference
	set  func(*posternv1.PushTLS, *posternv1.SecretReference)
}{
	{"ca", func(t *webhook.TLS) *string { return &t.CAFile }, (*posternv1.PushTLS).GetCa, func(m *posternv1.PushTLS, r *posternv1.SecretReference) { m.Ca = r }},
	{"certificate", func(t *webhook.TLS) *string { return &t.CertFile }, (*posternv1.PushTLS).GetCertificate, func(m *posternv1.PushTLS, r *posternv1.SecretReference) { m.Certificate = r }},
	{"key", func(t *webhook.TLS) *string { return &t.KeyFile }, (*posternv1.PushTLS).GetKey, func(m *posternv1.PushTLS, r *posternv1.SecretReference) { m.Key = r }},
}

// endpointFromProto reads what webhookFromProto leaves.
func endpointFromProto(m *posternv1.Webhook, o *webhook.Options, r *References) {
	for _, k := range m.GetKeys() {
		o.Keys = append(o.Keys, webhook.Key{NotBefore: timeOf(k.GetNotBefore()), NotAfter: timeOf(k.GetNotAfter())})
		r.Keys = append(r.Keys, k.GetSecret().GetName())
	}
	o.Asymmetric, o.Batch, o.Outcomes = m.GetAsymmetric(), batchFromProto(m.GetBatch()), maps.Clone(m.GetOutcomes())
	if h := m.GetHandshake(); h != nil {
		o.Handshake = &webhook.Handshake{Origin: h.GetOrigin(), RequestRate: int(h.GetRequestRate()), Revalidate: h.GetRevalidate().AsDuration(), Callback: h.GetCallback()}
	}
	o.ConnectTimeout, o.TLSTimeout = m.GetConnectTimeout().AsDuration(), m.GetTlsTimeout().AsDuration()
	o.RequestsPerSecond, o.DisableAfter = m.GetRequestsPerSecond(), m.GetDisableAfter().AsDuration()
	o.TLS, r.TLS = tlsFromProto(m.GetTls())
	if m.GetAuth() == nil {
		return
	}
	o.Auth = &webhook.Auth{}
	switch way := m.GetAuth().GetWay().(type) {
	case *posternv1.WebhookAuth_Basic:
		o.Auth.Basic, r.Password = &webhook.Basic{Username: way.Basic.GetUsername()}, way.Basic.GetPassword().GetName()
	case *posternv1.WebhookAuth_Bearer:
		r.Bearer = way.Bearer.GetName()
	case *posternv1.WebhookAuth_Oauth2:
		a := way.Oauth2
		o.Auth.OAuth2 = &webhook.OAuth2{
			TokenURL: a.GetTokenUrl(), ClientID: a.GetClientId(), Scopes: slices.Clone(a.GetScopes()), Audience: a.GetAudience(), AuthStyle: a.GetAuthStyle(),
		}
		r.ClientSecret = a.GetClientSecret().GetName()
	case *posternv1.WebhookAuth_Jwt:
		o.Auth.JWT = &webhook.JWT{Audience: way.Jwt.GetAudience(), Subject: way.Jwt.GetSubject(), Lifetime: way.Jwt.GetLifetime().AsDuration()}
	}
}

// endpointToProto writes what webhookToProto leaves.
func endpointToProto(m *posternv1.Webhook, o *webhook.Options, r References) {
	for i, k := range o.Keys {
		key := &posternv1.SigningKey{Secret: &posternv1.SecretReference{}, NotBefore: timestampOf(k.NotBefore), NotAfter: timestampOf(k.NotAfter)}
		if i < len(r.Keys) {
			key.Secret.Name = r.Keys[i]
		}
		m.Keys = append(m.Keys, key)
	}
	m.Asymmetric, m.Batch, m.Outcomes = o.Asymmetric, batchToProto(o.Batch), o.Outcomes
	if h := o.Handshake; h != nil {
		m.Handshake = &posternv1.Handshake{Origin: h.Origin, RequestRate: int32(h.RequestRate), Revalidate: duration(h.Revalidate), Callback: h.Callback}
	}
	m.ConnectTimeout, m.TlsTimeout = duration(o.ConnectTimeout), duration(o.TLSTimeout)
	m.RequestsPerSecond, m.DisableAfter = o.RequestsPerSecond, duration(o.DisableAfter)
	m.Tls = tlsToProto(o.TLS, r.TLS)
	switch a := o.Auth; {
	case a == nil:
	case a.Basic != nil:
		m.Auth = &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Basic{Basic: &posternv1.BasicAuth{
			Username: a.Basic.Username, Password: &posternv1.SecretReference{Name: r.Password},
		}}}
	case a.OAuth2 != nil:
		m.Auth = &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Oauth2{Oauth2: &posternv1.OAuth2{
			TokenUrl: a.OAuth2.TokenURL, ClientId: a.OAuth2.ClientID, ClientSecret: &posternv1.SecretReference{Name: r.ClientSecret},
			Scopes: a.OAuth2.Scopes, Audience: a.OAuth2.Audience, AuthStyle: a.OAuth2.AuthStyle,
		}}}
	case a.JWT != nil:
		m.Auth = &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Jwt{Jwt: &posternv1.MintedToken{
			Audience: a.JWT.Audience, Subject: a.JWT.Subject, Lifetime: duration(a.JWT.Lifetime),
		}}}
	default:
		m.Auth = &posternv1.WebhookAuth{Way: &posternv1.WebhookAuth_Bearer{Bearer: &posternv1.SecretReference{Name: r.Bearer}}}
	}
}

func pushFromProto(m *posternv1.Push, r *References) *push.Options {
	o := &push.Options{
		Address: m.GetAddress(), Timeout: m.GetTimeout().AsDuration(), Concurrency: int(m.GetConcurrency()), RequestsPerSecond: m.GetRequestsPerSecond(),
		Batch: batchFromProto(m.GetBatch()), DisableAfter: m.GetDisableAfter().AsDuration(), View: viewFromProto(m.GetView()),
	}
	o.TLS, r.TLS = tlsFromProto(m.GetTls())
	for name, s := range m.GetMetadata() {
		if r.Metadata == nil {
			r.Metadata = map[string]string{}
		}
		r.Metadata[name] = s.GetName()
	}
	return o
}

func pushToProto(o *push.Options, r References) *posternv1.Push {
	m := &posternv1.Push{
		Address: o.Address, Timeout: duration(o.Timeout), Concurrency: int32(o.Concurrency), RequestsPerSecond: o.RequestsPerSecond,
		Batch: batchToProto(o.Batch), DisableAfter: duration(o.DisableAfter), Tls: tlsToProto(o.TLS, r.TLS),
		View: viewToProto(o.View),
	}
	if len(r.Metadata)+len(o.Metadata) > 0 {
		m.Metadata = map[string]*posternv1.SecretReference{}
	}
	for name := range o.Metadata {
		m.Metadata[name] = &posternv1.SecretReference{}
	}
	for name, reference := range r.Metadata {
		m.Metadata[name] = &posternv1.SecretReference{Name: reference}
	}
	return m
}

func tlsFromProto(m *posternv1.PushTLS) (*webhook.TLS, map[string]string) {
	if m == nil {
		return nil, nil
	}
	var names map[string]string
	for _, f := range tlsFiles {
		if r := f.of(m); r != nil {
			if names == nil {
				names = map[string]string{}
			}
			names[f.name] = r.GetName()
		}
	}
	return &webhook.TLS{ServerName: m.GetServerName()}, names
}

// tlsToProto writes no paths: those of a configuration file are nobody else's.
func tlsToProto(t *webhook.TLS, names map[string]string) *posternv1.PushTLS {
	if t == nil {
		return nil
	}
	m := &posternv1.PushTLS{ServerName: t.ServerName}
	for _, f := range tlsFiles {
		if name, ok := names[f.name]; ok || *f.at(t) != "" {
			f.set(m, &posternv1.SecretReference{Name: name})
		}
	}
	return m
}

func batchFromProto(m *posternv1.PushBatch) *endpoint.Batch {
	if m == nil {
		return nil
	}
	return &endpoint.Batch{MaxEvents: int(m.GetMaxEvents()), MaxBytes: setting.Bytes(m.GetMaxBytes()), MaxWait: m.GetMaxWait().AsDuration()}
}

func batchToProto(b *endpoint.Batch) *posternv1.PushBatch {
	if b == nil {
		return nil
	}
	return &posternv1.PushBatch{MaxEvents: int32(b.MaxEvents), MaxBytes: int64(b.MaxBytes), MaxWait: duration(b.MaxWait)}
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func timestampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// namedReference is a place where a secret is named, and the name.
type namedReference struct {
	path string
	*posternv1.SecretReference
}

// referencesOf lists the places of m where secrets are named.
func referencesOf(m *posternv1.Subscription) (all []namedReference) {
	add := func(path string, r *posternv1.SecretReference) {
		if r != nil {
			all = append(all, namedReference{path, r})
		}
	}
	files := func(path string, m *posternv1.PushTLS) {
		for _, f := range tlsFiles {
			add(path+".tls."+f.name, f.of(m))
		}
	}
	w, p := m.GetWebhook(), m.GetPush()
	for _, r := range w.GetSecrets() {
		add("webhook.secrets", r)
	}
	for _, k := range w.GetKeys() {
		add("webhook.keys", k.GetSecret())
	}
	for _, r := range w.GetHeaders() {
		add("webhook.headers", r)
	}
	if b := w.GetAuth().GetBasic(); b != nil {
		add("webhook.auth.basic.password", b.GetPassword())
	}
	add("webhook.auth.bearer", w.GetAuth().GetBearer())
	add("webhook.auth.oauth2.client_secret", w.GetAuth().GetOauth2().GetClientSecret())
	files("webhook", w.GetTls())
	for _, r := range p.GetMetadata() {
		add("push.metadata", r)
	}
	files("push", p.GetTls())
	return all
}

// hideFile takes out of m what only the gateway of its configuration file may
// know: the parts of URLs that may be a secret.
func hideFile(m *posternv1.Subscription) {
	if w := m.GetWebhook(); w != nil {
		w.Url = publicURL(w.GetUrl())
		if o := w.GetAuth().GetOauth2(); o != nil {
			o.TokenUrl = publicURL(o.GetTokenUrl())
		}
	}
}
