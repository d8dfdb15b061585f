package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// chart is groups of two bars, ours and the peer's, on a common log scale.
type chart struct {
	title, note string
	groups      []group
}

type group struct {
	title string
	note  string // at the right
	bars  [2]bar
}

type bar struct {
	label string
	ns    float64
}

// Measures of the chart, in its own units. The background is white whatever
// the page's is, so the colours suit both light and dark pages.
const (
	chartWidth = 860
	plotLeft   = 190 // labels are left of it
	plotRight  = 750 // beyond there is room for the value of the longest bar
	plotTop    = 84
	barHeight  = 18
	barGap     = 4
	titleSpace = 24
	groupSpace = 22
	groupStep  = titleSpace + 2*barHeight + barGap + groupSpace
	axisSpace  = 56
)

var barColours = [2]string{"#0a6ebd", "#9aa3ad"}

// svg draws the chart.
func (c chart) svg() []byte {
	var b bytes.Buffer
	bottom := plotTop + groupStep*len(c.groups)
	height := bottom + axisSpace
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" fill="#1f2328">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escaped(c.title))
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	text(&b, 20, 34, `font-size="19" font-weight="600"`, c.title)
	text(&b, 20, 56, `fill="#59636e"`, c.note)
	s := c.scale()
	s.draw(&b, bottom)
	for i, g := range c.groups {
		g.draw(&b, s, plotTop+i*groupStep)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (g group) draw(b *bytes.Buffer, s scale, y int) {
	text(b, 20, y+16, `font-weight="600"`, g.title)
	text(b, chartWidth-20, y+16, `font-weight="600" font-size="15" text-anchor="end"`, g.note)
	for i, bar := range g.bars {
		top := y + titleSpace + i*(barHeight+barGap)
		end := s.x(bar.ns)
		text(b, plotLeft-10, top+13, `text-anchor="end"`, bar.label)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`+"\n", plotLeft, top, end-plotLeft, barHeight, barColours[i])
		text(b, end+7, top+13, "", grouped(bar.ns)+" ns")
	}
}

// scale is the axis: whole decades from 10^low to 10^high ns.
type scale struct{ low, high int }

// scale returns an axis on which every bar has some length.
func (c chart) scale() scale {
	least, most := math.Inf(1), 0.0
	for _, g := range c.groups {
		for _, bar := range g.bars {
			least, most = min(least, bar.ns), max(most, bar.ns)
		}
	}
	if most <= 0 || math.IsInf(most, 0) {
		return scale{0, 1}
	}
	low := int(math.Floor(math.Log10(least / 2)))
	return scale{low, max(low+1, int(math.Ceil(math.Log10(most))))}
}

func (s scale) x(ns float64) float64 {
	part := (math.Log10(ns) - float64(s.low)) / float64(s.high-s.low)
	return plotLeft + part*(plotRight-plotLeft)
}

// draw draws a line for each decade, with its value below.
func (s scale) draw(b *bytes.Buffer, bottom int) {
	for d := s.low; d <= s.high; d++ {
		ns := math.Pow(10, float64(d))
		x := s.x(ns)
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#d8dde3"/>`+"\n", x, plotTop, x, bottom)
		text(b, x, bottom+18, `text-anchor="middle" fill="#59636e"`, grouped(ns))
	}
	text(b, (plotLeft+plotRight)/2, bottom+40, `text-anchor="middle" fill="#59636e"`, "nanoseconds per message, log scale")
}

// text writes with a white rim, so that a line of the axis does not cross it out.
func text(b *bytes.Buffer, x float64, y int, attrs, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%d" stroke="#ffffff" stroke-width="4" paint-order="stroke" %s>%s</text>`+"\n", x, y, attrs, escaped(s))
}

func escaped(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s))
	return b.String()
}
