package schema

import (
	"context"
	"strconv"
)

// Description tells the rule for a topic's keys or values, and what the registry
// has under its subject.
type Description struct {
	Rule     Rule
	Subject  string // "" when each record has its own
	Strategy Strategy
	Version  string // latest, publisher or a number
	JSON     Spelling
	ReadAs   string
	// Of the subject:
	Versions []int
	Latest   int // its newest version's id
	Format   Format
	Text     string // the newest version's
	Err      error  // why the registry's part is missing
}

// Describe tells the rules in force for topic; nil for off.
func (c *Checker) Describe(ctx context.Context, topic string) (value, key *Description) {
	t := c.of(topic)
	if t == nil {
		return nil, nil
	}
	return t.value.describe(ctx), t.key.describe(ctx)
}

func (p *partRule) describe(ctx context.Context) *Description {
	if p == nil {
		return nil
	}
	version, _ := p.Version.MarshalText() // it cannot fail
	d := &Description{Rule: p.Rule, Strategy: p.SubjectStrategy, Version: string(version), JSON: p.spelling, ReadAs: p.ReadAs}
	if d.Strategy == "" {
		d.Strategy = ByTopic
	}
	if d.Subject, d.Err = p.subject(nil, nil); d.Err != nil {
		d.Err = nil // no subject of the topic's own is no failure
		return d
	}
	if p.registry == nil {
		return d
	}
	latest, err := p.registry.at(ctx, d.Subject, Latest)
	if err == nil {
		d.Latest, d.Format, d.Text = latest.id, latest.format(), latest.definition.Text
		d.Versions, err = p.registry.source.Versions(ctx, d.Subject)
	}
	d.Err = err
	return d
}

// ParseVersion reads latest or a number as Client.At takes it.
func ParseVersion(text string) (int, error) {
	if text == "" || text == "latest" {
		return Latest, nil
	}
	var v Version
	if err := v.UnmarshalText([]byte(text)); err != nil || v.Publisher {
		return 0, &strconv.NumError{Func: "ParseVersion", Num: text, Err: strconv.ErrSyntax}
	}
	return v.Number, nil
}
