package echo_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/echobus/echo"
)

func TestUpcastsThatDoNotFitAreRefusedByName(t *testing.T) {
	type one struct{ A int }
	type two struct{ B int }
	up := func(o one) (two, error) { return two{o.A}, nil }
	for want, topic := range map[string]*echo.Topic[two]{
		"Upcast from version 1 makes a echo_test.two, and the Upcast from version 2 takes a echo_test.one": echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast(1, up), echo.Upcast(2, up)),
		"Upcast from version 0 makes a int, and the topic carries a echo_test.two":                         echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast(0, func(one) (int, error) { return 0, nil })),
		"Upcast from version 1 is given twice":                                                             echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast(1, up), echo.Upcast(1, up)),
		"Upcast from version 3, and WithVersion says that the topic's is 3":                                echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast(3, up)),
		"Upcast from version -1: versions begin at 0":                                                      echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast(-1, up)),
		"Upcast from version 1: the function is nil":                                                       echo.NewTopic[two]("t", echo.WithVersion(3), echo.Upcast[one, two](1, nil)),
	} {
		err := echo.NewProducer(newBus(t), topic).Publish(t.Context(), two{})
		assert.ErrorContains(t, err, want)
		_, err = topic.Decode("application/json", []byte("{}"))
		assert.ErrorContains(t, err, want)
	}
}

func TestATopicDecodesWhatItsConsumersWould(t *testing.T) {
	type one struct{ A int }
	type two struct{ B int }
	topic := echo.NewTopic[two]("t", echo.WithVersion(2), echo.Upcast(1, func(o one) (two, error) {
		if o.A < 0 {
			return two{}, errors.New("negative")
		}
		return two{o.A}, nil
	}))
	v, err := topic.Decode("application/json; version=1", []byte(`{"A":7}`))
	require.NoError(t, err)
	assert.Equal(t, two{7}, v)
	v, err = topic.Decode("application/json; version=2", []byte(`{"B":8}`))
	require.NoError(t, err)
	assert.Equal(t, two{8}, v)
	for _, bad := range []string{"application/json; version=1", "text/html", "application/json; version=x"} {
		_, err = topic.Decode(bad, []byte(`{"A":-1}`))
		e, ok := errors.AsType[*echo.DecodeError](err)
		require.True(t, ok, bad)
		assert.Equal(t, bad, e.Type)
	}
}
