package transport

import (
	"errors"
	"fmt"
	"strings"
)

// MaxName is the longest name of a topic or group, in bytes.
const MaxName = 200

// DeadTopic returns the name of the topic that keeps the dead letters of
// another: ".dead" after its name. Drivers keep the two where one step can
// reach both.
func DeadTopic(topic string) string { return topic + deadSuffix }

// RedriveGroup is the group of a topic of dead letters by which these are sent
// home. Move makes it with the first one, so that retention by what groups have
// acknowledged keeps all that are not.
const RedriveGroup = "redrive"

// CutDead returns the topic whose dead letters a topic keeps, if it does.
func CutDead(topic string) (of string, ok bool) {
	of, ok = strings.CutSuffix(topic, deadSuffix)
	return of, ok && of != ""
}

const deadSuffix = ".dead"

// InboxTopic returns the name of a topic for replies to one receiver, who made
// up unique, a random text of letters and digits that nobody can guess: who
// knows it may send there.
func InboxTopic(unique string) string { return inboxPrefix + unique }

// IsInbox reports whether a topic is one for replies. Drivers keep little in it,
// and nothing for long: its receiver is there or does not want it.
func IsInbox(topic string) bool { return strings.HasPrefix(topic, inboxPrefix) }

const inboxPrefix = "reply."

// CheckMove returns an error unless a message may be moved to a topic: it has a
// name, and is not for replies.
func CheckMove(topic string) error {
	if IsInbox(topic) {
		return fmt.Errorf("moving a message to %.80q, a topic for replies: %w", topic, errors.ErrUnsupported)
	}
	return CheckName("topic", topic)
}

// CheckName returns an error unless name can name a topic or a group on every
// transport: it matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$. So a name never
// carries a separator, a glob, a hash tag or a line break into a broker.
// kind says in the error what the name is of.
func CheckName(kind, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s name is empty", kind)
	case len(name) > MaxName:
		return fmt.Errorf("%s name %.40q… has %d bytes, at most %d are allowed", kind, name, len(name), MaxName)
	}
	for i := range len(name) {
		if c := name[i]; !isNameByte(c) || i == 0 && (c == '.' || c == '_' || c == '-') {
			return fmt.Errorf("%s name %q may not have %q at byte %d: want a letter or digit, then letters, digits, '.', '_' or '-'", kind, name, name[i:i+1], i)
		}
	}
	return nil
}

func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}
