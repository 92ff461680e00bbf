// The connection to the conductor: requests with the token, and the tab's part of the stream.

import { put, putMark, zoned } from "./format.js";
import { openStream, request as ask } from "./stream.js";

export { Refused } from "./stream.js";

const HIDDEN_MS = 10_000;

export const token = {
  get: () => sessionStorage.getItem("token") ?? "",
  set: (value) => sessionStorage.setItem("token", value.trim()),
  forget: () => sessionStorage.removeItem("token"),
};

export const request = (path, options = {}) => ask(path, token.get(), options);

export const read = async (path) => (await request(path)).json();

const LINK = { live: "live", lost: "not live", refused: "the token is needed" };
let seen = null;

/** Show the state of the connection; a screen reader hears of its changes only. */
function showLink({ state, next_at: next }) {
  const live = state === "live";
  if (live) seen = new Date();
  putMark(document.getElementById("live"), live ? "ok pulse" : "fail", LINK[state]);
  const at = document.getElementById("live-at");
  put(at, seen ? zoned(seen) : "");
  put(document.getElementById("stale-at"), seen ? zoned(seen) : "nothing yet");
  if (next) put(document.getElementById("stale-next"), `at ${zoned(next)}`);
  if (document.body.dataset.link === state) return;
  if (document.body.dataset.link || !live) {
    document.getElementById("link").textContent = live ? "live again" : LINK[state];
  }
  document.body.dataset.link = state;
  document.getElementById("again").hidden = state !== "refused";
  document.getElementById("stale").hidden = state !== "lost";
  document.getElementById("main").classList.toggle("stale", state === "lost");
  const acts = document.getElementById("signals");
  if (acts) acts.inert = state === "lost";
}

/** The link to the scheduler that the conductor has its handlers from, where it has one. */
export function showScheduler(url) {
  const link = document.getElementById("schedules");
  if (!url || !link.hidden) return;
  link.href = url;
  link.hidden = false;
}

/**
 * Follow the stream: `on(event, data)` for each event, `status(state, detail)` for the connection:
 * "live", "lost" or "refused". After "refused" it waits for `resume()`. A tab that is hidden for a
 * while gives the stream back, and takes it again, with a snapshot, when it is seen.
 */
export function follow(on, status) {
  let state = "";
  let hiding = null;
  const { join, leave } = connect((message) => {
    if (message.event) return on(message.event, message.data);
    if (message.state === "refused" && state === "refused") return; // the token is being asked for
    state = message.state;
    showLink(message);
    status(state, message.detail);
  });

  function resume() {
    clearTimeout(hiding);
    hiding = null;
    state = "";
    join();
  }

  for (const id of ["again", "retry"]) document.getElementById(id).addEventListener("click", resume);
  addEventListener("online", resume);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", ({ persisted }) => persisted && resume());
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => { state = "left"; leave(); }, HIDDEN_MS);
    } else if (state !== "live") {
      resume();
    }
  });
  join();
  return { resume };
}

/**
 * The stream that all tabs share. Until the worker that reads it has started, or for good in a browser
 * without such workers, this tab reads one of its own.
 */
function connect(report) {
  let own = null;
  let joined = null;
  const port = "SharedWorker" in window
    ? new SharedWorker("/static/shared.js", { type: "module" }).port
    : new MessageChannel().port1;

  function closeOwn() {
    own?.close();
    own = null;
  }

  port.onmessage = ({ data: { token: of, message } }) => {
    if (of !== joined) return; // of the stream that was left for one with another token
    closeOwn();
    report(message);
  };
  return {
    leave: () => {
      closeOwn();
      port.postMessage({ act: "leave" });
    },
    join: () => {
      closeOwn();
      joined = token.get();
      own = openStream(joined, report);
      port.postMessage({ act: "join", token: joined });
    },
  };
}
