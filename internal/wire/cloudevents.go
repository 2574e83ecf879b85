package wire

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/postern-dev/postern/event"
)

// FromCloudEventProto reads one CloudEvent in the protobuf format (CloudEvents
// protobuf event format 1.0).
func FromCloudEventProto(body []byte) (event.Event, error) {
	var m pb.CloudEvent
	if err := proto.Unmarshal(body, &m); err != nil {
		return event.Event{}, &event.InvalidError{Form: true, Field: "body", Message: "it is no io.cloudevents.v1.CloudEvent message: " + err.Error()}
	}
	return fromCloudEvent(&m)
}

// FromCloudEventBatchProto reads the protobuf batch format. One bad event does not fail the others.
func FromCloudEventBatchProto(body []byte, most int) ([]event.Item, error) {
	wrong := func(err error) error {
		return &event.InvalidError{Form: true, Field: "body", Message: "it is no io.cloudevents.v1.CloudEventBatch message: " + err.Error()}
	}
	var items []event.Item
	for len(body) > 0 { // the batch is a repeated field 1; the SDK has no message for it
		number, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return nil, wrong(protowire.ParseError(n))
		}
		if number != 1 || kind != protowire.BytesType {
			m := protowire.ConsumeFieldValue(number, kind, body[n:])
			if m < 0 {
				return nil, wrong(protowire.ParseError(m))
			}
			body = body[n+m:]
			continue
		}
		one, m := protowire.ConsumeBytes(body[n:])
		if m < 0 {
			return nil, wrong(protowire.ParseError(m))
		}
		if len(items) == most {
			return nil, &event.InvalidError{Form: true, Field: "body", Message: fmt.Sprintf("the batch has more than %d events", most)}
		}
		e, err := FromCloudEventProto(one)
		items, body = append(items, event.Item{Event: e, Err: err}), body[n+m:]
	}
	return items, nil
}

func fromCloudEvent(m *pb.CloudEvent) (event.Event, error) {
	e := event.Event{ID: m.GetId(), Source: m.GetSource(), Type: m.GetType(), Partition: event.AnyPartition}
	if v := m.GetSpecVersion(); v != event.SpecVersion {
		return e, &event.InvalidError{Field: "spec_version", Message: fmt.Sprintf("%q is not a version we read: send %q", v, event.SpecVersion)}
	}
	if err := e.RequireCloudEvent(); err != nil {
		return e, err
	}
	names := make([]string, 0, len(m.GetAttributes()))
	for name := range m.GetAttributes() {
		names = append(names, name)
	}
	slices.Sort(names) // so that extensions do not depend on chance
	for _, name := range names {
		text, err := attributeText(m.GetAttributes()[name])
		if err == nil {
			err = e.SetAttribute("attributes["+name+"]", name, text)
		}
		if err != nil {
			return e, err
		}
	}
	switch data := m.GetData().(type) {
	case *pb.CloudEvent_BinaryData:
		e.Data = notNil(data.BinaryData)
	case *pb.CloudEvent_TextData:
		e.Data = notNil([]byte(data.TextData))
	case *pb.CloudEvent_ProtoData: // section 3.2: the message itself; its type is said by dataschema, if at all
		e.Data = notNil(data.ProtoData.GetValue())
		if e.ContentType == "" {
			e.ContentType = "application/protobuf"
		}
	}
	return e, nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// attributeText is an attribute's canonical string (CloudEvents 1.0, section 3.1.1).
func attributeText(v *pb.CloudEventAttributeValue) (string, error) {
	switch a := v.GetAttr().(type) {
	case *pb.CloudEventAttributeValue_CeBoolean:
		return strconv.FormatBool(a.CeBoolean), nil
	case *pb.CloudEventAttributeValue_CeInteger:
		return strconv.FormatInt(int64(a.CeInteger), 10), nil
	case *pb.CloudEventAttributeValue_CeString:
		return a.CeString, nil
	case *pb.CloudEventAttributeValue_CeBytes:
		return base64.StdEncoding.EncodeToString(a.CeBytes), nil
	case *pb.CloudEventAttributeValue_CeUri:
		return a.CeUri, nil
	case *pb.CloudEventAttributeValue_CeUriRef:
		return a.CeUriRef, nil
	case *pb.CloudEventAttributeValue_CeTimestamp:
		if err := a.CeTimestamp.CheckValid(); err != nil {
			return "", &event.InvalidError{Field: "attributes", Message: err.Error()}
		}
		return a.CeTimestamp.AsTime().Format(time.RFC3339Nano), nil
	}
	return "", &event.InvalidError{Field: "attributes", Message: "an attribute has no value"}
}
