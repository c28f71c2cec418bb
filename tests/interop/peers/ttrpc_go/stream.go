// Streams, which the library has since version 1.2: built in only where it does.
package main

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func init() {
	registerStreams = func(s *ttrpc.Server) {
		s.RegisterService("test.Streams", &ttrpc.ServiceDesc{Streams: map[string]ttrpc.Stream{
			"Count": {Handler: count, StreamingServer: true},
			"Join":  {Handler: join, StreamingClient: true},
			"Chat":  {Handler: chat, StreamingClient: true, StreamingServer: true},
		}})
	}
	callStream = stream
}

func count(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	request := &text{}
	if err := stream.RecvMsg(request); err != nil {
		return nil, err
	}
	word, size, _ := strings.Cut(request.Value, " ")
	many, err := strconv.Atoi(word)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "no number")
	}
	width, _ := strconv.Atoi(size)
	for i := 0; i < many; i++ {
		if err := stream.SendMsg(&text{Value: padded(strconv.Itoa(i), width)}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func join(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	var words []string
	for {
		request := &text{}
		if err := stream.RecvMsg(request); err == io.EOF {
			return &text{Value: strings.Join(words, ",")}, nil
		} else if err != nil {
			return nil, err
		}
		words = append(words, request.Value)
	}
}

func chat(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	for {
		request := &text{}
		if err := stream.RecvMsg(request); err == io.EOF {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if request.Value == "fail" {
			return nil, status.Error(codes.Aborted, "enough: aborted")
		}
		if err := stream.SendMsg(request); err != nil {
			return nil, err
		}
	}
}

// stream makes a whole call: it sends all it has, then takes all that comes.
func stream(ctx context.Context, client *ttrpc.Client, o order) answer {
	a := answer{ID: o.ID, Texts: []string{}}
	kind := &ttrpc.StreamDesc{StreamingClient: o.Method != "Count", StreamingServer: o.Method != "Join"}
	var first interface{}
	if !kind.StreamingClient {
		first = &text{Value: o.Texts[0]}
	}
	opened, err := client.NewStream(ctx, kind, o.Service, o.Method, first)
	if err == nil && kind.StreamingClient {
		for _, word := range o.Texts {
			if err = opened.SendMsg(&text{Value: padded(word, o.Size)}); err != nil {
				break
			}
		}
		if err == nil {
			err = opened.CloseSend()
		}
	}
	for err == nil {
		response := &text{}
		if err = opened.RecvMsg(response); err == nil {
			a.Texts = append(a.Texts, strings.TrimRight(response.Value, "."))
			a.Size += len(response.Value)
			if !kind.StreamingServer {
				return a
			}
		}
	}
	if err != io.EOF {
		converted := status.Convert(err)
		a.Code, a.Status = int(converted.Code()), converted.Message()
	}
	return a
}
