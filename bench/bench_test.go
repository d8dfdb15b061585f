package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/echobus/echo/internal/redistest"
)

func TestContendersCarryEverything(t *testing.T) {
	contenders := append([]contender{echoJSON, echoValue, echoGroup, watermillGoChannel, goCloudMem, bufferedChannel}, watermillTuned...)
	for _, c := range contenders {
		for _, subs := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s to %d", c.name, subs), func(t *testing.T) {
				t.Parallel()
				testCarries(t, c, task{subscribers: subs}, 1000)
			})
		}
	}
}

func TestRedisContendersCarryEverything(t *testing.T) {
	s := testServer(t)
	for _, c := range []contender{s.echo(), s.watermill(), s.raw()} {
		for _, k := range []task{{subscribers: 1}, {subscribers: 3}, {subscribers: 2, publishers: 64}, {subscribers: 1, batch: 100}} {
			t.Run(fmt.Sprintf("%s, %+v", c.name, k), func(t *testing.T) {
				testCarries(t, c, k, 1050)
			})
		}
	}
}

func testServer(t *testing.T) *server {
	return &server{redistest.Start(t)}
}

// testCarries publishes n orders and expects each to be handled once by every
// subscriber, or by one of them if they share.
func testCarries(t *testing.T, c contender, k task, n int) {
	subs := k.subscribers
	counts := make([][]int, subs)
	handlers := make([]handler, subs)
	for i := range handlers {
		counts[i] = make([]int, n)
		handlers[i] = func(o order) {
			counts[i][o.Quantity]++
			o.Quantity = sample.Quantity
			if o != sample {
				t.Errorf("subscriber %d was given %+v, want %+v", i, o, sample)
			}
		}
	}
	s, err := c.open(handlers)
	if err != nil {
		t.Fatal(err)
	}
	due := int64(n * subs)
	if c.shared {
		due = int64(n)
	}
	if err := c.carry(&numbering{session: s}, k, n); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if got := s.total(); got != due {
		t.Errorf("%d messages handled, want %d", got, due)
	}
	for seq := range n {
		sum := 0
		for i := range subs {
			sum += counts[i][seq]
			if !c.shared && counts[i][seq] != 1 {
				t.Fatalf("subscriber %d handled order %d %d times", i, seq, counts[i][seq])
			}
		}
		if c.shared && sum != 1 {
			t.Fatalf("order %d was handled %d times", seq, sum)
		}
	}
}

// numbering is a session that numbers the orders it is given, in Quantity.
type numbering struct {
	session
	n atomic.Int64
}

func (s *numbering) publish(o order) error {
	o.Quantity = int(s.n.Add(1)) - 1
	return s.session.publish(o)
}

func (s *numbering) publishBatch(os []order) error {
	os = slices.Clone(os)
	for i := range os {
		os[i].Quantity = int(s.n.Add(1)) - 1
	}
	return s.session.(batcher).publishBatch(os)
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	c := comparison{name: "a/case", task: task{subscribers: 4}, ours: echoGroup, peer: bufferedChannel}
	r, err := c.measure(5, 5*time.Millisecond, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if r.rounds != 5 || r.oursNS <= 0 || r.peerNS <= 0 || r.spread[0] > r.ratio || r.ratio > r.spread[1] {
		t.Errorf("measured %+v", r)
	}
}

func TestMeasureKeepsToItsTime(t *testing.T) {
	t.Parallel()
	c := comparison{task: task{subscribers: 1}, ours: bufferedChannel, peer: bufferedChannel}
	r, err := c.measure(50, time.Millisecond, time.Now())
	if err != nil || r.rounds != fewest {
		t.Errorf("%d rounds after the time was up, want %d; error %v", r.rounds, fewest, err)
	}
}

func TestStepsShareTime(t *testing.T) {
	begin := time.Now()
	s := steps{w: io.Discard, n: 4, begin: begin, budget: 40 * time.Second}
	s.next("one")
	if left := s.next("two").Sub(begin); left != 20*time.Second {
		t.Errorf("the second of four steps ends after %v of 40 s", left)
	}
}

// slowSession handles one message each time somebody looks.
type slowSession struct {
	published, handled, most int64
}

func (s *slowSession) publish(order) error {
	s.published++
	s.most = max(s.most, s.published-s.handled)
	return nil
}

func (s *slowSession) total() int64 {
	s.handled = min(s.handled+1, s.published)
	return s.handled
}

func (s *slowSession) close() error { return nil }

func TestCarryKeepsWindow(t *testing.T) {
	t.Parallel()
	for _, window := range []int{0, 32, 100} {
		s := new(slowSession)
		if err := (contender{window: window}).carry(s, task{subscribers: 1}, 500); err != nil {
			t.Fatal(err)
		}
		want := int64(window)
		if window == 0 {
			want = 500
		}
		if s.most > want || s.most < want-glance || s.handled != 500 {
			t.Errorf("window %d: %d unhandled at most, %d of 500 handled", window, s.most, s.handled)
		}
	}
}

func TestPaced(t *testing.T) {
	t.Parallel()
	const n, gap = 200, 100 * time.Microsecond
	times, took, err := paced(watermillGoChannel, gap, n)
	if err != nil {
		t.Fatal(err)
	}
	if took < (n-1)*gap {
		t.Errorf("%d messages, one every %v, were published within %v", n, gap, took)
	}
	if len(times) != n-n/10 {
		t.Errorf("%d latencies of %d messages, want all but the first tenth", len(times), n)
	}
	for i, d := range times {
		if d <= 0 {
			t.Fatalf("latency %d is %v", i, d)
		}
	}
}

// A message that is late because its predecessor blocked the publisher counts
// from when it was due.
func TestPacedCountsLateness(t *testing.T) {
	t.Parallel()
	const n, gap, block = 20, time.Millisecond, 30 * time.Millisecond
	c := contender{open: func(hs []handler) (session, error) { return &blockingSession{handle: hs[0], block: block}, nil }}
	times, _, err := paced(c, gap, n)
	if err != nil {
		t.Fatal(err)
	}
	// Publishing message 10 took 30 ms, in which the nine after it fell due.
	if last := times[len(times)-1]; last < block-9*gap {
		t.Errorf("the last message, published %v late, has a latency of %v", block-9*gap, last)
	}
}

// blockingSession handles at once, but the eleventh publish blocks.
type blockingSession struct {
	handle handler
	block  time.Duration
	n      int64
}

func (s *blockingSession) publish(o order) error {
	s.handle(o)
	if s.n++; s.n == 11 {
		time.Sleep(s.block)
	}
	return nil
}

func (s *blockingSession) total() int64 { return s.n }
func (s *blockingSession) close() error { return nil }

func TestLatencies(t *testing.T) {
	t.Parallel()
	top := result{comparison: comparison{ours: echoJSON, peer: watermillGoChannel}, oursNS: 20_000, peerNS: 50_000}
	ls, err := latencies(plan{pace: 100 * time.Millisecond}, tenths(top))
	if err != nil {
		t.Fatal(err)
	}
	if len(ls) != 3 {
		t.Fatalf("%d rows, want 3", len(ls))
	}
	for i, gap := range []time.Duration{200 * time.Microsecond, 500 * time.Microsecond, 500 * time.Microsecond} {
		if l := ls[i]; l.gap != gap || l.p50 <= 0 || l.p99 < l.p50 || l.messages == 0 || l.carried <= 0 {
			t.Errorf("row %d is %+v, want one at a gap of %v", i, l, gap)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		xs   []float64
		want float64
	}{
		{[]float64{7}, 7},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.xs); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.xs, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, c := range []struct {
		ts   []time.Duration
		p    float64
		want time.Duration
	}{
		{nil, 50, 0},
		{hundred[:1], 99, 1},
		{hundred[:2], 50, 1},
		{hundred[:3], 50, 2},
		{hundred, 0, 1},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
	} {
		if got := percentile(c.ts, c.p); got != c.want {
			t.Errorf("percentile %v of %d times = %d, want %d", c.p, len(c.ts), got, c.want)
		}
	}
}

func TestNewResultTakesMedianOfRatios(t *testing.T) {
	r := newResult(comparison{}, []float64{100, 200, 100}, []float64{300, 400, 1000})
	if r.oursNS != 100 || r.peerNS != 400 || r.ratio != 3 || r.spread != [2]float64{2, 10} {
		t.Errorf("result is %+v", r)
	}
}

func TestGrouped(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 7.6: "8", 999: "999", 1000: "1,000", 65536: "65,536", 1234567: "1,234,567"} {
		if got := grouped(x); got != want {
			t.Errorf("grouped(%v) = %q, want %q", x, got, want)
		}
	}
}

// testReport is a report with names that would break the chart if they were
// not escaped.
func testReport() *report {
	r := &report{suite: memorySuite, command: "go run . -suite memory", plan: memorySuite.full, machine: thisMachine(memorySuite.peers)}
	for i, c := range memoryCases {
		r.results = append(r.results, newResult(c, []float64{float64(200 + i)}, []float64{float64(1000 * (i + 1))}))
	}
	r.results[1].what = `<a> & "b" ]]>`
	var tuned []result
	for _, c := range tunedCases() {
		tuned = append(tuned, newResult(c, []float64{500}, []float64{4000}))
	}
	r.sections = []section{tunedSection(tuned), {heading: "Latency", text: memoryLatencyText + openLoopText, table: latencyTable([]latency{
		{contender: echoJSON, load: "a tenth", gap: time.Millisecond, messages: 10, carried: 999, p50: 1500, p99: 20_000},
	})}}
	return r
}

func TestPrintHasRatioLines(t *testing.T) {
	var out strings.Builder
	(&steps{w: &out, n: 7}).next("memory/json/1x1/watermill")
	r := testReport()
	r.print(&out)
	want := []string{
		"memory/json/1x1/watermill", "memory/json/1x8/watermill", "memory/value/1x1/watermill",
		"memory/value/1x8/watermill", "memory/json/1x1/gocloud", "memory/value/group4/channel",
	}
	testRatioLines(t, out.String(), r.results, want)
}

// testRatioLines expects a RATIO line for each case, and those of the results.
func testRatioLines(t *testing.T, out string, results []result, want []string) {
	t.Helper()
	line := regexp.MustCompile(`^RATIO ([a-z0-9/]+) (\d+\.\d\d)$`)
	var cases []string
	for l := range strings.Lines(out) {
		l = strings.TrimSuffix(l, "\n")
		if !strings.HasPrefix(l, "RATIO") {
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("line %q is not RATIO <case> <x>", l)
		}
		if want := fmt.Sprintf("%.2f", results[len(cases)].ratio); m[2] != want {
			t.Errorf("%s has ratio %s, want %s", m[1], m[2], want)
		}
		cases = append(cases, m[1])
	}
	if !slices.Equal(cases, want) {
		t.Errorf("RATIO lines for %v, want %v", cases, want)
	}
}

func TestChartIsWellFormed(t *testing.T) {
	small := &report{results: []result{newResult(memoryCases[0], []float64{0.5}, []float64{0.5})}}
	for _, r := range []*report{testReport(), small, {}} {
		testWellFormed(t, r.draw())
	}
}

func testWellFormed(t *testing.T, svg []byte) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range e.Attr {
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || a.Name.Local == "width" && strings.HasPrefix(a.Value, "-") {
				t.Errorf("%s has %s=%q", e.Name.Local, a.Name.Local, a.Value)
			}
		}
	}
}

func TestChartBarsHaveRoom(t *testing.T) {
	for _, ns := range []float64{1, 10, 99, 100, 100_000} {
		c := chart{groups: []group{{bars: [2]bar{{"ours", ns}, {"peer", ns * 37}}}}}
		s := c.scale()
		if x := s.x(ns); x <= plotLeft+1 {
			t.Errorf("the bar of %v ns ends at %v, its begin", ns, x)
		}
		if x := s.x(ns * 37); x > plotRight {
			t.Errorf("the bar of %v ns ends at %v, right of %v", ns*37, x, plotRight)
		}
	}
}

// testPage expects a page to have some texts.
func testPage(t *testing.T, page string, wants []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range wants {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "%!") {
		t.Errorf("the page has a formatting mistake:\n%s", text)
	}
}

func TestWrite(t *testing.T) {
	page := filepath.Join(t.TempDir(), "performance.md")
	r := testReport()
	if err := r.write(page); err != nil {
		t.Fatal(err)
	}
	testPage(t, page, []string{
		"# Performance\n",
		"cd bench && go run . -suite memory\n",
		"](performance-memory.svg)",
		"| memory/json/1x1/gocloud | ",
		"at least\n  64,000 messages",
		"up to 15 rounds of about 500 ms",
		"OutputChannelBuffer 1024",
		"| echo, JSON | a tenth | 1,000 | 999 | 1.5 | 20.0 | 10 |",
		"| Go | go1.",
	})
	svg, err := os.ReadFile(filepath.Join(filepath.Dir(page), "performance-memory.svg"))
	if err != nil {
		t.Fatal(err)
	}
	testWellFormed(t, svg)
}

// The whole suite, as short as can be.
func TestMeasureRedis(t *testing.T) {
	r := &report{suite: redisSuite, command: "go run . -suite redis", machine: thisMachine(redisSuite.peers)}
	r.plan = plan{rounds: fewest, round: 5 * time.Millisecond, pace: 50 * time.Millisecond, deaths: 1, legacy: 300, claims: 1, idle: 1200 * time.Millisecond}
	var out strings.Builder
	if err := measureRedis(&out, r); err != nil {
		t.Fatal(err)
	}
	r.print(&out)
	testRatioLines(t, out.String(), r.results, []string{
		"redis/e2e/64pub/watermill", "redis/e2e/batch/watermill", "redis/e2e/batch/raw",
		"redis/publish/256pub/xadd", "redis/e2e/1pub/watermill", "redis/recover/watermill",
	})
	for _, who := range []string{"echo/group", "echo/broadcast", "watermill/group", "watermill/broadcast"} {
		if !regexp.MustCompile(`(?m)^IDLE ` + who + ` [1-9]?\d\.\d\d$`).MatchString(out.String()) {
			t.Errorf("no IDLE line for %s in\n%s", who, &out)
		}
	}
	page := filepath.Join(t.TempDir(), redisSuite.page)
	if err := r.write(page); err != nil {
		t.Fatal(err)
	}
	testPage(t, page, []string{
		"# Performance over Redis\n",
		"](performance-redis.svg)",
		"| redis/recover/watermill | 300 messages of a dead consumer, ",
		"| Redis | ",
		"| go-redis | v9.",
		"has left 300 messages unacknowledged",
		"## Latency\n",
		"| echo | one every 200µs | 5,000 | ",
		"## Idle\n",
	})
	svg, err := os.ReadFile(filepath.Join(filepath.Dir(page), "performance-redis.svg"))
	if err != nil {
		t.Fatal(err)
	}
	testWellFormed(t, svg)
}

func TestMeasureFlow(t *testing.T) {
	r := &report{suite: flowSuite, command: "go run . -suite flow", machine: thisMachine(flowSuite.peers)}
	r.plan = plan{rounds: fewest, round: 5 * time.Millisecond, tuned: true}
	var out strings.Builder
	if err := measureFlow(&out, r); err != nil {
		t.Fatal(err)
	}
	r.print(&out)
	testRatioLines(t, out.String(), r.results, []string{"flow/group8/errgroup", "flow/stream/handwritten", "flow/batch/handwritten"})
	for _, line := range []string{`OVER flow/group8 -?\d+\.\d\d µs over errgroup`, `STEP flow/sequence -?\d+ ns over calling the function, \d allocations`} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(out.String()) {
			t.Errorf("no line %s in\n%s", line, &out)
		}
	}
	page := filepath.Join(t.TempDir(), flowSuite.page)
	if err := r.write(page); err != nil {
		t.Fatal(err)
	}
	testPage(t, page, []string{"# What flows cost\n", "](performance-flow.svg)", "| flow/batch/handwritten | ", "| errgroup | v", "## A step\n"})
}

func TestMonitor(t *testing.T) {
	t.Parallel()
	s := testServer(t)
	ctx := context.Background()
	go func() {
		time.Sleep(200 * time.Millisecond)
		for range 10 {
			s.Client().Set(ctx, "x", "[0 lua]", 0)
		}
		s.Client().Eval(ctx, "for i = 1, 3 do redis.call('GET', 'x') end", nil)
	}()
	sent, inner, err := s.monitor(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	// The client says HELLO and the like too, when it connects.
	if sent < 11 || sent > 16 || inner != 3 {
		t.Errorf("%d commands sent and %d called by scripts, want 11 and a few, and 3", sent, inner)
	}
}

func TestRunRefuses(t *testing.T) {
	err := run(io.Discard, options{suite: "mermory"}, nil)
	if err == nil || !strings.Contains(err.Error(), `"mermory"`) || !strings.Contains(err.Error(), "memory or redis") {
		t.Errorf("an unknown suite has the error %v", err)
	}
	if err := run(io.Discard, options{suite: "memory"}, []string{"quick"}); err == nil {
		t.Error("an argument that is no flag has no error")
	}
}
