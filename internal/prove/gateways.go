package prove

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-dev/postern/internal/link"
	"github.com/postern-dev/postern/internal/workload"
)

// gateway is one gateway process, on addresses that outlive it.
type gateway struct {
	number            int
	program           []string
	env               []string
	alone             bool // a postern dev: it does not say who it is, and no other can be meant
	started           func(gateway, pid int)
	http, grpc, admin string
	links             []*link.Link // between the clients and the gateway: HTTP, gRPC
	target            *workload.Target
	conn              *grpc.ClientConn
	mu                sync.Mutex
	process           *exec.Cmd
	exited            chan error
	serving           bool
	instance          string
	turn              chan struct{} // one: faults that kill and start take turns
	said              *lastLines
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close() //nolint:errcheck // only its number is wanted
	return l.Addr().String(), nil
}

func newGateway(number int, o Options, more ...string) (*gateway, error) {
	g := &gateway{number: number, env: o.Env, alone: o.Dev != "", started: o.Started, turn: make(chan struct{}, 1), said: &lastLines{}}
	for _, address := range []*string{&g.http, &g.grpc, &g.admin} {
		var err error
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	brokers := o.Brokers
	if o.Through != nil {
		brokers = o.Through(number)
	}
	g.program = append([]string{}, o.Program...)
	if o.Dev != "" {
		g.program = append(g.program, "dev", "--data-dir", o.Dev, "--kafka-listen", o.Brokers[0])
	} else {
		g.program = append(g.program, "run", "--kafka-brokers", strings.Join(brokers, ","))
	}
	g.program = append(g.program, "--kafka-session-timeout", sessionTimeout.String(),
		"--listen-http", g.http, "--listen-grpc", g.grpc, "--listen-admin", g.admin, "--drain-timeout", "5s")
	g.program = append(g.program, more...)
	for _, address := range []string{g.http, g.grpc} {
		l, err := link.New("127.0.0.1:0", address)
		if err != nil {
			return nil, errors.Join(err, g.unlink())
		}
		g.links = append(g.links, l)
	}
	var err error
	g.conn, err = grpc.NewClient("passthrough:///"+g.links[1].Address(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second}, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, errors.Join(err, g.unlink())
	}
	g.target = &workload.Target{GRPC: g.conn, Web: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}, Base: "http://" + g.links[0].Address()}
	return g, nil
}

var named = regexp.MustCompile(`\binstance"?[=:]"?([0-9a-f]+)`)

// identity is the instance that the gateway says it is, as its deliveries do; it
// was read when the gateway became ready.
func (g *gateway) identity() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.instance
}

// unlink closes the links to g's clients.
func (g *gateway) unlink() error {
	var err error
	for _, l := range g.links {
		err = errors.Join(err, l.Close())
	}
	g.links = nil
	return err
}

// start runs the process and waits until it is ready.
func (g *gateway) start(ctx context.Context) error {
	c := exec.Command(g.program[0], g.program[1:]...) // not ended by ctx: by the faults, and stop
	c.Env = append(os.Environ(), g.env...)
	g.said.forget() // what an earlier life said
	c.Stderr, c.Stdout = g.said, g.said
	if err := c.Start(); err != nil {
		return fmt.Errorf("start gateway %d: %w", g.number, err)
	}
	if g.started != nil {
		g.started(g.number, c.Process.Pid)
	}
	exited := make(chan error, 1)
	go func() { exited <- c.Wait() }()
	g.mu.Lock()
	g.process, g.exited = c, exited
	g.mu.Unlock()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	limit := time.NewTimer(readyPatience)
	defer limit.Stop()
	for {
		if response, err := g.target.Web.Get("http://" + g.admin + "/readyz"); err == nil {
			_ = response.Body.Close() // its status is all
			if response.StatusCode == http.StatusOK {
				all := named.FindAllStringSubmatch(g.said.String(), -1)
				if len(all) > 0 { // it says so a moment after, or before
					g.mu.Lock()
					g.instance = all[len(all)-1][1]
					g.mu.Unlock()
				}
				if len(all) > 0 || g.alone {
					g.set(true)
					return nil
				}
			}
		}
		select {
		case err := <-exited:
			exited <- err
			return fmt.Errorf("gateway %d ended at its start (%w); it said:\n%s", g.number, err, g.said)
		case <-limit.C:
			return fmt.Errorf("gateway %d is not ready after %s; it said:\n%s", g.number, readyPatience, g.said)
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

const readyPatience = 60 * time.Second

func (g *gateway) set(serving bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serving = serving
}

func (g *gateway) signal(s syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.process != nil {
		_ = g.process.Process.Signal(s) // one that has ended needs none
	}
}

// ended reports whether the process has ended, and with what.
func (g *gateway) ended() (error, bool) {
	g.mu.Lock()
	exited := g.exited
	g.mu.Unlock()
	select {
	case err := <-exited:
		exited <- err
		return err, true
	default:
		return nil, false
	}
}

// end sends s and waits for the process to end.
func (g *gateway) end(s syscall.Signal) error {
	g.set(false)
	g.signal(syscall.SIGCONT)
	g.signal(s)
	g.mu.Lock()
	exited := g.exited
	g.mu.Unlock()
	if exited == nil {
		return nil
	}
	select {
	case err := <-exited:
		exited <- err
		if s == syscall.SIGTERM && err != nil {
			return fmt.Errorf("gateway %d ended with %w; it said:\n%s", g.number, err, g.said)
		}
		return nil
	case <-time.After(stopPatience):
		_ = syscall.Kill(g.process.Process.Pid, syscall.SIGKILL)
		return fmt.Errorf("gateway %d does not stop within %s; it said:\n%s", g.number, stopPatience, g.said)
	}
}

// stopPatience is the drain time of 5 s and what else an orderly stop may take while Kafka is away.
const stopPatience = 40 * time.Second

// lastLines keeps the end of what a process says.
type lastLines struct {
	mu   sync.Mutex
	text []byte
}

const keptBytes = 8 << 10

func (l *lastLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	if extra := len(l.text) - keptBytes; extra > 0 {
		l.text = append(l.text[:0], l.text[extra:]...)
	}
	return len(b), nil
}

func (l *lastLines) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = nil
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
