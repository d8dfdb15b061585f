package memstream

import (
	"container/heap"
	"time"
)

// due is a message to be delivered again at a time; queue orders them by time,
// then as they stand in the topic.
type due struct {
	at time.Duration
	i  uint64
}

type queue []due

func (q queue) Len() int { return len(q) }
func (q queue) Less(a, b int) bool {
	return q[a].at < q[b].at || q[a].at == q[b].at && q[a].i < q[b].i
}
func (q queue) Swap(a, b int) { q[a], q[b] = q[b], q[a] }
func (q *queue) Push(x any)   { *q = append(*q, x.(due)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

func (q *queue) push(at time.Duration, i uint64) { heap.Push(q, due{at, i}) }
func (q *queue) pop() uint64                     { return heap.Pop(q).(due).i }
