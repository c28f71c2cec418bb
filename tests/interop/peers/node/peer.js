// A gRPC peer made of @grpc/grpc-js: `peer.js server SOCKET` or `peer.js client SOCKET OPTION...`.
//
// The echo service and the orders a client takes on its standard input are described in
// tests/harness/peers.py. Messages have two strings and are coded by hand, so that no generated
// code is needed. The packages are found by NODE_PATH.
"use strict";

const grpc = require("@grpc/grpc-js");
const readline = require("node:readline");

const LIMIT = 16 << 20;

function encode({ text, revision }) {
  const parts = [];
  for (const [tag, value] of [[0x0a, text], [0x12, revision]]) {
    if (!value) continue;
    const data = Buffer.from(value);
    const head = [tag];
    let size = data.length;
    for (; size > 127; size >>>= 7) head.push((size & 127) | 128);
    head.push(size);
    parts.push(Buffer.from(head), data);
  }
  return Buffer.concat(parts);
}

function decode(data) {
  const message = { text: "", revision: "" };
  for (let at = 0; at < data.length;) {
    const tag = data[at++];
    let size = 0;
    let shift = 0;
    let byte;
    do {
      byte = data[at++];
      size |= (byte & 127) << shift;
      shift += 7;
    } while (byte > 127);
    const value = data.toString("utf8", at, at + size);
    at += size;
    if (tag === 0x0a) message.text = value;
    else if (tag === 0x12) message.revision = value;
    else throw new Error(`unknown tag ${tag}`);
  }
  return message;
}

const method = (name, requestStream, responseStream) => ({
  path: `/test.Echo/${name}`,
  requestStream,
  responseStream,
  requestSerialize: encode,
  requestDeserialize: decode,
  responseSerialize: encode,
  responseDeserialize: decode,
});

const METHODS = {
  Say: method("Say", false, false),
  Count: method("Count", false, true),
  Join: method("Join", true, false),
  Chat: method("Chat", true, true),
  Absent: method("Absent", false, false),
};

// Values of -bin keys in base64; details of an error apart.
function encoded(metadata) {
  const out = {};
  for (const key of Object.keys(metadata.getMap())) {
    out[key] = metadata.get(key).map((v) => (Buffer.isBuffer(v) ? v.toString("base64") : v));
  }
  return out;
}

// Server

// Signals are waited for under the key that a call has in its metadata.
class Signals {
  constructor() {
    this.ready = new Map();
    this.waiting = new Map();
  }
  give(call) {
    const key = String(call.metadata.get("key"));
    const waiting = this.waiting.get(key);
    if (waiting) {
      this.waiting.delete(key);
      waiting();
    } else this.ready.set(key, (this.ready.get(key) || 0) + 1);
  }
  take(key) {
    const ready = this.ready.get(key);
    if (!ready) return new Promise((resolve) => this.waiting.set(key, resolve));
    this.ready.set(key, ready - 1);
    return Promise.resolve();
  }
}

const started = new Signals();
const cancelled = new Signals();
let sent = 0;

function details() {
  const metadata = new grpc.Metadata();
  const told = Buffer.from("\x08\x09\x12\x0cwith details\x1a\x26\x0a\x1ftype.googleapis.com/test.Detail\x12\x03\x0a\x01d");
  metadata.set("grpc-status-details-bin", told);
  return { code: 9, details: "with details", metadata };
}

function say(call, callback) {
  const { text, revision } = call.request;
  const reply = (text) => callback(null, { text, revision: "" });
  if (text === "fail") callback({ code: 5, details: `${revision}: not found` });
  else if (text === "details") callback(details());
  else if (text === "hang") {
    call.on("cancelled", () => cancelled.give(call));
    started.give(call);
  } else if (text === "started") started.take(revision).then(() => reply(text));
  else if (text === "cancelled") cancelled.take(revision).then(() => reply(text));
  else if (text === "sent") reply(String(sent));
  else if (text === "big") reply(".".repeat(Number(revision)));
  else if (text === "seen") {
    const deadline = call.getDeadline();
    const timeout = Number.isFinite(Number(deadline)) ? (deadline - Date.now()) / 1000 : null;
    reply(JSON.stringify({ metadata: encoded(call.metadata), timeout }));
  } else callback(null, call.request);
}

async function count(call) {
  const metadata = new grpc.Metadata();
  metadata.set("from", "zero");
  call.sendMetadata(metadata);
  let over = false;
  let resume = () => {};
  call.on("cancelled", () => {
    over = true;
    cancelled.give(call);
    resume();
  });
  call.on("drain", () => resume());
  const size = Number(call.request.revision);
  for (let i = 0; i < Number(call.request.text) && !over; i++) {
    const more = call.write({ text: String(i).padEnd(size, "."), revision: "" });
    if (!more && !over) await new Promise((resolve) => (resume = resolve));
    sent++;
  }
  const trailers = new grpc.Metadata();
  trailers.set("to-bin", Buffer.from([0, 255]));
  trailers.add("to", "a");
  trailers.add("to", "b");
  if (!over) call.end(trailers);
}

function join(call, callback) {
  const words = [];
  call.on("data", (request) => words.push(request.text));
  call.on("end", () => callback(null, { text: words.join(","), revision: "" }));
  call.on("cancelled", () => cancelled.give(call));
}

function chat(call) {
  let over = false;
  call.on("cancelled", () => cancelled.give(call));
  call.on("error", () => {});
  call.on("data", (request) => {
    if (over) return;
    if (request.text === "fail") {
      over = true;
      call.emit("error", { code: 10, details: "enough" });
      return;
    }
    if (!call.write(request)) {
      call.pause();
      call.once("drain", () => call.resume());
    }
    if (request.text === "end") {
      over = true;
      call.end();
    }
    if (request.text === "hang") over = true;
  });
  call.on("end", () => over || call.end());
}

function serve(path) {
  const server = new grpc.Server({
    "grpc.max_receive_message_length": LIMIT,
    "grpc.max_send_message_length": -1,
    "grpc.keepalive_time_ms": 50,
  });
  const { Absent, ...served } = METHODS;
  server.addService(served, { Say: say, Count: count, Join: join, Chat: chat });
  server.bindAsync(`unix:${path}`, grpc.ServerCredentials.createInsecure(), (error) => {
    if (error) throw error;
    console.log("ready");
  });
  process.on("SIGTERM", () => server.tryShutdown(() => process.exit(0)));
}

// Client

class Call {
  constructor(client, order) {
    this.id = order.id;
    this.done = Promise.resolve();
    this.headers = {};
    const kind = METHODS[order.method];
    const metadata = new grpc.Metadata();
    for (const [key, value] of order.metadata || []) {
      metadata.add(key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value);
    }
    const options = order.timeout ? { deadline: Date.now() + order.timeout * 1000 } : {};
    const message = order.message && padded(order.message);
    let answered;
    this.answer = new Promise((resolve) => (answered = resolve));
    const callback = (error, value) => answered(value);
    const head = [kind.path, encode, decode];
    if (!kind.requestStream && !kind.responseStream) {
      this.call = client.makeUnaryRequest(...head, message, metadata, options, callback);
    } else if (!kind.responseStream) {
      this.call = client.makeClientStreamRequest(...head, metadata, options, callback);
    } else if (!kind.requestStream) {
      this.call = client.makeServerStreamRequest(...head, message, metadata, options);
    } else {
      this.call = client.makeBidiStreamRequest(...head, metadata, options);
    }
    this.call.on("metadata", (metadata) => (this.headers = encoded(metadata)));
    this.status = new Promise((resolve) => this.call.on("status", resolve));
    if (kind.requestStream || kind.responseStream) this.call.on("error", () => {});
    this.single = !kind.responseStream;
    if (kind.responseStream) this.messages = this.call[Symbol.asyncIterator]();
  }

  // One order at a time.
  follow(order) {
    this.done = this.done.then(() => this[order.do](order)).catch(fail);
  }

  send(order) {
    return new Promise((resolve) => {
      this.status.then(resolve);
      this.call.write(padded(order.message), resolve);
    });
  }

  close() {
    this.call.end();
  }

  async recv(order) {
    const messages = [];
    let status = null;
    while (status === null && (!order.count || messages.length < order.count)) {
      const message = await this.next();
      if (message) {
        messages.push([message.text.replace(/\.+$/, ""), Buffer.byteLength(message.text), message.revision]);
      } else {
        status = await this.end();
      }
    }
    console.log(JSON.stringify({ id: this.id, messages, status }));
  }

  async next() {
    if (this.single) {
      const value = await this.answer;
      this.answer = Promise.resolve(null);
      return value;
    }
    try {
      return (await this.messages.next()).value;
    } catch {
      return null;
    }
  }

  async end() {
    const { code, details, metadata } = await this.status;
    const trailers = encoded(metadata);
    const [told] = trailers["grpc-status-details-bin"] || [""];
    delete trailers["grpc-status-details-bin"];
    return { code, text: details, headers: this.headers, trailers, details: told };
  }
}

function padded({ text, revision, size }) {
  return { text: text.padEnd(size || 0, "."), revision: revision || "" };
}

function drive(path, options) {
  const client = new grpc.Client(`unix:${path}`, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": LIMIT,
    "grpc.max_send_message_length": -1,
    ...(options.includes("keepalive") && { "grpc.keepalive_time_ms": 50 }),
    "grpc.default_compression_algorithm": options.includes("gzip") ? 2 : 0,
    "grpc.enable_retries": 0,
  });
  const calls = new Map();
  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", (line) => {
    const order = JSON.parse(line);
    if (order.do === "open") calls.set(order.id, new Call(client, order));
    else if (order.do === "cancel") calls.get(order.id).call.cancel();
    else calls.get(order.id).follow(order);
  });
  lines.on("close", () => {
    client.close();
    process.exit(0);
  });
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

const [role, path, ...options] = process.argv.slice(2);
if (role === "server") serve(path);
else drive(path, options);
