package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/postern-dev/postern/internal/link"
)

// maxGateways is how many listeners a broker has for links (tools/kafka/up --proxied).
const maxGateways = 3

// diskBytes is the size of the first broker's disk, where it has one of its own.
const diskBytes = 256 << 20

// cluster is a Kafka, and the links by which each gateway reaches it.
type cluster struct {
	scripts   string
	dir       string
	addresses []string       // of the brokers themselves
	links     [][]*link.Link // of each gateway, to each broker
	mounted   bool
}

func startCluster(ctx context.Context, s settings, disk bool) (k *cluster, err error) {
	k = &cluster{scripts: s.kafka}
	if k.dir, err = os.MkdirTemp("", "postern-faults-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.stop())
		}
	}()
	if disk {
		if err := os.MkdirAll(k.data(1), 0o755); err != nil {
			return nil, err
		}
		if k.mounted, err = mountDisk(k.data(1), diskBytes); err != nil {
			return nil, err
		}
	}
	out, err := k.script(ctx, "up", "--port", "0", "--brokers", strconv.Itoa(s.brokers), "--proxied", strconv.Itoa(s.gateways))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), "KAFKA_BOOTSTRAP="); ok {
			k.addresses = strings.Split(list, ",")
		}
	}
	if len(k.addresses) != s.brokers {
		return nil, fmt.Errorf("tools/kafka/up said no addresses: %s", out)
	}
	for g := range s.gateways {
		var links []*link.Link
		for _, address := range k.addresses {
			l, err := link.New(shifted(address, 7+g), shifted(address, 4+g))
			if err != nil {
				return nil, err
			}
			links = append(links, l)
		}
		k.links = append(k.links, links)
	}
	return k, nil
}

// shifted is an address some ports higher.
func shifted(address string, by int) string {
	host, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port) // tools/kafka/up wrote it
	return net.JoinHostPort(host, strconv.Itoa(n+by))
}

// through names the links of a gateway.
func (k *cluster) through(gateway int) []string {
	var all []string
	for _, l := range k.links[gateway] {
		all = append(all, l.Address())
	}
	return all
}

func (k *cluster) data(broker int) string { return filepath.Join(k.node(broker), "data") }

func (k *cluster) node(broker int) string {
	return filepath.Join(k.dir, "node-"+strconv.Itoa(broker))
}

// pid is a broker's process; 0 when it does not run.
func (k *cluster) pid(broker int) int {
	text, err := os.ReadFile(filepath.Join(k.node(broker), "pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	// A pid may have been given to somebody else: ours names its folder.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(line, []byte("-Devent.run="+k.node(broker))) {
		return 0
	}
	return pid
}

// script runs one of tools/kafka on this cluster, and gives what it wrote.
func (k *cluster) script(ctx context.Context, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(k.scripts, name), append([]string{"--dir", k.dir}, args...)...)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

func (k *cluster) stop() error {
	var err error
	for _, links := range k.links {
		for _, l := range links {
			err = errors.Join(err, l.Close())
		}
	}
	for b := range len(k.addresses) {
		if pid := k.pid(b + 1); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGCONT) // one that is frozen would not stop
		}
	}
	if _, failed := k.script(context.Background(), "down"); failed != nil {
		err = errors.Join(err, failed)
	}
	if k.mounted {
		err = errors.Join(err, syscall.Unmount(k.data(1), syscall.MNT_DETACH)) // a process just ended may hold it for a moment
	}
	return errors.Join(err, os.RemoveAll(k.dir))
}
