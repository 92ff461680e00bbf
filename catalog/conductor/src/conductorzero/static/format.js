// How figures, times and states are written: short, with unit and zone; a dash for what is not known.

export const STATES = ["active", "idle", "sleeping", "draining", "unreachable", "unknown"];
const DASH = "–";
const TONES = { active: "ok", idle: "ok", sleeping: "rest", draining: "rest", unreachable: "gone", unknown: "off" };
const OUTCOMES = { uploaded: "ok", reported: "ok", done: "ok", waiting: "wait", unchanged: "same", running: "run", failed: "fail", missed: "miss" };
const whole = new Intl.NumberFormat("en");

export const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export const count = (value) => (known(value) ? whole.format(Math.round(value)) : DASH);

/** A number with its thing: `3 uploads`, `1 upload`. */
export const things = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;

export function digits(value) {
  const size = Math.abs(value);
  if (size >= 100) return whole.format(Math.round(value));
  return size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 || size === 0 ? 1 : 2);
}

export function milliseconds(value) {
  if (!known(value)) return DASH;
  return value >= 1000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`;
}

export function megabytes(value) {
  if (!known(value)) return DASH;
  return value >= 1024 ? `${digits(value / 1024)} GB` : `${digits(value)} MB`;
}

export const percent = (value) => (known(value) ? `${digits(value)} %` : DASH);

export function share(value) {
  if (!known(value)) return DASH;
  const percents = value * 100;
  if (percents === 100 || percents === 0) return `${percents} %`;
  return `${String(Math.floor(percents * 100) / 100)} %`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export const since = (iso, now) => duration((Date.parse(now) - Date.parse(iso)) / 1000);

const named = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** The reader's zone at that time, as it is called: CET in winter, CEST in summer. */
export const zone = (at = new Date()) => named.formatToParts(new Date(at)).find(({ type }) => type === "timeZoneName").value;

/** A time, with its day when that is not today, without its zone. */
export function moment(at, now = new Date()) {
  if (!at) return DASH;
  const date = new Date(at);
  return date.toDateString() === new Date(now).toDateString() ? clock.format(date) : day.format(date);
}

/** The same with its zone. */
export const zoned = (at, now) => (at ? `${moment(at, now)} ${zone(at)}` : DASH);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A state as it is always shown: shape, colour and word. */
export const mark = (tone, words) => element("span", { class: `state ${tone}` }, words);

export function putMark(node, tone, words) {
  const look = `state ${tone}`;
  if (node.className !== look) node.className = look;
  put(node, words);
}

export const outcomeTone = (state) => OUTCOMES[state] ?? "off";

/** How a handler is: its worst trouble, else its state. Only what has no trouble is green. */
export function lookOf({ state, troubles }) {
  if (troubles.length) return { tone: troubles[0].tone, words: troubles[0].words };
  return { tone: TONES[state] ?? "off", words: state === "unreachable" ? "no answer" : state };
}

/** The last runs as a strip; what it says in words is its name. */
export function drawStrip(node, runs) {
  const drawn = runs.join();
  if (node.dataset.runs === drawn) return;
  node.dataset.runs = drawn;
  const counts = new Map();
  for (const state of runs) counts.set(state, (counts.get(state) ?? 0) + 1);
  const words = [...counts].map(([state, number]) => `${number} ${state}`).join(", ");
  node.setAttribute("aria-label", runs.length ? `Last ${things(runs.length, "run")}: ${words}` : "No run known");
  node.replaceChildren(...runs.map((state) => element("i", { class: `${outcomeTone(state)} h6` })));
}

/** How many of the places of an instance, or of all, are taken; nothing of one that does not answer. */
export function takenOf({ load, places }) {
  if (!known(load)) return "";
  return known(places) ? `${count(load)} of ${things(places, "place")} taken` : things(load, "run");
}

export const handlerLink = (id) => element("a", { href: `/handlers/${encodeURIComponent(id)}` }, id);

export const runPath = (handlerId, runId) => `/handlers/${encodeURIComponent(handlerId)}/runs/${encodeURIComponent(runId)}`;

/** A table whose rows are cards on a narrow screen; `heads`: [title, class]. */
export function table(name, heads, rows) {
  const row = (cells) => element("tr", { role: "row" }, ...cells);
  const head = row(heads.map(([title, look]) => element("th", { role: "columnheader", scope: "col", class: look }, title)));
  const body = rows.map((cells) => row(cells.map((parts, at) => (at === 0
    ? element("th", { role: "rowheader", scope: "row" }, ...parts)
    : element("td", { role: "cell", class: heads[at][1], "data-title": heads[at][0] }, element("div", {}, ...parts))))));
  const group = { role: "rowgroup" };
  return element("table", { role: "table", "aria-label": name }, element("thead", group, head), element("tbody", group, ...body));
}

/** Replace what a place shows, where it would show something else. */
export function replace(place, ...parts) {
  const nodes = parts.map((part) => (typeof part === "string" ? document.createTextNode(part) : part));
  const same = nodes.length === place.childNodes.length && nodes.every((node, at) => place.childNodes[at].isEqualNode(node));
  if (!same) place.replaceChildren(...nodes);
}

export const nothing = (text) => element("p", { class: "pad soft" }, text);

export function say(text) {
  const toast = document.getElementById("toast");
  put(toast, text);
  toast.classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("on"), 9000);
}
