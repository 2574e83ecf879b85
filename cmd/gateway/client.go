package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/postern-dev/postern/internal/wire"
)

const defaultGRPC = "127.0.0.1:7601"

// client is how the client commands reach a gateway.
type client struct{ address string }

func (c *client) flags(command *cobra.Command) {
	command.Flags().StringVarP(&c.address, "address", "a", defaultGRPC, "gRPC `address` of the gateway, host:port or unix:/path")
}

// connect opens a connection; it is made when it is first used.
func (c *client) connect() (*grpc.ClientConn, error) {
	target := c.address
	if !strings.HasPrefix(target, "unix:") {
		target = "passthrough:///" + target
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, usageError{fmt.Errorf("--address %s: %w", c.address, err)}
	}
	return conn, nil
}

// explain turns a call's error into words for people.
func (c *client) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return nil // the user stopped it
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	f := wire.FromStatus(s.Proto())
	if strings.Contains(f.Message, "connection refused") {
		return exitError{fmt.Errorf("no gateway answers at %s: start one with: postern dev (%s)", c.address, f.Message), exitUnavailable}
	}
	return exitError{fmt.Errorf("%s (%s)", f.Message, f.Reason), exitCodeOf(f.Kind())}
}
