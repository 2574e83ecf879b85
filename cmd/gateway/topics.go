package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/postern-dev/postern/internal/wire"
	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func topicsCommand() *cobra.Command {
	var c client
	var output string
	describe := &cobra.Command{
		Use:   "describe TOPIC",
		Short: "Show a topic's partitions, and the schema rules in force for it",
		Args:  cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			conn, err := c.connect()
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			topic, err := posternv1.NewTopicsClient(conn).GetTopic(command.Context(), &posternv1.GetTopicRequest{Name: args[0]})
			if err != nil {
				return c.explain(command.Context(), err)
			}
			if output == "json" {
				fmt.Fprintln(command.OutOrStdout(), protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Format(topic))
				return nil
			}
			return describeTopic(command.OutOrStdout(), topic)
		},
	}
	c.flags(describe)
	describe.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	root := &cobra.Command{Use: "topics", Short: "Look at topics"}
	root.AddCommand(describe)
	return root
}

func describeTopic(w io.Writer, topic *posternv1.Topic) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "topic\t%s\n", topic.GetName())
	describeSchema(t, "value schema", topic.GetValueSchema())
	describeSchema(t, "key schema", topic.GetKeySchema())
	for _, p := range topic.GetPartitions() {
		fmt.Fprintf(t, "partition %d\toffsets %d to %d\n", p.GetPartition(), p.GetStartOffset(), p.GetEndOffset())
	}
	return t.Flush()
}

func describeSchema(w io.Writer, what string, s *posternv1.TopicSchema) {
	if s == nil {
		fmt.Fprintf(w, "%s\toff\n", what)
		return
	}
	fmt.Fprintf(w, "%s\t%s, version %s, JSON spelled %s\n", what, s.GetRule(), s.GetVersion(), s.GetJson())
	if s.GetReadAs() != "" {
		fmt.Fprintf(w, "  views read as\tversion %s\n", s.GetReadAs())
	}
	if s.GetSubject() == "" {
		fmt.Fprintf(w, "  subject\tone for each record (%s)\n", s.GetSubjectStrategy())
		return
	}
	fmt.Fprintf(w, "  subject\t%s\n", s.GetSubject())
	if s.GetError() != nil {
		f := wire.FromStatus(s.GetError())
		fmt.Fprintf(w, "  registry\t%s (%s)\n", f.Message, f.Reason)
		return
	}
	fmt.Fprintf(w, "  versions\t%s (%s, newest has id %d)\n", strings.Trim(fmt.Sprint(s.GetVersions()), "[]"), s.GetFormat(), s.GetLatestId())
}
