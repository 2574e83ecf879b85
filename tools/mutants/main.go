// Command mutants plants deliberate bugs, one at a time, into a copy of the tree
// and runs the test that must catch each: a rig that passes with a bug in proves
// nothing. It prints a table, and fails when a bug is not caught, when a test
// fails without it, or when a plant no longer fits the code.
//
//	mutants [-only SUBSTRING] [-list] [-keep]
//
// A plant is a file NAME.txt beside this one:
//
//	what: one line for people
//	caught by: PACKAGE TEST [FLAGS...]
//	file: PATH
//	<<<<
//	text that stands once in the file
//	====
//	text that takes its place
//	>>>>
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

type edit struct{ file, old, new string }

type plant struct {
	name, what string
	catcher    []string // package, test, flags
	edits      []edit
}

func main() {
	only := flag.String("only", "", "plant only those whose name contains `SUBSTRING`")
	list := flag.Bool("list", false, "print the table as Markdown, without results, and check that each plant fits")
	flag.Parse()
	if err := run(*only, *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(only string, list bool) error {
	top, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return fmt.Errorf("find the tree: %w", err)
	}
	root := strings.TrimSpace(string(top))
	plants, err := read(filepath.Join(root, "tools/mutants"))
	if err != nil {
		return err
	}
	var chosen []plant
	var misfits []error
	for _, p := range plants {
		if strings.Contains(p.name, only) {
			chosen = append(chosen, p)
			for _, e := range p.edits { // all before any: a plant that does not fit is found at once
				if _, err := e.apply(root); err != nil {
					misfits = append(misfits, fmt.Errorf("%s: %w", p.name, err))
				}
			}
		}
	}
	if err := errors.Join(misfits...); err != nil {
		return err
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no plant is called %q", only)
	}
	if list {
		fmt.Println("| planted bug | caught by |\n|---|---|")
		for _, p := range chosen {
			fmt.Printf("| %s | `%s` in %s |\n", p.what, strings.Trim(p.catcher[1], "^$"), strings.TrimPrefix(p.catcher[0], "./"))
		}
		return nil
	}
	tree, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := copyTree(root, tree); err != nil {
		return err
	}
	healthy := map[string]bool{}
	missed := 0
	for _, p := range chosen {
		key := strings.Join(p.catcher, " ")
		if !healthy[key] { // a test that fails anyhow catches nothing
			if out, failed := test(tree, p.catcher); failed {
				return fmt.Errorf("%s fails without a planted bug:\n%s", key, tail(out))
			}
			healthy[key] = true
		}
		began := time.Now()
		verdict, err := try(tree, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if verdict != "caught" {
			missed++
		}
		fmt.Printf("%-8s %-34s %5.1f s  %s\n", verdict, p.name, time.Since(began).Seconds(), p.catcher[1])
	}
	fmt.Printf("%d of %d planted bugs were caught\n", len(chosen)-missed, len(chosen))
	if missed > 0 {
		return fmt.Errorf("%d planted bugs were not caught", missed)
	}
	return nil
}

// try plants p, runs its catcher and takes p out again.
func try(tree string, p plant) (string, error) {
	for _, e := range p.edits {
		path := filepath.Join(tree, e.file)
		healthy, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		planted, err := e.apply(tree)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(path, planted, 0o644); err != nil {
			return "", err
		}
		defer os.WriteFile(path, healthy, 0o644)
	}
	build := exec.Command("go", "vet", "-tags", "synctests", p.catcher[0])
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not compile any more:\n%s", tail(out))
	}
	if _, failed := test(tree, p.catcher); failed {
		return "caught", nil
	}
	return "MISSED", nil
}

func test(tree string, catcher []string) ([]byte, bool) {
	args := append([]string{"test", "-tags", "synctests", "-count=1", "-timeout", "5m", "-run", "^" + catcher[1] + "$", catcher[0]}, catcher[2:]...)
	c := exec.Command("go", args...)
	c.Dir = tree
	out, err := c.CombinedOutput()
	if err == nil && bytes.Contains(out, []byte("no tests to run")) {
		return append(out, "there is no such test"...), true
	}
	return out, err != nil
}

func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

func (e edit) apply(tree string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(tree, e.file))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(text), e.old); n != 1 {
		return nil, fmt.Errorf("the plant does not fit %s any more: its text stands there %d times, not once; bring it up to date:\n%s", e.file, n, e.old)
	}
	return []byte(strings.Replace(string(text), e.old, e.new, 1)), nil
}

func read(folder string) ([]plant, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.txt"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	var all []plant
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		p, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		p.name = strings.TrimSuffix(filepath.Base(f), ".txt")
		all = append(all, p)
	}
	return all, nil
}

func parse(text string) (plant, error) {
	var p plant
	var e edit
	into := (*string)(nil)
	for line := range strings.Lines(text) {
		word := strings.TrimRight(line, "\n")
		switch {
		case word == "<<<<":
			into = &e.old
		case word == "====" && into == &e.old:
			into = &e.new
		case word == ">>>>":
			e.old, e.new = strings.TrimSuffix(e.old, "\n"), strings.TrimSuffix(e.new, "\n")
			if e.file == "" || e.old == "" {
				return p, fmt.Errorf("an edit without a file or a text")
			}
			p.edits = append(p.edits, e)
			e, into = edit{file: e.file}, nil
		case into != nil:
			*into += line
		case strings.HasPrefix(word, "what: "):
			p.what = word[len("what: "):]
		case strings.HasPrefix(word, "caught by: "):
			p.catcher = strings.Fields(word[len("caught by: "):])
		case strings.HasPrefix(word, "file: "):
			e.file = word[len("file: "):]
		case word != "":
			return p, fmt.Errorf("the line %q is none of a plant's", word)
		}
	}
	if p.what == "" || len(p.catcher) < 2 || len(p.edits) == 0 {
		return p, fmt.Errorf("a plant needs what, caught by and an edit")
	}
	return p, nil
}

// copyTree copies what git knows, as it is on disk.
func copyTree(from, to string) error {
	c := exec.Command("bash", "-c", `git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$1"`, "copy", to)
	c.Dir, c.Stderr = from, os.Stderr
	return c.Run()
}
