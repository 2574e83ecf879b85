package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"

	"github.com/postern-dev/postern/internal/wire"
)

func publishCommand() *cobra.Command {
	var c client
	var key, contentType, id, source, kind string
	var headers []string
	command := &cobra.Command{
		Use:   "publish TOPIC [DATA]",
		Short: "Publish an event, or each line of standard input",
		Example: `  postern publish orders --key anna '{"item":"tea"}'
  postern publish orders --ce-id 1 --ce-source /shop --ce-type order.created '{"item":"tea"}'
  cat lines.txt | postern publish orders`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(command *cobra.Command, args []string) error {
			conn, err := c.connect()
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // nothing is left to send
			make := func(data []byte) (*posternv1.Event, error) {
				e := &posternv1.Event{Id: id, Source: source, Type: kind, ContentType: contentType, Data: data}
				if command.Flags().Changed("key") {
					e.Key = []byte(key)
				}
				for _, h := range headers {
					name, value, ok := strings.Cut(h, "=")
					if !ok {
						return nil, usageError{fmt.Errorf("--header %s is not name=value", h)}
					}
					e.Headers = append(e.Headers, &posternv1.Header{Name: name, Value: []byte(value)})
				}
				return e, nil
			}
			send := func(data []byte) error {
				e, err := make(data)
				if err != nil {
					return err
				}
				answer, err := posternv1.NewPublisherClient(conn).Publish(command.Context(), &posternv1.PublishRequest{Topic: args[0], Events: []*posternv1.Event{e}})
				if err != nil {
					return c.explain(command.Context(), err)
				}
				result := answer.GetResults()[0]
				if result.GetError() != nil {
					f := wire.FromStatus(result.GetError())
					return fmt.Errorf("%s (%s)", f.Message, f.Reason)
				}
				p := result.GetPosition()
				fmt.Fprintf(command.OutOrStdout(), "%s[%d]@%d\n", p.GetTopic(), p.GetPartition(), p.GetOffset())
				return nil
			}
			if len(args) == 2 {
				return send([]byte(args[1]))
			}
			lines := bufio.NewReader(os.Stdin)
			for {
				line, err := lines.ReadString('\n')
				if line = strings.TrimRight(line, "\r\n"); line != "" {
					if err := send([]byte(line)); err != nil {
						return err
					}
				}
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("read standard input: %w", err)
				}
			}
		},
	}
	c.flags(command)
	command.Flags().StringVarP(&key, "key", "k", "", "record key")
	command.Flags().StringVar(&contentType, "content-type", "", "media type of the data")
	command.Flags().StringVar(&id, "ce-id", "", "CloudEvents id")
	command.Flags().StringVar(&source, "ce-source", "", "CloudEvents source")
	command.Flags().StringVar(&kind, "ce-type", "", "CloudEvents type")
	command.Flags().StringArrayVarP(&headers, "header", "H", nil, "record header `name=value`, repeatable")
	return command
}
