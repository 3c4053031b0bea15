package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// maxLog is how long a log may be when its unit starts; a longer one is set aside, and the one set aside before is lost.
const maxLog = 32 << 20

func openLog(path string) (*os.File, error) {
	if i, err := os.Stat(path); err == nil && i.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// Tail returns the last lines of a file, and nothing of a file that cannot be read.
func Tail(path string, lines int) []string {
	const enough = 64 << 10
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if i, err := f.Stat(); err == nil && i.Size() > enough {
		if _, err := f.Seek(-enough, io.SeekEnd); err != nil {
			return nil
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil
	}
	if len(text) == 0 {
		return nil
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return all[max(0, len(all)-max(0, lines)):]
}

// Logs writes the last lines of a unit's log, and with follow goes on with what is added until ctx ends.
func (l *Lab) Logs(ctx context.Context, ref string, lines int, follow bool, w io.Writer) error {
	path, err := l.LogPath(ref)
	if err != nil {
		return err
	}
	for _, line := range Tail(path, lines) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return followFile(ctx, path, w)
}

// followEvery is how often a followed log is looked at.
const followEvery = 200 * time.Millisecond

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
