package todo

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
)

const (
	// pageSize is how many todos a list reads at once: at most 4 MiB of content, in one short statement.
	pageSize = 256
	// maxLimit bounds the limit that a client may ask for.
	maxLimit = 1000
	// listBuffer is how much of a list is held back. Up to here a list that breaks off is a clean 503, and there is a length.
	listBuffer = 1 << 20
)

// list answers with every todo, or with those that the query's after and limit leave. It reads page by page: the memory it
// needs has a bound, and a client that reads slowly holds no database connection. A list that breaks off after part of it
// was sent ends the connection without the closing bracket, so that nobody can take the part for the whole.
func (a *api) list(w http.ResponseWriter, r *http.Request) error {
	after, left, err := listRange(r)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteByte('[')
	sent, first := false, true
	for {
		wanted := min(left, pageSize)
		page, err := a.page(r, after, wanted)
		if err != nil && sent {
			exchangeOf(r.Context()).err = err
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			return err
		}
		for _, t := range page {
			if !first {
				out.WriteByte(',')
			}
			first, after = false, t.ID
			encodeJSON(&out, t)
			out.Truncate(out.Len() - 1) // The encoder's line break.
		}
		left -= len(page)
		if len(page) < wanted || left == 0 {
			break
		}
		if out.Len() > listBuffer {
			w.Header().Set("Content-Type", "application/json")
			if _, err := w.Write(out.Bytes()); err != nil {
				exchangeOf(r.Context()).err = err
				panic(http.ErrAbortHandler)
			}
			sent = true
			out.Reset()
		}
	}
	out.WriteString("]\n")
	if !sent {
		writeBody(w, http.StatusOK, out.Bytes())
		return nil
	}
	_, exchangeOf(r.Context()).err = w.Write(out.Bytes())
	return nil
}

func (a *api) page(r *http.Request, after int64, limit int) ([]Todo, error) {
	ctx, cancel := a.deadline(r)
	defer cancel()
	return a.config.Store.List(ctx, after, limit)
}

// listRange reads the query of a list: the todos after which id, and at most how many. Without a limit it is all of them.
func listRange(r *http.Request) (after int64, limit int, err error) {
	limit = int(^uint(0) >> 1)
	query := r.URL.Query()
	if query.Has("after") {
		after, err = strconv.ParseInt(query.Get("after"), 10, 64)
		if err != nil || after < 0 {
			return 0, 0, &InvalidError{"after", "must be a number from 0"}
		}
	}
	if query.Has("limit") {
		limit, err = strconv.Atoi(query.Get("limit"))
		if err != nil || limit < 1 || limit > maxLimit {
			return 0, 0, &InvalidError{"limit", fmt.Sprintf("must be a number from 1 to %d", maxLimit)}
		}
	}
	return after, limit, nil
}
