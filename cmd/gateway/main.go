// Command postern is the event gateway: publish and subscribe over plain HTTP
// or gRPC, with Kafka behind it done right. One file for each verb.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = ""

// Exit codes.
const (
	exitFailed = 1 // the work failed
	exitUsage  = 2 // the command or its configuration is wrong
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// usageError is a wrong command line or configuration.
type usageError struct{ error }

func run(ctx context.Context, args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "postern:", err)
	return exitOf(err)
}

// exitOf is the exit code for a command's error.
func exitOf(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	var coded exitError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "An event gateway: Kafka over plain HTTP and gRPC",
		Long: `Postern sits beside your services and speaks Kafka for them: they publish and
subscribe over plain HTTP or gRPC, in any language.

Start here:  postern dev`,
		Version:       buildVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(devCommand(), runCommand(), checkCommand(), publishCommand(), subscribeCommand(), tailCommand(), proveCommand(),
		subscriptionsCommand(), whyCommand(), deadLettersCommand(), schemasCommand(), topicsCommand(),
		listenCommand(), webhooksCommand(), attemptsCommand())
	return root
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
