package config

import (
	"fmt"

	"github.com/goccy/go-yaml/ast"

	"github.com/postern-dev/postern/subscription"
)

// ReadSubscription reads one subscription as the configuration writes it, to be
// declared through the API: secrets are references there, {name: NAME}, because
// the API takes none itself. path is for people.
func ReadSubscription(path string, text []byte) (subscription.Spec, error) {
	var s subscription.Spec
	f, err := parse(path, text)
	if err != nil {
		return s, err
	}
	if len(f.tree.Docs) == 0 || f.tree.Docs[0].Body == nil {
		return s, fmt.Errorf("%s is empty", path)
	}
	references, err := f.takeReferences()
	if err != nil {
		return s, err
	}
	if err := f.into(&s); err != nil {
		return s, err
	}
	s.References = references
	if err := s.Validate(); err != nil {
		return s, f.locate(err)
	}
	return s, nil
}

// refused are settings of an endpoint that only a configuration file may have.
var refused = map[string]string{
	"webhook.proxy":       "the API takes no proxy: only the gateway's configuration may have one",
	"webhook.allow_ports": "the API takes no ports: only the gateway's configuration may allow some",
	"tls.ca_file":         "the API takes no paths of files: name a secret, as ca: {name: NAME}",
	"tls.cert_file":       "the API takes no paths of files: name a secret, as certificate: {name: NAME}",
	"tls.key_file":        "the API takes no paths of files: name a secret, as key: {name: NAME}",
}

// takeReferences takes what names a secret out of the tree.
func (f *file) takeReferences() (r subscription.References, err error) {
	root := f.tree.Docs[0].Body
	for _, endpoint := range [...]string{"webhook", "push"} {
		at := child(root, endpoint)
		for _, v := range values(at) {
			if why := refused[endpoint+"."+v.Key.String()]; why != "" {
				return r, f.at(v, why)
			}
		}
		tls := child(at, "tls")
		for _, v := range values(tls) {
			if why := refused["tls."+v.Key.String()]; why != "" {
				return r, f.at(v, why)
			}
		}
		for _, name := range [...]string{"ca", "certificate", "key"} {
			if err := f.takeName(tls, name, func(s string) {
				if r.TLS == nil {
					r.TLS = map[string]string{}
				}
				r.TLS[name] = s
			}); err != nil {
				return r, err
			}
		}
	}
	webhook, auth := child(root, "webhook"), child(child(root, "webhook"), "auth")
	if r.Secrets, err = f.takeList(webhook, "secrets"); err != nil {
		return r, err
	}
	if r.Headers, err = f.takeMap(webhook, "headers"); err != nil {
		return r, err
	}
	if r.Metadata, err = f.takeMap(child(root, "push"), "metadata"); err != nil {
		return r, err
	}
	if keys, ok := child(webhook, "keys").(*ast.SequenceNode); ok {
		for _, key := range keys.Values {
			r.Keys = append(r.Keys, "")
			if err := f.takeName(key, "secret", func(s string) { r.Keys[len(r.Keys)-1] = s }); err != nil {
				return r, err
			}
		}
	}
	for _, one := range []struct {
		in   ast.Node
		name string
		into *string
	}{{auth, "bearer", &r.Bearer}, {child(auth, "basic"), "password", &r.Password}, {child(auth, "oauth2"), "client_secret", &r.ClientSecret}} {
		if err := f.takeName(one.in, one.name, func(s string) { *one.into = s }); err != nil {
			return r, err
		}
	}
	return r, nil
}

func values(n ast.Node) []*ast.MappingValueNode {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

// take takes the entry called name out of a mapping.
func take(from ast.Node, name string) ast.Node {
	m, ok := from.(*ast.MappingNode)
	if !ok {
		return nil
	}
	for i, v := range m.Values {
		if v.Key.String() == name {
			m.Values = append(m.Values[:i:i], m.Values[i+1:]...)
			return v.Value
		}
	}
	return nil
}

// name reads {name: NAME}.
func (f *file) name(n ast.Node) (string, error) {
	if m := values(n); len(m) == 1 && m[0].Key.String() == "name" {
		if s, ok := m[0].Value.(*ast.StringNode); ok {
			return s.Value, nil
		}
	}
	return "", f.at(n, "a secret is named here, as {name: signing}: the gateway's operator provides it, and the API takes none itself")
}

func (f *file) takeName(from ast.Node, name string, set func(string)) error {
	n := take(from, name)
	if n == nil {
		return nil
	}
	s, err := f.name(n)
	if err == nil {
		set(s)
	}
	return err
}

func (f *file) takeList(from ast.Node, name string) (names []string, err error) {
	n := take(from, name)
	if n == nil {
		return nil, nil
	}
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return nil, f.at(n, name+" is a list: [{name: signing}]")
	}
	for _, v := range list.Values {
		s, err := f.name(v)
		if err != nil {
			return nil, err
		}
		names = append(names, s)
	}
	return names, nil
}

func (f *file) takeMap(from ast.Node, name string) (map[string]string, error) {
	n := take(from, name)
	if n == nil {
		return nil, nil
	}
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return nil, f.at(n, name+" is a mapping: {Authorization: {name: token}}")
	}
	names := map[string]string{}
	for _, v := range m.Values {
		s, err := f.name(v.Value)
		if err != nil {
			return nil, err
		}
		names[v.Key.String()] = s
	}
	return names, nil
}
