package redistest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// bind makes the process of cmd end with the thread that starts it, and lead a
// group, which the processes that it forks to save its data belong to.
func bind(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

func kill(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGKILL) }

func resume(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGCONT) }

// stop suspends the process and waits until it is suspended.
func stop(p *os.Process) {
	syscall.Kill(-p.Pid, syscall.SIGSTOP)
	for range 1000 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
		// The state comes after the name, which is in parentheses.
		i := bytes.LastIndexByte(stat, ')')
		if err != nil || i < 0 || bytes.HasPrefix(stat[i:], []byte(") T")) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
