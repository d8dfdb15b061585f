//go:build !race

package wsstream_test

const raceEnabled = false
