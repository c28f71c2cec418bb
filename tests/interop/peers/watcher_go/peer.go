// A client of containerd as Go programs are: `peer SOCKET`, on one connection.
//
// It subscribes to all events, again whenever its stream ends, and asks for the version all the
// time. Lines on its standard output: `event BASE64` for each message, `cut CODE` for each end of a
// stream, `lost CODE TEXT` for each call that failed, `gap MICROSECONDS` between answers that were
// far apart. It ends with its standard input.
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

const far = 5 * time.Millisecond

// raw has messages as the bytes that they are.
type raw struct{}

func (raw) Name() string                              { return "proto" }
func (raw) Marshal(value interface{}) ([]byte, error) { return *value.(*[]byte), nil }
func (raw) Unmarshal(data []byte, value interface{}) error {
	*value.(*[]byte) = append([]byte(nil), data...)
	return nil
}

var mutex sync.Mutex

func tell(format string, values ...interface{}) {
	mutex.Lock()
	defer mutex.Unlock()
	fmt.Printf(format+"\n", values...)
}

func subscribe(connection *grpc.ClientConn) error {
	description := grpc.StreamDesc{ServerStreams: true}
	method := "/containerd.services.events.v1.Events/Subscribe"
	stream, err := connection.NewStream(context.Background(), &description, method)
	if err != nil {
		return err
	}
	var request, event []byte
	if err := stream.SendMsg(&request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if err := stream.RecvMsg(&event); err != nil {
			return err
		}
		tell("event %s", base64.StdEncoding.EncodeToString(event))
	}
}

func ask(connection *grpc.ClientConn) {
	var request, response []byte
	last := time.Now()
	for {
		err := connection.Invoke(context.Background(), "/containerd.services.version.v1.Version/Version", &request, &response)
		if err != nil {
			tell("lost %s %s", status.Code(err), status.Convert(err).Message())
			time.Sleep(time.Millisecond)
			continue
		}
		now := time.Now()
		if gap := now.Sub(last); gap > far {
			tell("gap %d", gap.Microseconds())
		}
		last = now
		time.Sleep(time.Millisecond)
	}
}

func main() {
	connection, err := grpc.Dial("unix://"+os.Args[1], grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		panic(err)
	}
	go ask(connection)
	go func() {
		for {
			tell("cut %s", status.Code(subscribe(connection)))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}
