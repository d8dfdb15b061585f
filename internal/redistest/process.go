package redistest

import (
	"os/exec"
	"runtime"
)

// process is a process that was started. A nil one has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended
}

// launch starts cmd as a process that ends with this one.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	bind(cmd)
	started := make(chan error)
	go func() {
		// Linux means the thread that started the process when it says parent,
		// so the thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int {
	if p == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// runs reports whether the process has not ended.
func (p *process) runs() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) kill() {
	if p.runs() {
		kill(p.cmd.Process)
		<-p.done
	}
}

func (p *process) stop() {
	if p.runs() {
		stop(p.cmd.Process)
	}
}

func (p *process) resume() {
	if p.runs() {
		resume(p.cmd.Process)
	}
}
