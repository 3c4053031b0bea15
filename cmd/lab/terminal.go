package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"example.com/todo/internal/lab"
	"golang.org/x/term"
)

// palette colours words, or leaves them alone where colours are not wanted.
type palette bool

func (p palette) paint(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p palette) good(s string) string  { return p.paint("32", s) }
func (p palette) bad(s string) string   { return p.paint("1;31", s) }
func (p palette) soso(s string) string  { return p.paint("33", s) }
func (p palette) faint(s string) string { return p.paint("2", s) }
func (p palette) bold(s string) string  { return p.paint("1", s) }

// terminal returns the size of the terminal that w is, if it is one.
func (a *app) terminal(w io.Writer) (width, height int, ok bool) {
	f, is := w.(*os.File)
	if !is || a.getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return width, height, err == nil && width > 0
}

// palette is in colour on a terminal whose owner did not say otherwise (no-color.org).
func (a *app) palette() palette {
	_, _, ok := a.terminal(a.stdout)
	return palette(ok && a.getenv("NO_COLOR") == "")
}

// progress shows what a long command does, one line per machine: on a terminal in place, elsewhere as plain lines.
type progress struct {
	app   *app
	paint palette
	begun time.Time

	mu      sync.Mutex
	order   []string
	lines   map[string]lab.Event
	since   map[string]time.Time
	drawn   int // lines on the screen that are ours
	inPlace bool
	closed  bool // nothing goes on any more
	stop    chan struct{}
	stopped chan struct{}
}

const redrawEvery = 100 * time.Millisecond

// progress begins to show; close ends it.
func (a *app) progress(machines []lab.Machine, withOperator bool) *progress {
	p := &progress{
		app: a, paint: a.palette(), begun: time.Now(),
		lines: map[string]lab.Event{}, since: map[string]time.Time{},
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	for _, m := range machines {
		p.order = append(p.order, m.Name)
	}
	if withOperator {
		p.order = append(p.order, lab.OperatorLine)
	}
	_, height, ok := a.terminal(a.stdout)
	p.inPlace = ok && height > len(p.order)+1
	go p.animate()
	return p
}

// animate redraws, so that a step that takes long can be seen to be alive.
func (p *progress) animate() {
	defer close(p.stopped)
	if !p.inPlace {
		return
	}
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

func (p *progress) report(e lab.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inPlace && p.lines[e.Machine].Failed {
		e = p.lines[e.Machine] // what failed is what the line is for, whatever comes after
	}
	p.lines[e.Machine], p.since[e.Machine] = e, time.Now()
	if p.inPlace {
		p.draw()
		return
	}
	p.app.say("%5.1fs  %-9s %s", time.Since(p.begun).Seconds(), e.Machine, e.Text)
}

func (p *progress) close() {
	close(p.stop)
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.inPlace {
		p.draw()
		io.WriteString(p.app.stdout, "\x1b[J") // the ^C of a person who interrupted us, say
	}
}

// draw writes all lines over the ones drawn before.
func (p *progress) draw() {
	if len(p.lines) == 0 {
		return
	}
	width, _, _ := p.app.terminal(p.app.stdout)
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	p.drawn = 0
	for _, name := range p.order {
		b.WriteString("\r\x1b[K" + p.line(name, width) + "\n")
		p.drawn++
	}
	io.WriteString(p.app.stdout, b.String())
}

func (p *progress) line(name string, width int) string {
	e, known := p.lines[name]
	mark, text := p.paint.faint("·"), ""
	switch spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"); {
	case !known:
	case e.Failed:
		mark, text = p.paint.bad("✗"), e.Text
	case e.Warning:
		mark, text = p.paint.soso("!"), e.Text
	case e.Done:
		mark, text = p.paint.good("✓"), e.Text
	case p.closed:
		text = p.paint.faint("not done: ") + e.Text
	default:
		frame := int(time.Since(p.begun)/redrawEvery) % len(spinner)
		mark, text = p.paint.soso(string(spinner[frame])), e.Text
		if s := time.Since(p.since[name]); s > 3*time.Second {
			text += fmt.Sprintf(" … %.0f s", s.Seconds())
		}
	}
	return fmt.Sprintf("%s %-9s %s", mark, name, cut(text, width-13))
}

// cut shortens a text to a width, since a line that wraps cannot be drawn over.
func cut(s string, width int) string {
	if width < 1 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
