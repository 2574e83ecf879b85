package event

import (
	"fmt"
	"strings"
)

// maxTopicLength is Kafka's own limit on topic names, in bytes.
const maxTopicLength = 249

// ParseTopic checks that name is a legal Kafka topic name in its one canonical
// form: 1 to 249 of the characters a-z A-Z 0-9 . _ - and neither "." nor "..".
// Every surface calls it before it decides anything on a name, so that no
// other spelling (escapes, slashes, Unicode) reaches a decision.
func ParseTopic(name string) (string, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("the topic name is empty")
	case len(name) > maxTopicLength:
		return "", fmt.Errorf("the topic name has %d bytes, Kafka allows %d", len(name), maxTopicLength)
	case name == "." || name == "..":
		return "", fmt.Errorf("%q is not a legal topic name", name)
	}
	if i := strings.IndexFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	}); i >= 0 {
		return "", fmt.Errorf("topic name %q has an illegal character at byte %d: use a-z A-Z 0-9 . _ -", name, i)
	}
	return name, nil
}
