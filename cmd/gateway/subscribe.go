package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func subscribeCommand() *cobra.Command {
	var c client
	var topics []string
	var latest bool
	var count int
	var view string
	command := &cobra.Command{
		Use:   "subscribe NAME",
		Short: "Print a subscription's events and acknowledge each",
		Long: `Print the events of a subscription and acknowledge each once it is printed. With
--topic the subscription need not be declared: its name is then its group.`,
		Example: "  postern subscribe mail --topic orders\n  postern subscribe mail",
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
			stream, err := posternv1.NewSubscriberClient(conn).Subscribe(ctx)
			if err != nil {
				return c.explain(ctx, err)
			}
			open := &posternv1.Open{Subscription: args[0], ClientId: "postern subscribe", Confirm: posternv1.Confirm_CONFIRM_ON_COMMIT, View: shown}
			if len(topics) > 0 {
				open.Inline = &posternv1.Subscription{Name: args[0], Topics: topics}
				if latest {
					open.Inline.Start = &posternv1.Start{At: &posternv1.Start_Edge{Edge: posternv1.Edge_EDGE_LATEST}}
				}
			}
			if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Open{Open: open}}); err != nil {
				return c.explain(ctx, err)
			}
			printed, settled := 0, 0
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return c.explain(ctx, err)
				}
				settled += len(m.GetReceipts().GetCommitted()) + len(m.GetReceipts().GetAccepted())
				if count > 0 && settled >= count {
					return stream.CloseSend()
				}
				batch := &posternv1.SettleBatch{}
				for _, d := range m.GetDeliveries().GetDeliveries() {
					if count > 0 && printed == count {
						break
					}
					printEvent(command.OutOrStdout(), d.GetPosition(), d.GetEvent(), attemptNote(d.GetAttempt()))
					batch.Acks = append(batch.Acks, d.GetDeliveryId())
					printed++
				}
				if len(batch.Acks) > 0 {
					if err := stream.Send(&posternv1.SubscribeRequest{Frame: &posternv1.SubscribeRequest_Settle{Settle: batch}}); err != nil {
						return c.explain(ctx, err)
					}
				}
			}
		},
	}
	c.flags(command)
	command.Flags().StringArrayVarP(&topics, "topic", "t", nil, "topic to read, repeatable; needed when the subscription is not declared")
	command.Flags().BoolVar(&latest, "latest", false, "a new subscription begins with what is published from now on")
	command.Flags().StringVar(&view, "view", "raw", "raw, or json: whatever the topic holds")
	command.Flags().IntVarP(&count, "count", "n", 0, "stop after this many events")
	return command
}

// viewOf reads --view.
func viewOf(text string) (posternv1.View, error) {
	switch text {
	case "raw":
		return posternv1.View_VIEW_RAW, nil
	case "json":
		return posternv1.View_VIEW_JSON, nil
	}
	return 0, usageError{fmt.Errorf("--view %s is not offered: use raw or json", text)}
}

func attemptNote(attempt int32) string {
	if attempt <= 1 {
		return ""
	}
	return fmt.Sprintf(" attempt %d", attempt)
}

// printEvent writes one event: where it is, its key, and its data.
func printEvent(w io.Writer, p *posternv1.Position, e *posternv1.Event, note string) {
	head := fmt.Sprintf("%s[%d]@%d%s", p.GetTopic(), p.GetPartition(), p.GetOffset(), note)
	if e.Key != nil {
		head += fmt.Sprintf(" key=%q", e.GetKey())
	}
	if e.GetType() != "" {
		head += fmt.Sprintf(" type=%s id=%s", e.GetType(), e.GetId())
	}
	data := string(e.GetData())
	if e.Data == nil {
		data = "(tombstone)"
	}
	fmt.Fprintf(w, "%s %s\n", head, data)
}
