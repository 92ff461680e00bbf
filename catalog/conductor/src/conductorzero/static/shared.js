// The worker that all tabs of a browser share: one stream for each token, whatever the number of
// tabs. A browser opens six connections to a host: with a stream for each tab, a seventh never loads.

import { openStream } from "./stream.js";

const streams = new Map();

self.onconnect = ({ ports: [port] }) => {
  let joined = null;

  function leave() {
    const left = streams.get(joined);
    joined = null;
    if (!left?.ports.delete(port) || left.ports.size) return;
    left.link.close();
    for (const [token, one] of streams) if (one === left) streams.delete(token);
  }

  port.onmessage = ({ data: { act, token } }) => {
    if (act === "leave" || joined !== token) leave();
    if (act === "leave") return;
    joined = token;
    const known = streams.get(token);
    if (known) {
      known.ports.add(port);
      known.link.again();
      return;
    }
    const ports = new Set([port]);
    const link = openStream(token, (message) => ports.forEach((one) => one.postMessage({ token, message })));
    streams.set(token, { ports, link });
  };
};
