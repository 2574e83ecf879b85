package config

import (
	"bytes"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/postern-dev/postern/subscription"
)

// ReadSubscription reads one subscription as the configuration writes it, to be
// declared through the API: secrets are references there, {name: NAME}, because
// the API takes none itself. path is for people.
func ReadSubscription(path string, text []byte) (subscription.Spec, error) {
	var s subscription.Spec
	f := &file{path: path, text: text}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return s, f.syntax(err)
	}
	if f.tree = tree; len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return s, fmt.Errorf("%s is empty", path)
	}
	references, err := f.takeReferences()
	if err != nil {
		return s, err
	}
	if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).DecodeFromNode(tree.Docs[0].Body, &s); err != nil {
		return s, f.syntax(err)
	}
	s.References = references
	if err := s.Validate(); err != nil {
		return s, f.locate(err)
	}
	return s, nil
}

// takeReferences takes webhook.secrets and webhook.headers out of the tree.
func (f *file) takeReferences() (subscription.References, error) {
	var r subscription.References
	webhook, ok := child(f.tree.Docs[0].Body, "webhook").(*ast.MappingNode)
	if !ok {
		return r, nil
	}
	name := func(n ast.Node) (string, error) {
		if m, ok := n.(*ast.MappingNode); ok && len(m.Values) == 1 && m.Values[0].Key.String() == "name" {
			if s, ok := m.Values[0].Value.(*ast.StringNode); ok {
				return s.Value, nil
			}
		}
		return "", f.at(n, "a secret is named here, as {name: signing}: the gateway's operator provides it, and the API takes none itself")
	}
	kept := webhook.Values[:0]
	for _, v := range webhook.Values {
		switch v.Key.String() {
		case "secrets":
			list, ok := v.Value.(*ast.SequenceNode)
			if !ok {
				return r, f.at(v.Value, "secrets is a list: [{name: signing}]")
			}
			for _, n := range list.Values {
				s, err := name(n)
				if err != nil {
					return r, err
				}
				r.Secrets = append(r.Secrets, s)
			}
		case "headers":
			m, ok := v.Value.(*ast.MappingNode)
			if !ok {
				return r, f.at(v.Value, "headers is a mapping: {Authorization: {name: token}}")
			}
			r.Headers = map[string]string{}
			for _, h := range m.Values {
				s, err := name(h.Value)
				if err != nil {
					return r, err
				}
				r.Headers[h.Key.String()] = s
			}
		default:
			kept = append(kept, v)
		}
	}
	webhook.Values = kept
	return r, nil
}
