package schema

import (
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func codecOf(t testing.TB, f Format, text string, parts ...part) codec {
	t.Helper()
	c, err := compile(f, text, parts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rulesOf(r *report) string {
	var all []string
	for _, v := range r.list {
		all = append(all, v.Field+" "+v.Rule)
	}
	return strings.Join(all, "\n")
}

func TestEveryViolationOfAJSONEventIsTold(t *testing.T) {
	c := codecOf(t, JSON, `{"type":"object","required":["id","qty"],"additionalProperties":false,"properties":{
	 "id":{"type":"string","minLength":3},"qty":{"type":"integer","minimum":1},"state":{"enum":["new","paid"]},
	 "mail":{"type":"string","format":"email"},"tags":{"type":"array","items":{"type":"string"},"maxItems":2},
	 "pay":{"oneOf":[{"type":"object","properties":{"card":{"type":"string"}},"required":["card"]},{"type":"object","properties":{"iban":{"type":"string"}},"required":["iban","bic"]}]}}}`)
	for _, one := range []struct{ text, want string }{
		{`{"id":"abc","qty":1.0,"state":"new","mail":"a@b.c","pay":{"card":"1"}}`, ""},
		{
			`{"id":"a","state":"old","mail":"nobody","tags":["a",1,"c"],"colour":"red","pay":{"card":7}}`,
			"/qty required\n/colour additionalProperties\n/id minLength\n/mail format\n/pay oneOf\n/pay/card type\n/state enum\n/tags maxItems\n/tags/1 type",
		},
		{`{"id":"abc","qty":1,"qty":2}`, " json.duplicate"},
		{`{"id":"abc"`, " json.syntax"},
		{"{\"id\":\"\xff\"}", " json.utf8"},
	} {
		r := &report{}
		c.check([]byte(one.text), nil, r)
		if got := rulesOf(r); got != one.want {
			t.Errorf("%s:\n%s\nwant\n%s", one.text, got, one.want)
		}
	}
}

func TestDraft2020AndReferences(t *testing.T) {
	c := codecOf(t, JSON, `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"who":{"$ref":"person.json"}},"unevaluatedProperties":false}`,
		part{"person.json", `{"type":"object","required":["name"]}`})
	r := &report{}
	c.check([]byte(`{"who":{},"x":1}`), nil, r)
	if got := rulesOf(r); !strings.Contains(got, "/who/name required") || !strings.Contains(got, "/x") {
		t.Errorf("%s", got)
	}
}

func TestReferenceIsFoundWhereTheSchemaHasAnAddressOfItsOwn(t *testing.T) {
	for _, name := range []string{"person.json", "https://example.com/shop/person.json"} {
		c := codecOf(t, JSON, `{"$id":"https://example.com/shop/order.json","properties":{"who":{"$ref":"person.json#/definitions/p"}}}`,
			part{name, `{"definitions":{"p":{"type":"object","required":["name"]}}}`})
		r := &report{}
		if c.check([]byte(`{"who":{}}`), nil, r); rulesOf(r) != "/who/name required" {
			t.Errorf("%s: %s", name, rulesOf(r))
		}
	}
}

func TestNothingIsFetchedForASchema(t *testing.T) {
	for _, text := range []string{`{"$ref":"http://127.0.0.1:1/x.json"}`, `{"$ref":"file:///etc/hostname"}`, `{"$ref":"other.json"}`} {
		if _, err := compile(JSON, text, nil); err == nil || !strings.Contains(err.Error(), "nothing is fetched") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestSchemaThatCostsExponentiallyIsStopped(t *testing.T) {
	deep := strings.Repeat(`{"n":`, 40) + `1` + strings.Repeat("}", 40)
	for name, text := range map[string]string{
		"twice below": `{"allOf":[{"properties":{"n":{"$ref":"#"}}},{"properties":{"n":{"$ref":"#"}}}]}`,
		"failing":     `{"anyOf":[{"type":"object","properties":{"n":{"$ref":"#"}}},{"type":"object","properties":{"n":{"$ref":"#"}}}]}`,
		"twice, flat": `{"$ref":"#/definitions/a0","definitions":{` + chain(30) + `"a30":true}}`,
		"2020, twice": `{"$schema":"https://json-schema.org/draft/2020-12/schema","allOf":[{"properties":{"n":{"$ref":"#"}}},{"properties":{"n":{"$ref":"#"}}}]}`,
	} {
		c := codecOf(t, JSON, text)
		began := time.Now()
		r := &report{}
		c.check([]byte(deep), nil, r)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: %s", name, took)
		}
		if !strings.Contains(rulesOf(r), "json.cost") {
			t.Errorf("%s was checked to its end: %s", name, rulesOf(r))
		}
	}
}

func chain(n int) string {
	var b strings.Builder
	for i := range n {
		next := `{"$ref":"#/definitions/a` + strconv.Itoa(i+1) + `"}`
		b.WriteString(`"a` + strconv.Itoa(i) + `":{"allOf":[` + next + `,` + next + `]},`)
	}
	return b.String()
}

func TestChecksMayRunAtOnce(t *testing.T) {
	c := codecOf(t, JSON, `{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"a":{"type":"string","format":"date"}}}`)
	other := codecOf(t, JSON, `{"$ref":"http://json-schema.org/draft-07/schema#"}`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				good, bad := &report{}, &report{}
				c.check([]byte(`{"a":"2026-01-31"}`), nil, good)
				c.check([]byte(`{"a":"x"}`), nil, bad)
				other.check([]byte(`{"type":"object"}`), nil, good)
				if !good.ok() || bad.ok() {
					t.Errorf("%v %v", good, bad)
				}
			}
		})
	}
	all.Wait()
}
