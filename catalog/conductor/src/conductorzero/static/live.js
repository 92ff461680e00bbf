// The connection to the conductor: requests with the token, and the stream of events.
// The stream is read with fetch, as an EventSource cannot carry a token.

const QUIET_MS = 15_000;
const FIRST_WAIT_MS = 300;
const LONGEST_WAIT_MS = 5_000;

export const token = {
  get: () => sessionStorage.getItem("token") ?? "",
  set: (value) => sessionStorage.setItem("token", value.trim()),
  forget: () => sessionStorage.removeItem("token"),
};

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.error?.message ?? `${response.status} ${response.statusText}`);
}

export const read = async (path) => (await request(path)).json();

const LINK = { lost: "connection lost, trying again", refused: "the token is needed" };
let seen = "";

/** Show the state of the connection; a screen reader hears of its changes only. */
export function showLink(state) {
  if (state === "live") seen = new Date().toLocaleTimeString("en-GB");
  const of = state === "lost" && seen ? ` (figures of ${seen})` : "";
  document.getElementById("live-text").textContent = state === "live" ? `live, ${seen}` : LINK[state] + of;
  if (document.body.dataset.link === state) return;
  if (document.body.dataset.link || state !== "live") {
    document.getElementById("link").textContent = LINK[state] ?? "live again";
  }
  document.body.dataset.link = state;
}

/**
 * Follow the stream for ever: `on(event, data)` for each event, `status(state, detail)` for the
 * connection: "live", "lost" or "refused". After "refused" it waits for `resume()`.
 */
export function follow(on, status) {
  let wait = FIRST_WAIT_MS;
  let resume = () => {};
  const pause = (ms) => new Promise((done) => {
    const timer = ms === null ? null : setTimeout(done, ms);
    resume = () => { clearTimeout(timer); done(); };
  });
  (async () => {
    for (;;) {
      try {
        await listen((event, data) => {
          wait = FIRST_WAIT_MS;
          status("live");
          on(event, data);
        });
        status("lost", "the conductor ended the connection");
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          status("refused", error.message);
          await pause(null);
          continue;
        }
        status("lost", error.message);
      }
      await pause(wait);
      wait = Math.min(wait * 2, LONGEST_WAIT_MS);
    }
  })();
  document.getElementById("again").addEventListener("click", () => resume());
  addEventListener("online", () => resume());
  document.addEventListener("visibilitychange", () => document.hidden || resume());
  return { resume: () => resume() };
}

async function listen(on) {
  const stop = new AbortController();
  let watchdog = setTimeout(() => stop.abort(), QUIET_MS);
  try {
    const response = await request("/api/stream", { signal: stop.signal });
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
