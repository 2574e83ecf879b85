package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	posternv1 "github.com/postern-dev/postern/proto/postern/v1"
)

func deadLettersCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "deadletters",
		Aliases: []string{"deadletter", "dlq"},
		Short:   "See what was given up, deliver it again, or give it up for good",
		Long:    "See what was given up, deliver it again, or give it up for good.\n" + exitCodes,
	}
	c.AddCommand(listDeadLetters(), showDeadLetter(), redriveDeadLetters(), purgeDeadLetters())
	return c
}

// letterFlags choose dead letters.
type letterFlags struct {
	filter       posternv1.DeadLetterFilter
	since, until string
	key, origin  string
}

func (l *letterFlags) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&l.since, "since", "", "dead-lettered at or after this time, or this long ago (2h)")
	f.StringVar(&l.until, "until", "", "dead-lettered before this time, or this long ago")
	f.StringArrayVar(&l.filter.Reasons, "reason", nil, "of this reason class, repeatable: rejected, attempts_exhausted, blocked_too_long, undecodable, filter_error")
	f.StringVarP(&l.key, "key", "k", "", "with this record key")
	f.StringVar(&l.filter.Text, "text", "", "with this text in the failure or the data")
	f.StringVar(&l.origin, "origin", "", "from this TOPIC, or TOPIC[PARTITION]@OFFSET")
	f.StringArrayVar(&l.filter.Ids, "id", nil, "this one, repeatable")
	f.BoolVar(&l.filter.IncludeRedriven, "include-redriven", false, "those too that were redriven before")
}

// read gives the filter, and whether anything was chosen.
func (l *letterFlags) read(c *cobra.Command) (*posternv1.DeadLetterFilter, bool, error) {
	f := &l.filter
	var err error
	if l.since != "" {
		if f.After, err = timeOf(l.since); err != nil {
			return nil, false, usageError{fmt.Errorf("--since: %w", err)}
		}
	}
	if l.until != "" {
		if f.Before, err = timeOf(l.until); err != nil {
			return nil, false, usageError{fmt.Errorf("--until: %w", err)}
		}
	}
	if c.Flags().Changed("key") {
		f.Key = []byte(l.key)
	}
	if m := positionText.FindStringSubmatch(l.origin); m != nil {
		var seek posternv1.SeekSubscriptionRequest
		if err := seekTo(&seek, []string{l.origin}, ""); err != nil {
			return nil, false, usageError{err}
		}
		at := seek.GetPositions().GetPositions()[0]
		f.OriginTopic, f.OriginPartition, f.OriginOffsetFrom, f.OriginOffsetTo = at.Topic, &at.Partition, &at.Offset, proto.Int64(at.Offset+1)
	} else {
		f.OriginTopic = l.origin
	}
	chosen := false
	for _, name := range []string{"since", "until", "reason", "key", "text", "origin", "id"} {
		chosen = chosen || c.Flags().Changed(name)
	}
	return f, chosen, nil
}

func listDeadLetters() *cobra.Command {
	var a asking
	var l letterFlags
	oldest := false
	count := 50
	c := &cobra.Command{
		Use: "list SUBSCRIPTION", Short: "List dead letters, the newest first", Args: usage(cobra.ExactArgs(1)),
		Example: "  postern deadletters list mail --since 2h --reason rejected\n  postern deadletters list mail --key anna --output json",
		RunE: func(c *cobra.Command, args []string) error {
			filter, _, err := l.read(c)
			if err != nil {
				return err
			}
			request := &posternv1.ListDeadLettersRequest{Name: args[0], Filter: filter, Summary: a.format == "table"}
			if oldest {
				request.Order = posternv1.DeadLetterOrder_DEAD_LETTER_ORDER_OLDEST_FIRST
			}
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				all := &posternv1.ListDeadLettersResponse{}
				for len(all.DeadLetters) < count {
					request.PageSize = int32(min(count-len(all.DeadLetters), 500))
					page, err := s.ListDeadLetters(ctx, request)
					if err != nil {
						return err
					}
					all.DeadLetters = append(all.DeadLetters, page.GetDeadLetters()...)
					all.NextPageToken = page.GetNextPageToken()
					if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
						break
					}
				}
				return a.write(c.OutOrStdout(), all, func(t *tabwriter.Writer) {
					row(t, "ID", "DEAD-LETTERED", "REASON", "ATTEMPTS", "ORIGIN", "REDRIVEN", "DETAIL")
					for _, m := range all.GetDeadLetters() {
						row(t, m.GetId(), when(m.GetDeadLettered()), m.GetReason(), m.GetAttempts(), originText(m), m.GetRedrivenBy(), short(m.GetDetail(), 80))
					}
					if all.GetNextPageToken() != "" {
						fmt.Fprintf(t, "There are more: narrow the choice, or raise --count.\n")
					}
				})
			})
		},
	}
	a.flags(c)
	l.flags(c)
	c.Flags().BoolVar(&oldest, "oldest-first", false, "the oldest first")
	c.Flags().IntVarP(&count, "count", "n", 50, "at most this many")
	return c
}

func originText(m *posternv1.DeadLetteredEvent) string {
	return fmt.Sprintf("%s[%d]@%d", m.GetOrigin().GetTopic(), m.GetOrigin().GetPartition(), m.GetOrigin().GetOffset())
}

// short cuts s to n characters.
func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func showDeadLetter() *cobra.Command {
	var a asking
	c := &cobra.Command{
		Use: "show SUBSCRIPTION ID", Short: "Show a dead letter and its evidence", Args: usage(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				m, err := s.GetDeadLetter(ctx, &posternv1.GetDeadLetterRequest{Name: args[0], Id: args[1]})
				if err != nil {
					return err
				}
				return a.write(c.OutOrStdout(), m, func(t *tabwriter.Writer) { letterTable(t, m) })
			})
		},
	}
	a.flags(c)
	return c
}

func letterTable(t *tabwriter.Writer, m *posternv1.DeadLetteredEvent) {
	e := m.GetEvent()
	row(t, "id", m.GetId())
	row(t, "origin", originText(m))
	row(t, "reason", m.GetReason())
	row(t, "detail", m.GetDetail())
	row(t, "attempts", m.GetAttempts())
	row(t, "first attempt", when(m.GetFirstAttempt()))
	row(t, "last attempt", when(m.GetLastAttempt()))
	row(t, "dead-lettered", when(m.GetDeadLettered()))
	if m.GetRedrives() > 0 || m.GetRedrivenBy() != "" {
		row(t, "redriven", fmt.Sprintf("%d times before; by %s", m.GetRedrives(), m.GetRedrivenBy()))
	}
	row(t, "trace", m.GetTraceId())
	if e.Key != nil {
		row(t, "key", string(e.GetKey()))
	}
	if e.GetType() != "" {
		row(t, "event", strings.Join([]string{e.GetType(), e.GetSource(), e.GetId(), e.GetSubject()}, " "))
	}
	for _, x := range e.GetExtensions() {
		row(t, "extension "+x.GetName(), x.GetValue())
	}
	for _, h := range e.GetHeaders() {
		row(t, "header "+h.GetName(), string(h.GetValue()))
	}
	row(t, "content type", e.GetContentType())
	if e.Data == nil {
		row(t, "data", "(tombstone)")
	} else {
		row(t, "data", string(e.GetData()))
	}
}

func redriveDeadLetters() *cobra.Command {
	var a asking
	var l letterFlags
	var to string
	var detach bool
	request := &posternv1.RedriveDeadLettersRequest{}
	c := &cobra.Command{
		Use: "redrive SUBSCRIPTION", Short: "Deliver dead letters again", Args: usage(cobra.ExactArgs(1)),
		Long: `Deliver dead letters again, to the subscription they died in (only), or with
--to topic to the topic they came from. Without a choice: all that were not
redriven before. The work is done by the gateway and goes on when this command
is stopped; its job is told first.`,
		Example: "  postern deadletters redrive mail --since 2h --dry-run\n  postern deadletters redrive mail --reason attempts_exhausted --rate 100",
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			request.Name = args[0]
			if request.Filter, _, err = l.read(c); err != nil {
				return err
			}
			switch to {
			case "subscription":
				request.To = posternv1.RedriveTo_REDRIVE_TO_SUBSCRIPTION
			case "topic":
				request.To = posternv1.RedriveTo_REDRIVE_TO_TOPIC
			default:
				return usageError{fmt.Errorf("--to %s is not offered: use subscription or topic", to)}
			}
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				job, err := s.RedriveDeadLetters(ctx, request)
				if err != nil {
					return err
				}
				return a.follow(c, s, job, detach)
			})
		},
	}
	a.flags(c)
	l.flags(c)
	c.Flags().StringVar(&to, "to", "subscription", "where to: subscription or topic")
	c.Flags().Float64Var(&request.RatePerSecond, "rate", 0, "at most this many events a second")
	c.Flags().Int32Var(&request.MaxRedrives, "max-redrives", 0, "leave alone what was redriven this often (5)")
	c.Flags().BoolVar(&request.DryRun, "dry-run", false, "count, and deliver nothing")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait until it is done")
	return c
}

func purgeDeadLetters() *cobra.Command {
	var a asking
	var l letterFlags
	var all, detach bool
	request := &posternv1.PurgeDeadLettersRequest{}
	c := &cobra.Command{
		Use: "purge SUBSCRIPTION", Short: "Give dead letters up for good", Args: usage(cobra.ExactArgs(1)),
		Example: "  postern deadletters purge mail --until 720h\n  postern deadletters purge mail --all",
		RunE: func(c *cobra.Command, args []string) error {
			filter, chosen, err := l.read(c)
			if err != nil {
				return err
			}
			if chosen == all {
				return usageError{errors.New("say which: by --since, --until, --reason, --key, --text, --origin or --id, or else --all")}
			}
			request.Name, request.Filter = args[0], filter
			return a.ask(c, func(ctx context.Context, s posternv1.SubscriptionsClient) error {
				job, err := s.PurgeDeadLetters(ctx, request)
				if err != nil {
					return err
				}
				return a.follow(c, s, job, detach)
			})
		},
	}
	a.flags(c)
	l.flags(c)
	c.Flags().BoolVar(&all, "all", false, "all of them")
	c.Flags().BoolVar(&request.DryRun, "dry-run", false, "count, and purge nothing")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait until it is done")
	return c
}

// followEvery is how often a job is looked at.
const followEvery = 300 * time.Millisecond

// follow waits until a job has ended, showing on a terminal how far it is. A job
// that failed is a failure of the command.
func (a *asking) follow(c *cobra.Command, s posternv1.SubscriptionsClient, job *posternv1.Job, detach bool) error {
	terminal := a.format == "table" && onTerminal(os.Stderr)
	if a.format == "table" && !jobEnded(job) {
		fmt.Fprintf(c.ErrOrStderr(), "job %s\n", job.GetId())
	}
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for !detach && !jobEnded(job) {
		if terminal {
			fmt.Fprintf(os.Stderr, "\r%s", progressBar(job))
		}
		select {
		case <-c.Context().Done():
			fmt.Fprintf(c.ErrOrStderr(), "\nThe job goes on at the gateway.\n")
			return nil
		case <-ticker.C:
		}
		var err error
		if job, err = s.GetJob(c.Context(), &posternv1.GetJobRequest{Name: job.GetSubscription(), Id: job.GetId()}); err != nil {
			return err
		}
	}
	if terminal {
		fmt.Fprintf(os.Stderr, "\r%s\r", strings.Repeat(" ", len(progressBar(job))))
	}
	if err := a.write(c.OutOrStdout(), job, func(t *tabwriter.Writer) {
		done := map[posternv1.JobKind]string{
			posternv1.JobKind_JOB_KIND_REDRIVE: "redriven", posternv1.JobKind_JOB_KIND_PURGE: "purged", posternv1.JobKind_JOB_KIND_REPLAY: "replayed",
		}[job.GetKind()]
		if job.GetDryRun() {
			done = "would be " + done
		}
		fmt.Fprintf(t, "%s: %d of %d looked at, %d chosen, %d %s", enum(job.GetState(), "JOB_STATE_"), job.GetScanned(), job.GetTotal(), job.GetMatched(), job.GetDone(), done)
		if job.GetSkipped() > 0 {
			fmt.Fprintf(t, ", %d left alone", job.GetSkipped())
		}
		fmt.Fprintln(t, ".")
	}); err != nil {
		return err
	}
	if job.GetState() == posternv1.JobState_JOB_STATE_FAILED {
		return fmt.Errorf("the job failed: %s", job.GetError().GetMessage())
	}
	return nil
}

func jobEnded(job *posternv1.Job) bool {
	switch job.GetState() {
	case posternv1.JobState_JOB_STATE_SUCCEEDED, posternv1.JobState_JOB_STATE_FAILED, posternv1.JobState_JOB_STATE_CANCELLED:
		return true
	}
	return false
}

// progressBar shows how far a job is, in a line of one length.
func progressBar(job *posternv1.Job) string {
	const width = 30
	full := 0
	if job.GetTotal() > 0 {
		full = int(min(width, width*job.GetScanned()/job.GetTotal()))
	}
	return fmt.Sprintf("[%s%s] %9d of %9d, %9d done", strings.Repeat("=", full), strings.Repeat(" ", width-full), job.GetScanned(), job.GetTotal(), job.GetDone())
}
