// The stream of the fleet's events. It is read with fetch, as an EventSource cannot carry a token.
// It runs in the worker that all tabs share (shared.js), or in a tab of a browser without such.

const QUIET_MS = 15_000;
const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 5_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function request(path, token, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.message ?? `${response.status} ${response.statusText}`);
}

/**
 * Follow the stream until `close()`. `report` is called with `{event, data}` for each event, and
 * with `{state, detail}` for the connection: "live", "lost" (`next_at`: when it is tried again) or
 * "refused". After "refused" nothing is tried until `again()`, which always starts over: with a snapshot, for a reader that has none yet.
 */
export function openStream(token, report) {
  let wait = FIRST_WAIT_MS;
  let again = false;
  let closed = false;
  let interrupt = () => {};
  const pause = (ms) => new Promise((done) => {
    const timer = ms === null ? null : setTimeout(done, ms);
    interrupt = () => { clearTimeout(timer); done(); };
  });
  (async () => {
    while (!closed) {
      const stop = new AbortController();
      interrupt = () => stop.abort();
      again = false;
      try {
        await listen(token, stop, (event, data) => {
          wait = FIRST_WAIT_MS;
          report({ state: "live" });
          report({ event, data });
        });
        report({ state: "lost", detail: "the conductor ended the connection", next_at: Date.now() + wait });
      } catch (error) {
        if (again || closed) continue;
        const refused = error instanceof Refused && error.status === 401;
        report({ state: refused ? "refused" : "lost", detail: error.message, next_at: Date.now() + wait });
        if (refused) {
          await pause(null);
          continue;
        }
      }
      await pause(wait);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
  })();
  return {
    again: () => { again = true; interrupt(); },
    close: () => { closed = true; interrupt(); },
  };
}

async function listen(token, stop, on) {
  let watchdog = setTimeout(() => stop.abort(), QUIET_MS);
  try {
    const response = await request("/api/stream", token, { signal: stop.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let parts = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(watchdog);
      watchdog = setTimeout(() => stop.abort(), QUIET_MS);
      parts.push(value);
      if (!value.includes("\n\n") && !value.startsWith("\n")) continue;
      const blocks = parts.join("").split("\n\n");
      parts = [blocks.pop()];
      for (const block of blocks) {
        const found = /^event: (\w+)\ndata: (.*)$/s.exec(block);
        if (found) on(found[1], JSON.parse(found[2]));
      }
    }
  } finally {
    clearTimeout(watchdog);
    stop.abort();
  }
}
