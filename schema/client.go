package schema

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/postern-dev/postern/fault"
)

// maxAnswer bounds one answer of the registry.
const maxAnswer = 8 << 20

// Client asks a registry. It keeps nothing: Registry does.
type Client struct {
	urls    []*sr.Client
	timeout time.Duration
	last    atomic.Int64 // which of urls answered last
	idle    func()
}

// Dialer opens connections; nil is net.Dialer's.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// NewClient makes a client of valid options.
func NewClient(o Options, dial Dialer) (*Client, error) {
	o = o.WithDefaults()
	if len(o.URLs) == 0 {
		return nil, errors.New("schema_registry.urls: no registry is named")
	}
	tls, err := o.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("schema_registry.tls: %w", err)
	}
	if dial == nil {
		dial = (&net.Dialer{Timeout: o.Timeout}).DialContext
	}
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSClientConfig: tls, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 8, MaxConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: o.Timeout, MaxResponseHeaderBytes: 64 << 10,
	}
	var transport http.RoundTripper = bounded{base}
	if o.OAuth != nil {
		// The token is fetched over the same bounded transport, and kept until it runs out.
		ctx := context.WithValue(context.Background(), oauth2.HTTPClient, &http.Client{Transport: transport, Timeout: o.Timeout})
		credentials := clientcredentials.Config{
			ClientID: o.OAuth.ClientID, ClientSecret: o.OAuth.ClientSecret.Reveal(), TokenURL: o.OAuth.TokenURL, Scopes: o.OAuth.Scopes,
		}
		transport = &oauth2.Transport{Source: credentials.TokenSource(ctx), Base: transport}
	}
	c := &Client{timeout: o.Timeout, idle: base.CloseIdleConnections}
	for _, u := range o.URLs {
		options := []sr.ClientOpt{
			sr.URLs(u), sr.UserAgent("postern"), sr.DefaultSchemaContext(o.Context),
			sr.HTTPClient(&http.Client{Transport: transport, Timeout: o.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}),
		}
		if o.Basic != nil {
			options = append(options, sr.BasicAuth(o.Basic.Username, o.Basic.Password.Reveal()))
		}
		if !o.BearerToken.IsZero() {
			options = append(options, sr.BearerToken(o.BearerToken.Reveal()))
		}
		if len(o.Headers) > 0 {
			options = append(options, sr.PreReq(func(r *http.Request) error {
				for name, value := range o.Headers {
					r.Header.Set(name, value.Reveal())
				}
				return nil
			}))
		}
		one, err := sr.NewClient(options...)
		if err != nil {
			return nil, fmt.Errorf("schema_registry: %w", err)
		}
		c.urls = append(c.urls, one)
	}
	return c, nil
}

// bounded cuts answers that are larger than any schema.
type bounded struct{ base http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.base.RoundTrip(r)
	if err == nil {
		answer.Body = &boundedBody{answer.Body, maxAnswer}
	}
	return answer, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

var errAnswerTooLarge = fmt.Errorf("the registry's answer is larger than %d bytes", maxAnswer)

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errAnswerTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Close gives idle connections up.
func (c *Client) Close() { c.idle() }

// ask calls the registry's URLs in turn, the one that answered last first,
// until one gives an answer. A refusal is an answer; being down is not.
func ask[V any](ctx context.Context, c *Client, call func(context.Context, *sr.Client) (V, error)) (V, error) {
	var none V
	var failed error
	first := int(c.last.Load())
	for i := range c.urls {
		at := (first + i) % len(c.urls)
		bounded, cancel := context.WithTimeout(ctx, c.timeout)
		v, err := call(bounded, c.urls[at])
		cancel()
		if err == nil {
			c.last.Store(int64(at))
			return v, nil
		}
		if definite(err) {
			c.last.Store(int64(at))
			return none, err
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return none, failed
}

// definite reports whether an error is the registry's answer to the question,
// rather than about how the registry is.
func definite(err error) bool {
	var answer *sr.ResponseError
	if !errors.As(err, &answer) {
		return false
	}
	switch s := answer.StatusCode; s {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	default:
		return s >= 400 && s < 500
	}
}

// registryFault says what the registry's failure means to a caller.
func registryFault(what string, err error) error {
	if err == nil {
		return nil
	}
	var answer *sr.ResponseError
	if errors.As(err, &answer) {
		switch {
		case answer.StatusCode == http.StatusNotFound:
			return fault.New(fault.UnknownSchema, "the schema registry has no %s: register it (%s)", what, excerptLong(answer.Message))
		case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
			return fault.New(fault.RegistryUnavailable, "the schema registry refuses the gateway's credentials (HTTP %d): whoever runs the gateway must correct schema_registry", answer.StatusCode)
		case definite(err):
			return fault.New(fault.SchemaUnusable, "the schema registry refuses to give %s: %s", what, excerptLong(answer.Message))
		default:
			return fault.New(fault.RegistryUnavailable, "the schema registry answered HTTP %d when asked for %s: retry", answer.StatusCode, what)
		}
	}
	return fault.New(fault.RegistryUnavailable, "the schema registry did not answer when asked for %s: retry", what).With("cause", excerptLong(err.Error()))
}

// Definition is a schema's text, and what it refers to.
type Definition struct {
	Format     Format
	Text       string
	References []Reference
}

// Reference is a schema that another refers to by Name.
type Reference struct {
	Name    string `json:"name"`
	Subject string `json:"subject"`
	Version int    `json:"version"`
}

// Registered is a schema as a subject has it.
type Registered struct {
	Subject string
	Version int
	ID      int
	Definition
}

func definitionOf(s sr.Schema) Definition {
	d := Definition{Format: Format(s.Type.String()), Text: s.Schema}
	for _, r := range s.References {
		d.References = append(d.References, Reference(r))
	}
	return d
}

func schemaOf(d Definition) sr.Schema {
	s := sr.Schema{Schema: d.Text}
	switch d.Format {
	case JSON:
		s.Type = sr.TypeJSON
	case Protobuf:
		s.Type = sr.TypeProtobuf
	}
	for _, r := range d.References {
		s.References = append(s.References, sr.SchemaReference(r))
	}
	return s
}

func registeredOf(s sr.SubjectSchema) Registered {
	return Registered{s.Subject, s.Version, s.ID, definitionOf(s.Schema)}
}

// ByID gives the schema with an id.
func (c *Client) ByID(ctx context.Context, id int) (Definition, error) {
	s, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.Schema, error) { return one.SchemaByID(ctx, id) })
	return definitionOf(s), registryFault(fmt.Sprintf("schema with the id %d", id), err)
}

// Latest as a version is a subject's newest.
const Latest = -1

// At gives a version of a subject.
func (c *Client) At(ctx context.Context, subject string, version int) (Registered, error) {
	what := fmt.Sprintf("version %d of the subject %s", version, subject)
	if version == Latest {
		what = "schema for the subject " + subject
	}
	s, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.SubjectSchema, error) {
		return one.SchemaByVersion(ctx, subject, version)
	})
	return registeredOf(s), registryFault(what, err)
}

// Find gives the version under which a subject has a schema.
func (c *Client) Find(ctx context.Context, subject string, d Definition) (Registered, error) {
	s, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.SubjectSchema, error) {
		return one.LookupSchema(ctx, subject, schemaOf(d))
	})
	return registeredOf(s), registryFault("such schema under the subject "+subject, err)
}

// Subjects lists all subjects.
func (c *Client) Subjects(ctx context.Context) ([]string, error) {
	s, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) ([]string, error) { return one.Subjects(ctx) })
	return s, registryFault("list of subjects", err)
}

// Versions lists the versions of a subject.
func (c *Client) Versions(ctx context.Context, subject string) ([]int, error) {
	s, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) ([]int, error) { return one.SubjectVersions(ctx, subject) })
	return s, registryFault("subject "+subject, err)
}

// Register stores a schema under a subject and gives its id; one that is there keeps its own.
func (c *Client) Register(ctx context.Context, subject string, d Definition) (int, error) {
	id, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (int, error) {
		return one.RegisterSchema(ctx, subject, schemaOf(d), -1, -1)
	})
	return id, refusedFault("register a schema under "+subject, err)
}

// Compatible asks the registry whether a schema may follow a subject's versions,
// by the subject's level. The messages say why not, where the registry does.
func (c *Client) Compatible(ctx context.Context, subject string, d Definition) (bool, []string, error) {
	answer, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.CheckCompatibilityResult, error) {
		return one.CheckCompatibility(sr.WithParams(ctx, sr.Verbose), subject, -2, schemaOf(d))
	})
	return answer.Is, answer.Messages, refusedFault("check a schema for "+subject, err)
}

// Level is a subject's compatibility level, or the registry's own.
func (c *Client) Level(ctx context.Context, subject string) (Level, error) {
	answer, err := ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.CompatibilityResult, error) {
		r := one.Compatibility(sr.WithParams(ctx, sr.DefaultToGlobal), subject)
		return r[0], r[0].Err
	})
	if fault.Is(registryFault("", err), fault.UnknownSchema) { // the subject has none of its own
		answer, err = ask(ctx, c, func(ctx context.Context, one *sr.Client) (sr.CompatibilityResult, error) {
			r := one.Compatibility(ctx)
			return r[0], r[0].Err
		})
	}
	if err != nil {
		return "", registryFault("compatibility level of "+subject, err)
	}
	return Level(answer.Level.String()), nil
}

// refusedFault keeps the registry's words when it refuses a schema.
func refusedFault(what string, err error) error {
	var answer *sr.ResponseError
	if errors.As(err, &answer) && definite(err) && answer.StatusCode != http.StatusNotFound {
		return fault.New(fault.SchemaUnusable, "%s: the schema registry refuses it: %s", what, excerptLong(answer.Message)).With("registry_code", fmt.Sprint(answer.ErrorCode))
	}
	return registryFault(what, err)
}

// Level says which versions a new one must be compatible with, and in which direction.
type Level string

// The levels, by the registry's names.
const (
	LevelNone               Level = "NONE"
	LevelBackward           Level = "BACKWARD"
	LevelBackwardTransitive Level = "BACKWARD_TRANSITIVE"
	LevelForward            Level = "FORWARD"
	LevelForwardTransitive  Level = "FORWARD_TRANSITIVE"
	LevelFull               Level = "FULL"
	LevelFullTransitive     Level = "FULL_TRANSITIVE"
)
