// Package deptest keeps the shape of the source: who may import whom, where a process may be told things, what may be
// global, and how tests may wait. Each rule is a test that names the place and the reason. The package holds tests only.
//
// The tests read the source themselves instead of asking `go list`: go test records the files they open, so that a cached
// result is thrown away when any of them changes, and files for other systems are read too.
package deptest
