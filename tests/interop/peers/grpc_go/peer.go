// A gRPC peer made of grpc-go: `peer server SOCKET` or `peer client SOCKET OPTION...`.
//
// The echo service and the orders a client takes on its standard input are described in
// tests/harness/peers.py. Messages have two strings and are coded by hand, so that no generated
// code is needed.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/golang/protobuf/proto"
	"github.com/golang/protobuf/ptypes/any"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const limit = 16 << 20

// Message is what all methods take and give.
type Message struct{ Text, Revision string }

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(value interface{}) ([]byte, error) {
	message := value.(*Message)
	var out []byte
	for i, text := range []string{message.Text, message.Revision} {
		if text != "" {
			var size [binary.MaxVarintLen64]byte
			out = append(out, byte(i+1)<<3|2)
			out = append(out, size[:binary.PutUvarint(size[:], uint64(len(text)))]...)
			out = append(out, text...)
		}
	}
	return out, nil
}

func (codec) Unmarshal(data []byte, value interface{}) error {
	message := value.(*Message)
	*message = Message{}
	for len(data) > 0 {
		tag := data[0]
		size, used := binary.Uvarint(data[1:])
		if used <= 0 || uint64(len(data)-1-used) < size {
			return errors.New("message is cut short")
		}
		text := string(data[1+used : 1+used+int(size)])
		data = data[1+used+int(size):]
		switch tag {
		case 0x0a:
			message.Text = text
		case 0x12:
			message.Revision = text
		default:
			return fmt.Errorf("unknown field %d", tag)
		}
	}
	return nil
}

func padded(text string, size int) string {
	if missing := size - len(text); missing > 0 {
		text += strings.Repeat(".", missing)
	}
	return text
}

func number(text string) int {
	value, _ := strconv.Atoi(text)
	return value
}

// encoded gives metadata as a JSON object; values of -bin keys in base64.
func encoded(md metadata.MD) map[string][]string {
	out := map[string][]string{}
	for key, values := range md {
		for _, value := range values {
			if strings.HasSuffix(key, "-bin") {
				value = base64.StdEncoding.EncodeToString([]byte(value))
			}
			out[key] = append(out[key], value)
		}
	}
	return out
}

// Server

// signals are waited for under the key that a call has in its metadata.
type signals struct {
	mutex    sync.Mutex
	channels map[string]chan struct{}
}

func (s *signals) of(key string) chan struct{} {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.channels == nil {
		s.channels = map[string]chan struct{}{}
	}
	if s.channels[key] == nil {
		s.channels[key] = make(chan struct{}, 4096)
	}
	return s.channels[key]
}

func (s *signals) give(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.of(strings.Join(md.Get("key"), "")) <- struct{}{}
}

type server struct {
	started, cancelled signals
	sent               int64
}

func (s *server) say(ctx context.Context, request *Message) (*Message, error) {
	switch request.Text {
	case "fail":
		return nil, status.Error(codes.NotFound, request.Revision+": not found")
	case "details":
		detail := &any.Any{TypeUrl: "type.googleapis.com/test.Detail", Value: []byte("\x0a\x01d")}
		told := &spb.Status{Code: 9, Message: "with details", Details: []*any.Any{detail}}
		return nil, status.ErrorProto(told)
	case "hang":
		s.started.give(ctx)
		<-ctx.Done()
		s.cancelled.give(ctx)
		return nil, status.FromContextError(ctx.Err()).Err()
	case "started":
		<-s.started.of(request.Revision)
	case "cancelled":
		<-s.cancelled.of(request.Revision)
	case "sent":
		return &Message{Text: strconv.FormatInt(atomic.LoadInt64(&s.sent), 10)}, nil
	case "big":
		return &Message{Text: padded("", number(request.Revision))}, nil
	case "seen":
		seen := map[string]interface{}{"timeout": nil}
		md, _ := metadata.FromIncomingContext(ctx)
		seen["metadata"] = encoded(md)
		if deadline, ok := ctx.Deadline(); ok {
			seen["timeout"] = time.Until(deadline).Seconds()
		}
		text, err := json.Marshal(seen)
		return &Message{Text: string(text)}, err
	}
	return request, nil
}

func (s *server) count(stream grpc.ServerStream) error {
	request := &Message{}
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	if err := stream.SendHeader(metadata.Pairs("from", "zero")); err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs("to-bin", "\x00\xff", "to", "a", "to", "b"))
	for i := 0; i < number(request.Text); i++ {
		text := padded(strconv.Itoa(i), number(request.Revision))
		if err := stream.SendMsg(&Message{Text: text}); err != nil {
			s.cancelled.give(stream.Context())
			return err
		}
		atomic.AddInt64(&s.sent, 1)
	}
	return nil
}

func (s *server) join(stream grpc.ServerStream) error {
	var words []string
	for {
		request := &Message{}
		if err := stream.RecvMsg(request); err == io.EOF {
			return stream.SendMsg(&Message{Text: strings.Join(words, ",")})
		} else if err != nil {
			s.cancelled.give(stream.Context())
			return err
		}
		words = append(words, request.Text)
	}
}

func (s *server) chat(stream grpc.ServerStream) error {
	for {
		request := &Message{}
		if err := stream.RecvMsg(request); err == io.EOF {
			return nil
		} else if err != nil {
			s.cancelled.give(stream.Context())
			return err
		}
		if request.Text == "fail" {
			return status.Error(codes.Aborted, "enough")
		}
		if err := stream.SendMsg(request); err != nil {
			return err
		}
		if request.Text == "end" {
			return nil
		}
		if request.Text == "hang" {
			<-stream.Context().Done()
			s.cancelled.give(stream.Context())
			return stream.Context().Err()
		}
	}
}

func unary(
	instance interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor,
) (interface{}, error) {
	request := &Message{}
	if err := decode(request); err != nil {
		return nil, err
	}
	return instance.(*server).say(ctx, request)
}

func serve(path string) {
	listener, err := net.Listen("unix", path)
	check(err)
	grpcServer := grpc.NewServer(
		grpc.MaxRecvMsgSize(limit),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Second}),
	)
	handler := func(run func(*server, grpc.ServerStream) error) grpc.StreamHandler {
		return func(instance interface{}, stream grpc.ServerStream) error {
			return run(instance.(*server), stream)
		}
	}
	grpcServer.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Count", Handler: handler((*server).count), ServerStreams: true},
			{StreamName: "Join", Handler: handler((*server).join), ClientStreams: true},
			{
				StreamName: "Chat", Handler: handler((*server).chat),
				ServerStreams: true, ClientStreams: true,
			},
		},
	}, &server{})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		grpcServer.GracefulStop()
	}()
	fmt.Println("ready")
	check(grpcServer.Serve(listener))
}

// Client

type order struct {
	Do       string
	ID       int
	Method   string
	Message  *spec
	Metadata [][2]string
	Timeout  float64
	Count    int
}

type spec struct {
	Text, Revision string
	Size           int
}

func (s *spec) message() *Message {
	return &Message{Text: padded(s.Text, s.Size), Revision: s.Revision}
}

type told struct {
	Code     int                 `json:"code"`
	Text     string              `json:"text"`
	Headers  map[string][]string `json:"headers"`
	Trailers map[string][]string `json:"trailers"`
	Details  string              `json:"details"`
}

type answer struct {
	ID       int             `json:"id"`
	Messages [][]interface{} `json:"messages"`
	Status   *told           `json:"status"`
}

type call struct {
	id     int
	stream grpc.ClientStream
	err    error
	orders chan order
	cancel context.CancelFunc
	single bool
	over   bool
}

type client struct {
	connection *grpc.ClientConn
	options    []grpc.CallOption
	calls      map[int]*call
	mutex      sync.Mutex
	out        *json.Encoder
}

var kinds = map[string]*grpc.StreamDesc{
	"Say":   {},
	"Count": {ServerStreams: true},
	"Join":  {ClientStreams: true},
	"Chat":  {ServerStreams: true, ClientStreams: true},
}

func (c *client) open(o order) {
	ctx, cancel := context.WithCancel(context.Background())
	if o.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.Timeout*float64(time.Second)))
	}
	for _, pair := range o.Metadata {
		value := pair[1]
		if strings.HasSuffix(pair[0], "-bin") {
			raw, err := base64.RawStdEncoding.DecodeString(value)
			check(err)
			value = string(raw)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, pair[0], value)
	}
	kind := kinds[o.Method]
	if kind == nil {
		kind = &grpc.StreamDesc{}
	}
	opened := &call{id: o.ID, orders: make(chan order, 64), cancel: cancel, single: !kind.ServerStreams}
	c.calls[o.ID] = opened
	go func() {
		opened.stream, opened.err = c.connection.NewStream(ctx, kind, "/test.Echo/"+o.Method, c.options...)
		if o.Message != nil && opened.err == nil {
			opened.send(o.Message.message())
			opened.stream.CloseSend()
		}
		for next := range opened.orders {
			switch {
			case next.Do == "recv":
				c.tell(opened.receive(next.Count))
			case opened.err != nil:
			case next.Do == "send":
				opened.send(next.Message.message())
			case next.Do == "close":
				opened.stream.CloseSend()
			}
		}
	}()
}

func (c *client) tell(a answer) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	check(c.out.Encode(a))
}

// send leaves the error of a stream that has ended to receive.
func (c *call) send(message *Message) {
	if err := c.stream.SendMsg(message); err != nil && err != io.EOF {
		c.err = err
	}
}

// receive takes count messages, or all if it is 0.
func (c *call) receive(count int) answer {
	a := answer{ID: c.id, Messages: [][]interface{}{}}
	for a.Status == nil && (count == 0 || len(a.Messages) < count) {
		err := c.err
		if err == nil && c.over {
			err = io.EOF
		}
		message := &Message{}
		if err == nil {
			err = c.stream.RecvMsg(message)
		}
		if err != nil {
			a.Status = c.end(err)
			break
		}
		text := strings.TrimRight(message.Text, ".")
		a.Messages = append(a.Messages, []interface{}{text, len(message.Text), message.Revision})
		c.over = c.single
	}
	return a
}

func (c *call) end(err error) *told {
	t := &told{}
	if err != io.EOF {
		converted := status.Convert(err)
		t.Code, t.Text = int(converted.Code()), converted.Message()
		if p := converted.Proto(); p != nil && len(p.Details) > 0 {
			raw, err := proto.Marshal(p)
			check(err)
			t.Details = base64.StdEncoding.EncodeToString(raw)
		}
	}
	if c.stream != nil {
		if md, err := c.stream.Header(); err == nil {
			t.Headers = encoded(md)
		}
		t.Trailers = encoded(c.stream.Trailer())
	}
	return t
}

func drive(path string, options []string) {
	dial := []grpc.DialOption{
		grpc.WithInsecure(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
	}
	connection, err := grpc.Dial("passthrough:///peer", dial...)
	check(err)
	c := &client{
		connection: connection,
		options:    []grpc.CallOption{grpc.MaxCallRecvMsgSize(limit)},
		calls:      map[int]*call{},
		out:        json.NewEncoder(os.Stdout),
	}
	for _, option := range options {
		if option == "gzip" {
			c.options = append(c.options, grpc.UseCompressor("gzip"))
		}
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		check(json.Unmarshal(lines.Bytes(), &o))
		switch o.Do {
		case "open":
			c.open(o)
		case "cancel":
			c.calls[o.ID].cancel()
		default:
			c.calls[o.ID].orders <- o
		}
	}
	check(connection.Close())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	encoding.RegisterCodec(codec{})
	if os.Args[1] == "server" {
		serve(os.Args[2])
	} else {
		drive(os.Args[2], os.Args[3:])
	}
}
