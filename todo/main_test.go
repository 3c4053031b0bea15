package todo

import (
	"testing"

	"go.uber.org/goleak"
)

// The package promises to own no goroutine, so none may be left when its tests have ended.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
