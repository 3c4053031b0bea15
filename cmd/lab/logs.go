package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"example.com/todo/internal/lab"
	"github.com/spf13/cobra"
)

// followEvery is how often a followed log is looked at.
const followEvery = 200 * time.Millisecond

func (a *app) logs() *cobra.Command {
	var (
		follow bool
		lines  int
	)
	c := &cobra.Command{
		Use:               "logs MACHINE[/agent]",
		Short:             "The log of a machine's service, or of its agent",
		Example:           "  lab logs todo0 -f\n  lab logs vault0/agent -n 200",
		Args:              exactly("a machine"),
		ValidArgsFunction: a.completeMachines,
		RunE: func(c *cobra.Command, args []string) error {
			l, err := a.existing()
			if err != nil {
				return err
			}
			path, err := l.LogPath(args[0])
			if err != nil {
				return usageError{err}
			}
			for _, line := range lab.Tail(path, lines) {
				a.say("%s", line)
			}
			if !follow {
				return nil
			}
			return followFile(c.Context(), path, a.stdout)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on")
	c.Flags().IntVarP(&lines, "lines", "n", 50, "how many lines of the past")
	return c
}

// followFile copies what is added to a file until ctx ends. A file that is replaced or not there yet is followed too.
func followFile(ctx context.Context, path string, w io.Writer) error {
	var at int64
	if i, err := os.Stat(path); err == nil {
		at = i.Size()
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		f, err := os.Open(path)
		if err != nil {
			continue // not there yet
		}
		if i, err := f.Stat(); err == nil && i.Size() < at {
			at = 0 // a new file
		}
		var added bytes.Buffer
		n, err := io.Copy(&added, io.NewSectionReader(f, at, 1<<40))
		at += n
		f.Close()
		if err != nil {
			return fmt.Errorf("follow %s: %w", path, err)
		}
		if _, err := w.Write(added.Bytes()); err != nil {
			return err
		}
	}
}
