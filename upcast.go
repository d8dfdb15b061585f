package echo

import (
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
)

// Upcast lets a topic understand messages of an earlier schema: those of version
// from are decoded as Old and made New by f. New is the topic's type, or the Old
// of the next later version that has an Upcast; f then does one step of several.
// Version 0 is that of producers that name none, see [WithVersion].
//
// A message for which f returns an error, or panics, becomes a dead letter with
// [ReasonUpcast]. [Message].Version is the version it was published with.
func Upcast[Old, New any](from int, f func(Old) (New, error)) TopicOption {
	return topicOption(func(c *topicConfig) {
		switch {
		case from < 0:
			c.fail(fmt.Errorf("Upcast from version %d: versions begin at 0", from))
		case f == nil:
			c.fail(fmt.Errorf("Upcast from version %d: the function is nil", from))
		case slices.ContainsFunc(c.upcasts, func(u upcast) bool { return u.from == from }):
			c.fail(fmt.Errorf("Upcast from version %d is given twice", from))
		}
		c.upcasts = append(c.upcasts, upcast{
			from: from, old: reflect.TypeFor[Old](), new: reflect.TypeFor[New](),
			decode: func(codec Codec, data []byte) (any, error) {
				var v Old
				err := decode(codec, data, &v)
				return v, err
			},
			step: func(v any) (any, error) {
				old, _ := v.(Old) // a nil interface is no Old, and its zero value
				return f(old)
			},
		})
	})
}

// upcast is a step from one version of a schema to a later one.
type upcast struct {
	from     int
	old, new reflect.Type
	decode   func(Codec, []byte) (any, error)
	step     func(any) (any, error)
}

// link puts upcasts in order and checks that each leads to the next, and the
// last one to a topic's type and version.
func link(upcasts []upcast, version int, to reflect.Type) error {
	slices.SortFunc(upcasts, func(a, b upcast) int { return a.from - b.from })
	for i, u := range upcasts {
		next, what := to, "the topic carries"
		if i+1 < len(upcasts) {
			next, what = upcasts[i+1].old, fmt.Sprintf("the Upcast from version %d takes", upcasts[i+1].from)
		}
		if u.new != next {
			return fmt.Errorf("Upcast from version %d makes a %v, and %s a %v", u.from, u.new, what, next)
		}
		if u.from >= version {
			return fmt.Errorf("Upcast from version %d, and WithVersion says that the topic's is %d", u.from, version)
		}
	}
	return nil
}

// upcastError is an error of an Upcast.
type upcastError struct {
	from int
	err  error
}

func (e *upcastError) Error() string { return fmt.Sprintf("upcast from version %d: %v", e.from, e.err) }
func (e *upcastError) Unwrap() error { return e.err }

// upcasted decodes data of a version by the steps from there on. ok is false if
// it needs none.
func upcasted[M any](upcasts []upcast, codec Codec, version int, data []byte) (_ *M, ok bool, err error) {
	i := slices.IndexFunc(upcasts, func(u upcast) bool { return u.from == version })
	if i < 0 {
		return nil, false, nil
	}
	v, err := upcasts[i].decode(codec, data)
	if err != nil {
		return nil, true, err
	}
	for _, u := range upcasts[i:] {
		if v, err = u.up(v); err != nil {
			return nil, true, &upcastError{u.from, err}
		}
	}
	m, _ := v.(M)
	return &m, true, nil
}

func (u *upcast) up(v any) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	return u.step(v)
}

// Decode returns the value of a message, as a consumer would: by the codec of
// its content type, which names the version of its schema, too. It serves tests
// that keep messages of earlier versions; a codec must be the topic's, [JSON],
// [Bytes] or [Text].
func (t *Topic[M]) Decode(contentType string, data []byte) (M, error) {
	var none M
	if t == nil || t.err != nil {
		return none, errors.Join(errors.New("echo: decode: the topic is wrong"), t.failure())
	}
	b := New()
	decs := newDecoders(b, t.cfg, t.codec(b))
	codec, version, err := decs.find(contentType)
	if err == nil {
		var v *M
		if v, err = decodeAs[M](&decs, codec, version, data); err == nil {
			return *v, nil
		}
	}
	return none, &DecodeError{Topic: t.name, Type: contentType, Data: data, Err: err}
}

func (t *Topic[M]) failure() error {
	if t == nil {
		return errors.New("topic is nil")
	}
	return t.err
}

// decodeAs decodes data of a version.
func decodeAs[M any](decs *decoders, codec Codec, version int, data []byte) (*M, error) {
	if len(decs.upcasts) > 0 {
		if v, ok, err := upcasted[M](decs.upcasts, codec, version, data); ok {
			return v, err
		}
	}
	v := new(M)
	if err := decode(codec, data, v); err != nil {
		return nil, err
	}
	return v, nil
}
