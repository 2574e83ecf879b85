package delivery

import (
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/postern-dev/postern/broker"
	"github.com/postern-dev/postern/event"
)

// Options is what a queue does, with every default filled in.
type Options struct {
	Name            string
	Group           string
	Topics          []string
	TopicsPattern   string // in place of Topics
	Order           Order
	Start           broker.Start
	Lease           time.Duration
	Retry           Retry
	DeadLetterTopic string
	// Filter passes the events that are delivered; nil passes all. FilterErrors
	// says what becomes of one that it cannot judge.
	Filter       Filter
	FilterErrors FilterErrors
	// SidePrefix begins the names of the topics for events that must wait (side.go).
	SidePrefix string
}

// Filter decides whether an event is a subscription's. Safe for concurrent use.
type Filter interface {
	// Match judges r. What it answers may depend on data that is in the schema
	// registry's wire format: then it says ErrEncoded, and is asked again with that
	// data as JSON.
	Match(r *event.Record, decoded []byte) (bool, error)
	String() string // equal for filters that are the same
}

// FilterErrors says what becomes of an event that the filter fails on.
type FilterErrors uint8

const (
	FilterDeadLetters FilterErrors = iota // dead-lettered with the error
	FilterSkips                           // as one that does not match
)

// isLetters reports whether a pattern leaves topic out because it holds dead letters.
func (o Options) isLetters(topic string) bool {
	return topic == o.DeadLetterTopic || strings.HasSuffix(topic, ".dead")
}

// Reads reports whether topic is one of the subscription's.
func (o Options) Reads(topic string) bool {
	if o.TopicsPattern == "" {
		return slices.Contains(o.Topics, topic)
	}
	ok, _ := path.Match(o.TopicsPattern, topic) // checked where it was declared
	return ok && !strings.HasPrefix(topic, "_") && !o.isLetters(topic)
}

// consumer is who reads the subscription's topics.
func (o Options) consumer() broker.ConsumerOptions {
	return broker.ConsumerOptions{Group: o.Group, Topics: o.Topics, Start: o.Start, Pattern: o.TopicsPattern, Except: o.isLetters}
}

// differences names the options that differ.
func (o Options) differences(p Options) []string {
	var names []string
	if text(o.Filter) != text(p.Filter) {
		names = append(names, "Filter")
	}
	o.Filter, p.Filter = nil, nil
	a, b := reflect.ValueOf(o), reflect.ValueOf(p)
	for i := range a.NumField() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, a.Type().Field(i).Name)
		}
	}
	return names
}

func text(f Filter) string {
	if f == nil {
		return ""
	}
	return f.String()
}
