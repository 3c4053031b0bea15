//go:build !linux

package lab

import (
	"database/sql"
	"os"
	"time"
)

// Elsewhere than on Linux nothing can be started, and Supported says why. What is here lets the program be built, so that
// it can say so.

type process struct {
	pid  int
	unit string
	by   string
	main bool
}

func (process) paused() bool           { return false }
func (process) ended() (bool, string)  { return true, "" }
func (process) signal(os.Signal) error { return Supported() }

type command struct {
	path string
	args []string
	env  []string
	dir  string
	log  string
}

func (process) started() time.Time { return time.Time{} }

var sigTerm, sigKill, sigStop, sigCont os.Signal = os.Interrupt, os.Kill, os.Interrupt, os.Interrupt

func processes(string) ([]process, error)              { return nil, Supported() }
func start(_, _, _ string, _ command) (process, error) { return process{}, Supported() }
func tryLock(*os.File) error                           { return Supported() }
func ownedByUs(string) error                           { return nil }
func inspect(int) (unit, dir string, ok bool)          { return "", "", false }
func (l *Lab) openMySQL(Machine) (*sql.DB, error)      { return nil, Supported() }
