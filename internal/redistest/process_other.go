//go:build !linux

package redistest

import (
	"os"
	"os/exec"
	"strconv"
)

// bind does nothing: only Linux can end a process with its parent.
func bind(*exec.Cmd) {}

func kill(p *os.Process) { p.Kill() }

func stop(p *os.Process) { exec.Command("kill", "-STOP", strconv.Itoa(p.Pid)).Run() }

func resume(p *os.Process) { exec.Command("kill", "-CONT", strconv.Itoa(p.Pid)).Run() }
