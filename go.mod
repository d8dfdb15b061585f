module github.com/echobus/echo

go 1.26
