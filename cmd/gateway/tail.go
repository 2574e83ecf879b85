package main

import (
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func tailCommand() *cobra.Command {
	var c client
	var from, view string
	var count int64
	command := &cobra.Command{
		Use:     "tail TOPIC",
		Short:   "Print a topic as it grows, without a subscription",
		Example: "  postern tail orders\n  postern tail orders --from earliest -n 10\n  postern tail orders --from 5m",
		Args:    cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			ctx := command.Context()
			shown, err := viewOf(view)
			if err != nil {
				return err
			}
			conn, err := c.connect()
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			stream, err := posternv1.NewSubscriberClient(conn).Tail(ctx, &posternv1.TailRequest{Topic: args[0], Start: startOf(from), Limit: count, View: shown})
			if err != nil {
				return c.explain(ctx, err)
			}
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return c.explain(ctx, err)
				}
				for _, e := range m.GetEvents() {
					note := ""
					if e.GetViewError() != nil {
						note = " (raw: " + e.GetViewError().GetMessage() + ")"
					}
					printEvent(command.OutOrStdout(), e.GetPosition(), e.GetEvent(), note)
				}
			}
		},
	}
	c.flags(command)
	command.Flags().StringVar(&from, "from", "latest", "where to begin: earliest, latest, a time, a cursor, or how long ago (5m)")
	command.Flags().StringVar(&view, "view", "raw", "raw, or json: whatever the topic holds")
	command.Flags().Int64VarP(&count, "count", "n", 0, "stop after this many events")
	return command
}

func startOf(from string) *posternv1.Start {
	if d, err := time.ParseDuration(from); err == nil {
		return &posternv1.Start{At: &posternv1.Start_Time{Time: timestamppb.New(time.Now().Add(-d))}}
	}
	if t, err := time.Parse(time.RFC3339Nano, from); err == nil {
		return &posternv1.Start{At: &posternv1.Start_Time{Time: timestamppb.New(t)}}
	}
	switch from {
	case "earliest":
		return &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_EARLIEST}}
	case "latest", "":
		return &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
	}
	return &posternv1.Start{At: &posternv1.Start_Cursor{Cursor: from}}
}
