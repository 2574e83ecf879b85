package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postern-dev/postern/fault"
	"github.com/postern-dev/postern/internal/config"
	"github.com/postern-dev/postern/schema"
)

const defaultRegistry = "http://127.0.0.1:7603"

// schemas is what the schema commands are told.
type schemas struct {
	urls       []string
	file       string
	output     string
	references []string
}

func schemasCommand() *cobra.Command {
	s := &schemas{}
	c := &cobra.Command{
		Use:   "schemas",
		Short: "Check, list, show and register schemas",
		Long: `Work with the schema registry: the one of --config's schema_registry, else the one
at --registry (default ` + defaultRegistry + `, where postern dev has its own).`,
	}
	c.PersistentFlags().StringSliceVar(&s.urls, "registry", nil, "`URL` of the schema registry")
	c.PersistentFlags().StringVarP(&s.file, "config", "c", os.Getenv("POSTERN_CONFIG"), "configuration `file` whose schema_registry is used")
	c.PersistentFlags().StringVarP(&s.output, "output", "o", "table", "table or json")
	c.AddCommand(s.listCommand(), s.showCommand(), s.registerCommand(), s.checkCommand())
	return c
}

func (s *schemas) client() (*schema.Client, error) {
	if s.output != "table" && s.output != "json" {
		return nil, usageError{fmt.Errorf("--output %s is not offered: use table or json", s.output)}
	}
	o := schema.Options{URLs: s.urls}
	if s.file != "" {
		settings, err := config.Load(s.file, os.Environ(), nil)
		if err != nil {
			return nil, usageError{fmt.Errorf("the configuration is wrong:\n%w", err)}
		}
		if o = settings.SchemaRegistry; len(s.urls) > 0 {
			o.URLs = s.urls
		}
	} else if urls := os.Getenv(config.Variable("schema_registry.urls")); urls != "" && len(s.urls) == 0 {
		o.URLs = strings.Split(urls, ",")
	}
	if len(o.URLs) == 0 {
		o.URLs = []string{defaultRegistry}
	}
	if err := o.Validate(); err != nil {
		return nil, usageError{err}
	}
	return schema.NewClient(o, nil)
}

func told(err error) error {
	if err == nil {
		return nil
	}
	f := fault.Of(err)
	if cause := f.Metadata["cause"]; cause != "" {
		return fmt.Errorf("%s (%s): %s", f.Message, f.Reason, cause)
	}
	return fmt.Errorf("%s (%s)", f.Message, f.Reason)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// subjectRow is a subject in a list.
type subjectRow struct {
	Subject  string `json:"subject"`
	Format   string `json:"format"`
	Versions []int  `json:"versions"`
	ID       int    `json:"latest_id"`
	Level    string `json:"compatibility"`
}

func (s *schemas) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the subjects with their versions", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			defer client.Close()
			ctx := c.Context()
			names, err := client.Subjects(ctx)
			if err != nil {
				return told(err)
			}
			slices.Sort(names)
			rows := []subjectRow{}
			for _, name := range names {
				r := subjectRow{Subject: name}
				latest, err := client.At(ctx, name, schema.Latest)
				if err != nil {
					return told(err)
				}
				r.Format, r.ID = string(latest.Format), latest.ID
				if r.Versions, err = client.Versions(ctx, name); err != nil {
					return told(err)
				}
				level, err := client.Level(ctx, name)
				if err != nil {
					return told(err)
				}
				r.Level = string(level)
				rows = append(rows, r)
			}
			if s.output == "json" {
				return printJSON(c.OutOrStdout(), rows)
			}
			t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "SUBJECT\tFORMAT\tVERSIONS\tLATEST ID\tCOMPATIBILITY")
			for _, r := range rows {
				fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", r.Subject, r.Format, strings.Trim(fmt.Sprint(r.Versions), "[]"), r.ID, r.Level)
			}
			return t.Flush()
		},
	}
}

func (s *schemas) showCommand() *cobra.Command {
	var version string
	var id int
	c := &cobra.Command{
		Use: "show SUBJECT", Short: "Print a schema", Args: cobra.MaximumNArgs(1),
		Example: "  postern schemas show orders-value\n  postern schemas show orders-value --version 2\n  postern schemas show --id 7",
		RunE: func(c *cobra.Command, args []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			defer client.Close()
			n, err := schema.ParseVersion(version)
			if err != nil || (len(args) == 1) == (id > 0) {
				return usageError{fmt.Errorf("name a subject, with --version latest or a number, or an --id")}
			}
			found := schema.Registered{ID: id}
			if id > 0 {
				found.Definition, err = client.ByID(c.Context(), id)
			} else {
				found, err = client.At(c.Context(), args[0], n)
			}
			if err != nil {
				return told(err)
			}
			if s.output == "json" {
				return printJSON(c.OutOrStdout(), map[string]any{
					"subject": found.Subject, "version": found.Version, "id": found.ID, "format": found.Format, "schema": found.Text, "references": found.References,
				})
			}
			fmt.Fprintln(c.OutOrStdout(), found.Text)
			return nil
		},
	}
	c.Flags().StringVar(&version, "version", "latest", "which version of the subject")
	c.Flags().IntVar(&id, "id", 0, "the registry's id, instead of a subject")
	return c
}

func (s *schemas) registerCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "register SUBJECT FILE", Short: "Register a schema file under a subject", Args: cobra.ExactArgs(2),
		Example: "  postern schemas register orders-value order.avsc\n  postern schemas register orders-value order.proto --reference common.proto=common@1",
		RunE: func(c *cobra.Command, args []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			defer client.Close()
			d, err := s.read(args[1], format)
			if err != nil {
				return err
			}
			id, err := client.Register(c.Context(), args[0], d)
			if err != nil {
				return told(err)
			}
			found, err := client.Find(c.Context(), args[0], d)
			if err != nil {
				return told(err)
			}
			if s.output == "json" {
				return printJSON(c.OutOrStdout(), map[string]any{"subject": args[0], "version": found.Version, "id": id})
			}
			fmt.Fprintf(c.OutOrStdout(), "%s version %d, id %d\n", args[0], found.Version, id)
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", "avro, json or protobuf (default by the file's name: .avsc, .json, .proto)")
	c.Flags().StringArrayVar(&s.references, "reference", nil, "`NAME=SUBJECT@VERSION` that the schema refers to, repeatable")
	return c
}

var extensions = map[string]schema.Format{".avsc": schema.Avro, ".json": schema.JSON, ".proto": schema.Protobuf}

// maxSchemaFile bounds a schema file.
const maxSchemaFile = 1 << 20

// read reads a schema file.
func (s *schemas) read(path, format string) (schema.Definition, error) {
	d := schema.Definition{Format: extensions[strings.ToLower(filepath.Ext(path))]}
	if format != "" {
		f, err := schema.ParseFormat(format)
		if err != nil {
			return d, usageError{err}
		}
		d.Format = f
	}
	if d.Format == "" {
		return d, usageError{fmt.Errorf("%s: the name does not tell the format: end it with .avsc, .json or .proto, or say --format", path)}
	}
	f, err := os.Open(path)
	if err != nil {
		return d, usageError{fmt.Errorf("read the schema: %w", err)}
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSchemaFile+1))
	if err != nil {
		return d, fmt.Errorf("read the schema: %w", err)
	}
	if len(b) > maxSchemaFile {
		return d, usageError{fmt.Errorf("%s is larger than %d bytes", path, maxSchemaFile)}
	}
	d.Text = string(b)
	for _, r := range s.references {
		name, at, ok := strings.Cut(r, "=")
		i := strings.LastIndexByte(at, '@')
		if !ok || i < 0 {
			return d, usageError{fmt.Errorf("--reference %s is not NAME=SUBJECT@VERSION", r)}
		}
		n, err := strconv.Atoi(at[i+1:])
		if err != nil || n < 1 {
			return d, usageError{fmt.Errorf("--reference %s: the version is a number from 1", r)}
		}
		d.References = append(d.References, schema.Reference{Name: name, Subject: at[:i], Version: n})
	}
	return d, nil
}

// checked is the verdict on one file.
type checked struct {
	File    string   `json:"file"`
	Subject string   `json:"subject"`
	Level   string   `json:"compatibility"`
	Against []int    `json:"against_versions"`
	Faults  []string `json:"faults"`
}

func (s *schemas) checkCommand() *cobra.Command {
	var against, subject, level, format string
	c := &cobra.Command{
		Use:   "check FILE...",
		Short: "Check schema files against the versions that are there, for CI",
		Long: `Check whether each file may be the next version of its subject, by the subject's
compatibility level, and name every place where it may not. The subject is the
file's name without its ending (orders-value.avsc), unless --subject names it.

--against DIR takes a folder for the registry: DIR/SUBJECT.avsc is the version
that is there, or DIR/SUBJECT/1.avsc, 2.avsc, ... are all of them. The level is
then --level, BACKWARD by default.

It ends with 1 when a file may not follow, 2 when it cannot be read.`,
		Example: "  postern schemas check schemas/*.avsc --registry https://registry:8081\n  postern schemas check order.proto --subject orders-value --against released/",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if subject != "" && len(args) > 1 {
				return usageError{fmt.Errorf("--subject is for one file; %d are given", len(args))}
			}
			var from shelf
			if against != "" {
				from = &folderShelf{s, against, schema.Level(strings.ToUpper(level))}
			} else {
				client, err := s.client()
				if err != nil {
					return err
				}
				defer client.Close()
				from = registryShelf{client, schema.Level(strings.ToUpper(level))}
			}
			var all []checked
			bad := 0
			for _, file := range args {
				d, err := s.read(file, format)
				if err != nil {
					return err
				}
				name := subject
				if name == "" {
					name = strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
				}
				one, err := compare(c.Context(), from, file, name, d)
				if err != nil {
					return err
				}
				all = append(all, one)
				bad += len(one.Faults)
			}
			if err := s.report(c.OutOrStdout(), all); err != nil {
				return err
			}
			if bad > 0 {
				return fmt.Errorf("%d incompatibilities", bad)
			}
			return nil
		},
	}
	c.Flags().StringVar(&against, "against", "", "`folder` of schemas that stands for the registry")
	c.Flags().StringVar(&subject, "subject", "", "subject of the one file")
	c.Flags().StringVar(&level, "level", "", "compatibility level, instead of the registry's")
	c.Flags().StringVar(&format, "format", "", "avro, json or protobuf (default by the files' names)")
	c.Flags().StringArrayVar(&s.references, "reference", nil, "`NAME=SUBJECT@VERSION` that the schemas refer to, repeatable")
	return c
}

func (s *schemas) report(w io.Writer, all []checked) error {
	if s.output == "json" {
		return printJSON(w, all)
	}
	for _, one := range all {
		switch {
		case len(one.Faults) > 0:
			fmt.Fprintf(w, "%s: may not follow %s (%s):\n", one.File, one.Subject, one.Level)
			for _, f := range one.Faults {
				fmt.Fprintf(w, "  %s\n", f)
			}
		case len(one.Against) == 0:
			fmt.Fprintf(w, "%s: good; %s would be new\n", one.File, one.Subject)
		default:
			fmt.Fprintf(w, "%s: good; may follow %s (%s, versions %s)\n", one.File, one.Subject, one.Level, strings.Trim(fmt.Sprint(one.Against), "[]"))
		}
	}
	return nil
}

// shelf is where the earlier versions are.
type shelf interface {
	earlier(ctx context.Context, subject string) ([]schema.Registered, schema.Level, error)
	reference(ctx context.Context, ref schema.Reference) (schema.Definition, error)
	// verdict is what the shelf itself says about a next version; "" when nothing.
	verdict(ctx context.Context, subject string, d schema.Definition) (string, error)
}

// compare tells all that keeps d from following the subject's versions.
func compare(ctx context.Context, from shelf, file, subject string, d schema.Definition) (checked, error) {
	one := checked{File: file, Subject: subject, Faults: []string{}, Against: []int{}}
	next, err := schema.Parse(ctx, d, from.reference)
	if err != nil {
		if fault.Is(err, fault.SchemaUnusable) || fault.Is(err, fault.UnknownSchema) {
			one.Faults = append(one.Faults, fault.Of(err).Message)
			return one, nil
		}
		return one, told(err)
	}
	versions, level, err := from.earlier(ctx, subject)
	if err != nil {
		return one, told(err)
	}
	one.Level = string(level)
	var earlier []schema.Earlier
	for _, v := range versions {
		p, err := schema.Parse(ctx, v.Definition, from.reference)
		if err != nil {
			return one, fmt.Errorf("version %d of %s: %w", v.Version, subject, told(err))
		}
		earlier = append(earlier, schema.Earlier{Version: v.Version, Parsed: p})
		one.Against = append(one.Against, v.Version)
	}
	for _, i := range schema.Compatible(level, next, earlier) {
		one.Faults = append(one.Faults, i.String())
	}
	if len(one.Faults) > 0 || len(versions) == 0 {
		return one, nil
	}
	// Registries differ in what they refuse: this one has the last word.
	verdict, err := from.verdict(ctx, subject, d)
	if verdict != "" {
		one.Faults = append(one.Faults, verdict)
	}
	return one, told(err)
}

// registryShelf is a registry.
type registryShelf struct {
	client *schema.Client
	level  schema.Level
}

func (r registryShelf) earlier(ctx context.Context, subject string) ([]schema.Registered, schema.Level, error) {
	level := r.level
	if level == "" {
		var err error
		if level, err = r.client.Level(ctx, subject); err != nil {
			return nil, "", err
		}
	}
	numbers, err := r.client.Versions(ctx, subject)
	if fault.Is(err, fault.UnknownSchema) {
		return nil, level, nil
	}
	var all []schema.Registered
	for _, n := range numbers {
		one, err := r.client.At(ctx, subject, n)
		if err != nil {
			return nil, level, err
		}
		all = append(all, one)
	}
	return all, level, err
}

func (r registryShelf) reference(ctx context.Context, ref schema.Reference) (schema.Definition, error) {
	one, err := r.client.At(ctx, ref.Subject, ref.Version)
	return one.Definition, err
}

func (r registryShelf) verdict(ctx context.Context, subject string, d schema.Definition) (string, error) {
	if r.level != "" {
		return "", nil // it would judge by its own level
	}
	good, messages, err := r.client.Compatible(ctx, subject, d)
	if err != nil || good {
		return "", err
	}
	return "the registry refuses it: " + strings.Join(append(messages, ""), "; "), nil
}

// folderShelf is a folder that stands for a registry.
type folderShelf struct {
	*schemas
	dir   string
	level schema.Level
}

func (f *folderShelf) earlier(_ context.Context, subject string) ([]schema.Registered, schema.Level, error) {
	level := f.level
	if level == "" {
		level = schema.LevelBackward
	}
	var all []schema.Registered
	for ending := range extensions {
		paths, err := filepath.Glob(filepath.Join(f.dir, subject, "*"+ending))
		if err != nil {
			return nil, level, usageError{err}
		}
		for _, path := range paths {
			n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ending))
			if err != nil {
				continue
			}
			d, err := (&schemas{}).read(path, "")
			if err != nil {
				return nil, level, err
			}
			all = append(all, schema.Registered{Subject: subject, Version: n, Definition: d})
		}
		path := filepath.Join(f.dir, subject+ending)
		if _, err := os.Stat(path); err == nil {
			d, err := (&schemas{}).read(path, "")
			if err != nil {
				return nil, level, err
			}
			all = append(all, schema.Registered{Subject: subject, Version: 1, Definition: d})
		}
	}
	slices.SortFunc(all, func(a, b schema.Registered) int { return a.Version - b.Version })
	return all, level, nil
}

func (f *folderShelf) reference(ctx context.Context, ref schema.Reference) (schema.Definition, error) {
	all, _, err := f.earlier(ctx, ref.Subject)
	if err != nil {
		return schema.Definition{}, err
	}
	for _, one := range all {
		if one.Version == ref.Version {
			return one.Definition, nil
		}
	}
	return schema.Definition{}, fault.New(fault.UnknownSchema, "%s has no version %d of %s, to which the schema refers as %s", f.dir, ref.Version, ref.Subject, ref.Name)
}

func (f *folderShelf) verdict(context.Context, string, schema.Definition) (string, error) {
	return "", nil
}
