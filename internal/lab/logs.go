package lab

import (
	"io"
	"os"
	"strings"
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
