package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/postern-dev/postern/fault"
)

// exitCodes is what the commands that ask a gateway say in their help.
const exitCodes = `
Exit codes: 0 done; 1 failed; 2 the command line or a file is wrong; 3 there is no
such thing; 4 somebody else changed or has it; 5 the gateway or Kafka does not
answer now.`

// Exit codes beside exitFailed and exitUsage.
const (
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
)

// exitError is a failure with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e exitError) Unwrap() error { return e.error }

// exitCodeOf is the exit code of a gateway's answer.
func exitCodeOf(kind fault.Kind) int {
	switch kind {
	case fault.KindInvalid, fault.KindTooLarge, fault.KindUnsupported:
		return exitUsage
	case fault.KindNotFound:
		return exitNotFound
	case fault.KindConflict:
		return exitConflict
	case fault.KindUnavailable, fault.KindExhausted, fault.KindDeadline, fault.KindUnknown:
		return exitUnavailable
	}
	return exitFailed
}

// usage has wrong arguments be a wrong command line.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%w: see %s --help", err, c.CommandPath())}
		}
		return nil
	}
}

// output is how a command's answer is written.
type output struct{ format string }

func (o *output) flags(c *cobra.Command) {
	c.Flags().StringVarP(&o.format, "output", "o", "table", "how to answer: table or json")
}

func (o *output) check() error {
	if o.format != "table" && o.format != "json" {
		return usageError{fmt.Errorf("--output %s is not offered: use table or json", o.format)}
	}
	return nil
}

// write answers with m as JSON, or with what table writes.
func (o *output) write(w io.Writer, m proto.Message, table func(*tabwriter.Writer)) error {
	if o.format == "json" {
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return err
		}
		var text bytes.Buffer // protojson varies its spaces on purpose
		if err := json.Indent(&text, b, "", "  "); err != nil {
			return err
		}
		text.WriteByte('\n')
		_, err = w.Write(text.Bytes())
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	table(t)
	return t.Flush()
}

// row writes cells; an empty one is a dash.
func row(t *tabwriter.Writer, cells ...any) {
	for i, c := range cells {
		text := oneLine(fmt.Sprint(c))
		if text == "" {
			text = "-"
		}
		if i > 0 {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprint(t, text)
	}
	fmt.Fprintln(t)
}

// oneLine keeps what came from outside from moving the terminal's cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r <= 0x9f {
			return ' '
		}
		return r
	}, s)
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.RFC3339)
}

func howLong(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	v := d.AsDuration()
	if v > time.Second {
		v = v.Round(time.Second)
	}
	return v.String()
}

// enum is a value's word without the prefix of its type.
func enum(value fmt.Stringer, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(value.String(), prefix)), "_", " ")
}

// onTerminal reports whether people watch f.
func onTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
