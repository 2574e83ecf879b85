//go:build synctests

package delivery_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/postern-dev/postern/broker/brokertest"
	"github.com/postern-dev/postern/delivery"
)

func TestAJobKeepsItsRateAndBeatsWhileItWaits(t *testing.T) {
	for name, row := range map[string]struct {
		rate float64
		many int
	}{"hundreds a second": {200, 2000}, "a few a minute": {0.1, 12}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := brokertest.Virtual(t)
				topic := c.Topic("orders", 1)
				o := options(c, "rate", topic)
				dead := c.Topic("rate.dead", 1)
				putDead(c, dead, topic, o.Name, row.many, "a")
				client := c.Client()
				mover := client.NewMover()
				log := slog.New(slog.DiscardHandler)
				var all []*delivery.Jobs
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{}, 2)
				for range 2 { // the other would take over a job that is silent
					queues := delivery.NewQueues(delivery.NewInstance(), client, mover, "_side.", log, noop.Meter{})
					jobs := delivery.NewJobs(queues, client.Ledger("_side.jobs"), log)
					go func() { jobs.Run(ctx); ended <- struct{}{} }()
					all = append(all, jobs)
				}
				j, err := all[0].StartJob(ctx, o, delivery.JobRequest{Kind: delivery.JobRedrive, Rate: row.rate})
				if err != nil {
					t.Fatal(err)
				}
				began, instance := time.Now(), j.Instance
				for j.State < delivery.JobSucceeded {
					time.Sleep(time.Second)
					jobs, err := all[0].ListJobs(ctx, o.Name)
					if err != nil || len(jobs) != 1 {
						t.Fatal(jobs, err)
					}
					j = jobs[0]
					burst := max(1, row.rate/4)
					if most := row.rate*time.Since(began).Seconds() + burst + 1; float64(j.Done) > most {
						t.Fatalf("after %s %d are done, more than %g", time.Since(began), j.Done, most)
					}
				}
				want := time.Duration(float64(row.many) / row.rate * float64(time.Second))
				if took := time.Since(began); j.Done != int64(row.many) || took < want*8/10 || took > want*12/10+5*time.Second {
					t.Errorf("%d took %s, want some %s", j.Done, took, want)
				}
				if j.Instance != instance {
					t.Error("the job changed hands")
				}
				cancel()
				<-ended
				<-ended
				mover.Close()
			})
		})
	}
}
