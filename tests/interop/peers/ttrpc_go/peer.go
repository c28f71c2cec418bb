// A ttrpc peer made of containerd's Go library: `peer server SOCKET` or `peer client SOCKET`.
//
// The service and the orders that a client takes are described in tests/interop/test_ttrpc_go.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/golang/protobuf/ptypes/wrappers"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type text = wrappers.StringValue

// What stream.go adds, where the library has streams.
var (
	registerStreams = func(*ttrpc.Server) {}
	callStream      func(context.Context, *ttrpc.Client, order) answer
)

func padded(word string, size int) string {
	if missing := size - len(word); missing > 0 {
		word += strings.Repeat(".", missing)
	}
	return word
}

// Server

type server struct{ started, ended chan struct{} }

func (s *server) say(ctx context.Context, unmarshal func(interface{}) error) (interface{}, error) {
	request := &text{}
	if err := unmarshal(request); err != nil {
		return nil, err
	}
	word, rest, _ := strings.Cut(request.Value, " ")
	switch word {
	case "fail":
		return nil, status.Error(codes.NotFound, rest+": not found")
	case "bug":
		return nil, errors.New("oops")
	case "big":
		size, err := strconv.Atoi(rest)
		return &text{Value: padded("", size)}, err
	case "hang":
		s.started <- struct{}{}
		<-ctx.Done()
		s.ended <- struct{}{}
		return nil, ctx.Err()
	case "started":
		<-s.started
	case "ended":
		<-s.ended
	case "seen":
		metadata, _ := ttrpc.GetMetadata(ctx)
		seen := map[string]interface{}{"metadata": metadata, "timeout": nil}
		if deadline, ok := ctx.Deadline(); ok {
			seen["timeout"] = time.Until(deadline).Seconds()
		}
		told, err := json.Marshal(seen)
		return &text{Value: string(told)}, err
	}
	return request, nil
}

func serve(path string) {
	listener, err := net.Listen("unix", path)
	check(err)
	ttrpcServer, err := ttrpc.NewServer()
	check(err)
	s := &server{started: make(chan struct{}, 4096), ended: make(chan struct{}, 4096)}
	ttrpcServer.Register("test.Words", map[string]ttrpc.Method{"Say": s.say})
	registerStreams(ttrpcServer)
	fmt.Println("ready")
	check(ttrpcServer.Serve(context.Background(), listener))
}

// Client

type order struct {
	Do       string
	ID       int
	Service  string
	Method   string
	Text     string
	Texts    []string
	Size     int
	Metadata [][2]string
	Timeout  float64
}

type answer struct {
	ID     int      `json:"id"`
	Text   string   `json:"text"`
	Texts  []string `json:"texts"`
	Size   int      `json:"size"`
	Code   int      `json:"code"`
	Status string   `json:"status"`
}

func call(ctx context.Context, client *ttrpc.Client, o order) answer {
	if len(o.Metadata) > 0 {
		metadata := ttrpc.MD{}
		for _, pair := range o.Metadata {
			metadata.Append(pair[0], pair[1])
		}
		ctx = ttrpc.WithMetadata(ctx, metadata)
	}
	request, response := &text{Value: padded(o.Text, o.Size)}, &text{}
	a := answer{ID: o.ID}
	if err := client.Call(ctx, o.Service, o.Method, request, response); err != nil {
		converted := status.Convert(err)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			converted = status.FromContextError(err)
		}
		a.Code, a.Status = int(converted.Code()), converted.Message()
		return a
	}
	a.Text, a.Size = strings.TrimRight(response.Value, "."), len(response.Value)
	return a
}

func drive(path string) {
	connection, err := net.Dial("unix", path)
	check(err)
	client := ttrpc.NewClient(connection)
	out, mutex := json.NewEncoder(os.Stdout), sync.Mutex{}
	cancels := map[int]context.CancelFunc{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		check(json.Unmarshal(lines.Bytes(), &o))
		if o.Do == "cancel" {
			cancels[o.ID]()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		if o.Timeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(o.Timeout*float64(time.Second)))
		}
		cancels[o.ID] = cancel
		go func() {
			make := call
			if o.Do == "stream" {
				make = callStream
			}
			a := make(ctx, client, o)
			mutex.Lock()
			defer mutex.Unlock()
			check(out.Encode(a))
		}()
	}
	client.Close()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	if os.Args[1] == "server" {
		serve(os.Args[2])
	} else {
		drive(os.Args[2])
	}
}
