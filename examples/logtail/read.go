package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/echobus/echo"
)

// reader publishes the lines of a log.
type reader struct {
	in       io.Reader
	sum      *summary
	producer *echo.Producer[Line]
	batch    []Line

	lines     int  // published
	newlines  int  // as wc -l counts them
	shortened int  // lines longer than a message may be
	partial   bool // the last line had no newline
}

// A longer line is published by its beginning.
const maxLine = 64 << 10

// A batch of this many lines is published at once.
const batchLines = 256

func (r *reader) publishAll(ctx context.Context) error {
	in := bufio.NewReaderSize(r.in, maxLine)
	for {
		text, err := r.line(in)
		if err == nil || r.partial {
			r.lines++
			r.batch = append(r.batch, Line{r.lines, strings.ToValidUTF8(text, "\uFFFD")})
		}
		if len(r.batch) == batchLines || in.Buffered() == 0 || err != nil {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// line reads one line and its newline.
func (r *reader) line(in *bufio.Reader) (string, error) {
	chunk, err := in.ReadSlice('\n')
	text := string(chunk)
	r.sum.read(len(chunk))
	if err == bufio.ErrBufferFull {
		r.shortened++
		for err == bufio.ErrBufferFull {
			chunk, err = in.ReadSlice('\n')
			r.sum.read(len(chunk))
		}
	}
	if err == nil {
		r.newlines++
	} else {
		r.partial = text != ""
	}
	return strings.TrimRight(text, "\r\n"), err
}

func (r *reader) flush(ctx context.Context) error {
	defer func() { r.batch = r.batch[:0] }()
	return r.producer.PublishBatch(ctx, r.batch)
}
