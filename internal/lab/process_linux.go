package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Every process of a lab carries these in its environment.
const (
	unitVariable = "LAB_UNIT" // <directory of the lab>:<machine>/<unit>
	byVariable   = "LAB_BY"   // the command that started it: up, or start
)

// process is one process of a lab, as found in /proc. The start time makes it that process and not a later one with the
// same number.
type process struct {
	pid   int
	start uint64 // in clock ticks since boot
	unit  string // machine/unit
	by    string
	main  bool // the leader of its session, as the lab started it; otherwise something that it started itself
	state byte // as ps shows it
}

func (p process) paused() bool { return p.state == 'T' || p.state == 't' }

// processes finds every process of a lab by looking at all of them.
func processes(dir string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for the lab's processes: %w", err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, lab, ok := inspect(pid); ok && lab == dir {
			found = append(found, p)
		}
	}
	return found, nil
}

// inspect reads which lab a process belongs to, if any. A process that ends meanwhile belongs to none.
func inspect(pid int) (p process, dir string, ok bool) {
	p.pid = pid
	mark := ""
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		name, value, _ := strings.Cut(string(v), "=")
		switch name {
		case unitVariable:
			mark = value
		case byVariable:
			p.by = value
		}
	}
	if errors.Is(err, os.ErrPermission) {
		// Root in a container may not look into a process that gave up root, as the database server does. Its
		// arguments are for everybody to see, and name its configuration file.
		mark = markFromArguments(pid)
	}
	at := strings.LastIndexByte(mark, ':')
	if at < 0 {
		return process{}, "", false
	}
	dir, p.unit = mark[:at], mark[at+1:]
	s, err := readStat(pid)
	if err != nil || s.state == 'Z' || s.state == 'X' {
		return process{}, "", false
	}
	p.start, p.state, p.main = s.start, s.state, s.session == pid
	return p, dir, true
}

func markFromArguments(pid int) string {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	for a := range bytes.SplitSeq(args, []byte{0}) {
		if path, ok := strings.CutPrefix(string(a), "--defaults-file="); ok && filepath.Base(path) == mysqlConfig {
			machine := filepath.Dir(path)
			return filepath.Dir(filepath.Dir(machine)) + ":" + filepath.Base(machine) + "/" + RoleMySQL
		}
	}
	return ""
}

type stat struct {
	state   byte
	session int
	start   uint64
}

// readStat reads /proc/<pid>/stat; the fields are numbered in proc(5).
func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The second field is the name in parentheses, and a name may hold anything.
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const first = 3 // the number of f[0]
	const state, session, start = 0, 6 - first, 22 - first
	if len(f) <= start {
		return stat{}, fmt.Errorf("process %d: /proc/%d/stat has %d fields", pid, pid, len(f))
	}
	s := stat{state: f[state][0]}
	if s.session, err = strconv.Atoi(f[session]); err != nil {
		return stat{}, err
	}
	s.start, err = strconv.ParseUint(f[start], 10, 64)
	return s, err
}

// ended reports whether a process is gone. One that we started ourselves leaves its exit status until somebody takes it:
// that is done here, and whoever is first gets it as status.
func (p process) ended() (gone bool, status string) {
	s, err := readStat(p.pid)
	if err != nil || s.start != p.start {
		return true, ""
	}
	if s.state != 'Z' && s.state != 'X' {
		return false, ""
	}
	var ws unix.WaitStatus
	pid, err := unix.Wait4(p.pid, &ws, unix.WNOHANG, nil)
	switch {
	case err != nil: // somebody else's child
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
		return len(threads) <= 1, ""
	case pid != p.pid: // its first thread has ended, and others have not
		return false, ""
	case ws.Signaled():
		return true, "ended by " + ws.Signal().String()
	default:
		return true, fmt.Sprintf(endedWith, ws.ExitStatus())
	}
}

// signal reaches this process or none: the handle is opened first, then checked to be of the process we mean.
func (p process) signal(s os.Signal) error {
	handle, err := os.FindProcess(p.pid)
	if err != nil {
		return fmt.Errorf("find process %d: %w", p.pid, err)
	}
	defer handle.Release()
	if gone, _ := p.ended(); gone {
		return os.ErrProcessDone
	}
	if err := handle.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// The signals by which the lab controls its processes.
var (
	sigTerm os.Signal = unix.SIGTERM
	sigKill os.Signal = unix.SIGKILL
	sigStop os.Signal = unix.SIGSTOP
	sigCont os.Signal = unix.SIGCONT
)

// command is a program to start.
type command struct {
	path string
	args []string // without the program's name
	env  []string
	dir  string
	log  string // its output is appended here
}

// start runs a command as a unit of a lab, in a session of its own: it outlives us and our terminal.
func start(dir, unit, by string, c command) (process, error) {
	log, err := openLog(c.log)
	if err != nil {
		return process{}, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return process{}, err
	}
	defer null.Close()
	env := append([]string{unitVariable + "=" + dir + ":" + unit, byVariable + "=" + by}, c.env...)
	p, err := os.StartProcess(c.path, append([]string{c.path}, c.args...), &os.ProcAttr{
		Dir: c.dir, Env: env, Files: []*os.File{null, log, log}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", unit, err)
	}
	defer p.Release()
	s, err := readStat(p.Pid)
	if err != nil {
		return process{}, fmt.Errorf("start %s: %w", unit, err)
	}
	return process{pid: p.Pid, start: s.start, unit: unit, by: by, main: true, state: s.state}, nil
}

// tryLock locks an open file for this process, or says ErrLocked.
func tryLock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

// ownedByUs refuses a directory of another user: half of what is in it could not be read, or would change hands.
func ownedByUs(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user with id %d, and we are %d: use the lab as its owner, or name another directory with --dir", dir, s.Uid, os.Geteuid())
	}
	return nil
}
