// Package vagrant carries the list of machines inside every binary that needs it, so that the one-machine lab and the
// virtual machines are always the same machines, whatever directory the binary is run from.
package vagrant

import _ "embed"

//go:embed machines.yaml
var machines string

// Machines is the text of machines.yaml.
func Machines() string { return machines }
