// Command logtail publishes every line of a log as a message, lets a group of
// workers parse them, and draws a live summary:
//
//	logtail /var/log/dpkg.log
//	tail -f access.log | logtail
//
// It knows dpkg's log and the common log format of web servers; of other lines
// it counts the first word. The counts at the end agree with wc -l.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/echobus/echo"
)

// Line is a line of the log, without its newline.
type Line struct {
	Number int
	Text   string
}

// Parsed is what a worker made of a line.
type Parsed struct{ Kind string }

var (
	lines  = echo.NewTopic[Line]("lines")
	parsed = echo.NewTopic[Parsed]("parsed")
)

func main() {
	workers := flag.Int("workers", 4, "how many workers parse")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: logtail [-workers n] [file]\n\nReads the file, or standard input.")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0), *workers); err != nil {
		fmt.Fprintln(os.Stderr, "logtail:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, path string, workers int) error {
	in, size, err := open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	context.AfterFunc(ctx, func() { in.Close() }) // ends a read that waits for input

	bus := echo.New()
	sum := &summary{size: size, live: isTerminal(os.Stdout), kinds: map[string]int{}, begin: time.Now()}
	done, err := start(bus, workers, sum)
	if err != nil {
		return err
	}
	r := &reader{in: in, sum: sum, producer: echo.NewProducer(bus, lines)}
	err = r.publishAll(context.WithoutCancel(ctx))
	if ctx.Err() != nil {
		err = nil // interrupted: count what was read
	}
	<-done(r.lines)
	_, closeErr := bus.Close(context.Background())
	sum.print(os.Stdout, r)
	return errors.Join(err, closeErr)
}

// start subscribes the workers, which turn lines into parsed ones, and the
// summary, which gets every parsed line. The function it returns says when so
// many lines have reached the summary.
func start(bus *echo.Bus, workers int, sum *summary) (done func(n int) <-chan struct{}, err error) {
	ctx := context.Background()
	screen, err := echo.Subscribe(ctx, bus, parsed)
	if err != nil {
		return nil, err
	}
	go screen.Run(ctx, func(_ context.Context, m echo.Message[Parsed]) error {
		sum.add(m.Value.Kind)
		return nil
	})
	consumer, err := echo.Subscribe(ctx, bus, lines, echo.WithGroup("parsers"), echo.WithConcurrency(workers))
	if err != nil {
		return nil, err
	}
	out := echo.NewProducer(bus, parsed)
	go consumer.Run(ctx, func(ctx context.Context, m echo.Message[Line]) error {
		return out.Publish(ctx, Parsed{kind(m.Value.Text)})
	})
	return sum.reached, nil
}

func open(path string) (*os.File, int64, error) {
	if path == "" || path == "-" {
		return os.Stdin, 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
