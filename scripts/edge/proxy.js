// A reverse proxy of Node's http module, as many programs have one: each request goes on with its fields and its body,
// over one connection that is kept. Node reads the request and frames the one that it sends.
//
//   usage: node proxy.js PORT UPSTREAM-PORT FIELD [--lenient]
//
// FIELD is added to every request that is forwarded.
"use strict";
const http = require("node:http");

const [port, upstreamPort, field, lenient] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const ofOneConnection = new Set(["connection", "keep-alive", "proxy-connection", "te", "upgrade"]);

function fields(raw) {
  const kept = [];
  for (let at = 0; at < raw.length; at += 2) {
    if (!ofOneConnection.has(raw[at].toLowerCase())) kept.push(raw[at], raw[at + 1]);
  }
  return kept;
}

function forward(request, response) {
  const refuse = () => {
    if (response.headersSent) response.destroy();
    else response.writeHead(502).end();
  };
  let upstream;
  try {
    upstream = http.request({
      host: "127.0.0.1", port: upstreamPort, agent, method: request.method, path: request.url, setHost: false,
      headers: [...fields(request.rawHeaders), field, "1"],
    });
  } catch {
    refuse();
    return;
  }
  upstream.on("error", refuse);
  upstream.on("response", (reply) => {
    response.writeHead(reply.statusCode, fields(reply.rawHeaders));
    reply.pipe(response);
  });
  request.on("error", () => upstream.destroy());
  request.on("aborted", () => upstream.destroy());
  request.pipe(upstream);
}

const server = http.createServer({ insecureHTTPParser: Boolean(lenient), requireHostHeader: !lenient }, forward);
server.httpAllowHalfOpen = true;
server.listen(Number(port), "127.0.0.1");
