package todo

import (
	"log/slog"
	"net/http"
	"time"
)

// What a client may take. A request needs less than a second; the limits are for clients that are slow, silent or gone.
// The write timeout is counted from the end of the request's header, so it must hold the time to read the body, the
// handler's deadline and the time to send the answer.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 16 << 10
)

// NewServer returns an http.Server for handler in which no client can hold a connection for ever: the header must arrive
// within 5 s and be at most about 16 KiB, the body must arrive within 10 s, the answer must be taken within 30 s, and an idle
// connection is closed after 60 s. The caller sets Addr if it wants to, and may shorten the timeouts before it serves.
func NewServer(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}
