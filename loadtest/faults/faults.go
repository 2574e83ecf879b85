package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/postern-dev/postern/internal/link"
	"github.com/postern-dev/postern/internal/prove"
)

// faults are those of brokers, of the links to them, and of their disks.
func (k *cluster) faults() []prove.Fault {
	links := func(random *rand.Rand) []*link.Link { return k.links[random.IntN(len(k.links))] }
	broker := func(random *rand.Rand) int { return 1 + random.IntN(len(k.addresses)) }
	onLinks := func(random *rand.Rand, do func(*link.Link)) {
		for _, l := range links(random) {
			do(l)
		}
	}
	mendAll := func() {
		for _, links := range k.links {
			for _, l := range links {
				l.Mend()
			}
		}
	}
	cut := func(ways ...link.Direction) func(context.Context, *rand.Rand, func(int)) error {
		return func(ctx context.Context, random *rand.Rand, apart func(int)) error {
			gateway := random.IntN(len(k.links))
			apart(gateway)
			for _, l := range k.links[gateway] {
				l.Cut(ways...)
			}
			pause(ctx, random, 2*time.Second, 12*time.Second)
			mendAll()
			return nil
		}
	}
	all := []prove.Fault{
		{Name: "kill -9 of a broker", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			b := strconv.Itoa(broker(random))
			if _, err := k.script(ctx, "kill-broker", b); err != nil {
				return err
			}
			pause(ctx, random, 0, 3*time.Second)
			_, err := k.script(ctx, "start-broker", b)
			return err
		}},
		{Name: "an orderly restart of a broker", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			b := strconv.Itoa(broker(random))
			if _, err := k.script(ctx, "kill-broker", "--term", b); err != nil {
				return err
			}
			_, err := k.script(ctx, "start-broker", b)
			return err
		}},
		{Name: "a broker is frozen", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			pid := k.pid(broker(random))
			if err := syscall.Kill(pid, syscall.SIGSTOP); pid == 0 || err != nil {
				return fmt.Errorf("freeze broker with pid %d: %w", pid, err)
			}
			pause(ctx, random, time.Second, 10*time.Second)
			return syscall.Kill(pid, syscall.SIGCONT)
		}},
		{Name: "a gateway is cut off from Kafka", Cause: cut(link.There, link.Back)},
		{Name: "nothing reaches Kafka from a gateway", Cause: cut(link.There)},
		{Name: "nothing comes back from Kafka to a gateway", Cause: cut(link.Back)},
		{Name: "slow links to Kafka", Cause: func(ctx context.Context, random *rand.Rand, _ func(int)) error {
			for range k.links {
				onLinks(random, func(l *link.Link) { l.Slow(100*time.Millisecond, 200_000) })
			}
			pause(ctx, random, 2*time.Second, 6*time.Second)
			mendAll()
			return nil
		}},
		{Name: "connections to Kafka are reset in the middle of a frame", Cause: func(_ context.Context, random *rand.Rand, _ func(int)) error {
			d := link.Direction(random.IntN(2))
			onLinks(random, func(l *link.Link) { l.ResetAfter(d, random.Int64N(4000)) })
			return nil
		}},
	}
	if k.mounted {
		all = append(all, prove.Fault{Name: "a broker's disk is full", Cause: k.fillDisk}, prove.Fault{Name: "a broker's disk fails to write (EIO)", Cause: k.failDisk})
	}
	return all
}

func pause(ctx context.Context, random *rand.Rand, from, to time.Duration) {
	timer := time.NewTimer(from + time.Duration(random.Int64N(int64(to-from))))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// diskPatience is how long a broker may take to notice that its disk is bad. One
// that does not goes on when the disk is well again, which is as good.
const diskPatience = 8 * time.Second

// fillDisk leaves no byte on the first broker's disk, until the broker has given up or a while is over.
func (k *cluster) fillDisk(ctx context.Context, _ *rand.Rand, _ func(int)) error {
	ballast := filepath.Join(k.data(1), "ballast")
	if err := fill(ballast); err != nil {
		return err
	}
	k.awaitDeath(ctx)
	if err := os.Remove(ballast); err != nil {
		return err
	}
	return k.revive(ctx)
}

// fill writes to a file until the disk is full.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it only takes room
	block := make([]byte, 1<<20)
	for size := len(block); size > 0; {
		switch _, err := f.Write(block[:size]); {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil && !errors.Is(err, io.ErrShortWrite):
			return err
		}
	}
	return nil
}

// failDisk has every write of the first broker to the logs of topics fail.
func (k *cluster) failDisk(ctx context.Context, _ *rand.Rand, _ func(int)) error {
	logs, err := filepath.Glob(filepath.Join(k.data(1), "prove-*", "*.log"))
	if err != nil || len(logs) == 0 {
		return fmt.Errorf("the broker has no logs in %s: %w", k.data(1), err)
	}
	t, err := traceWrites(ctx, k.pid(1), "/dev/null", logs)
	if err != nil {
		return err
	}
	died := k.awaitDeath(ctx)
	t.stop()
	if !died {
		return errors.New("the broker lived on though it could write nothing: the fault did not come")
	}
	return k.revive(ctx)
}

// awaitDeath reports whether the first broker ended within diskPatience.
func (k *cluster) awaitDeath(ctx context.Context) bool {
	limit := time.NewTimer(diskPatience)
	defer limit.Stop()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for k.pid(1) != 0 {
		select {
		case <-limit.C:
			return false
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return true
}

// revive starts the first broker anew: one whose disk failed is not trusted any
// more even when it lives.
func (k *cluster) revive(ctx context.Context) error {
	if k.pid(1) != 0 {
		if _, err := k.script(ctx, "kill-broker", "1"); err != nil {
			return err
		}
	}
	_, err := k.script(ctx, "start-broker", "1")
	return err
}
