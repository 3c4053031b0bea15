package lab

// Running names the processes of a lab: machine/unit, and "+" for what a unit started itself.
func Running(dir string) ([]string, error) {
	ps, err := processes(dir)
	var ids []string
	for _, p := range ps {
		if p.main {
			ids = append(ids, p.unit)
		} else {
			ids = append(ids, p.unit+"+")
		}
	}
	return ids, err
}

// PID is the process of a unit, 0 if it does not run.
func (l *Lab) PID(id string) int {
	ps, _ := processes(l.dir)
	p, _ := pick(ps, id)
	return p.pid
}
