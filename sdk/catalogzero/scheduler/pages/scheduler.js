// What the scheduler's pages share: its API, elements, times with their zone, runs in words.

export const at = (id) => document.getElementById(id);
export const EVERY_MS = 2000;
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
const STATES = {
  uploaded: ["ok", "uploaded"], reported: ["ok", "reported"], done: ["ok", "done"], unchanged: ["same", "unchanged"],
  waiting: ["wait", "waits to be sent"], running: ["run", "running"], failed: ["fail", "failed"], missed: ["miss", "missed"],
};
const whole = new Intl.NumberFormat("en");
const many = (value) => whole.format(value);
let token = sessionStorage.getItem("token") ?? "";

/** One request of the API; the page asks for the token where one is needed. */
export async function ask(method, path, body) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  at("token-form").hidden = answer.status !== 401;
  const answered = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(answered.error.message), { status: answer.status });
  return answered;
}

/** Look now, and again once the token was given. */
export function onToken(look) {
  at("token-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    token = at("token").value;
    sessionStorage.setItem("token", token);
    await look();
    at("refused").textContent = at("token-form").hidden ? "" : "That is not its token.";
  });
}

/** Say what went wrong, until it is over: `of` is an act (until the next), or the link to the scheduler. */
export function say(problem, of = "act") {
  const banner = at("problem");
  if (!problem && banner.dataset.of !== of) return;
  banner.dataset.of = of;
  banner.hidden = !problem;
  if (banner.textContent !== problem) banner.textContent = problem;
}

/** Why something went wrong: a request without an answer has no words of its own. */
export const reason = (error) => (error instanceof TypeError ? "The scheduler does not answer." : error.message);

/** An element with children, of which texts stay texts, never markup. */
export function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== "" && child !== null && child !== undefined));
  return made;
}

export const small = (...children) => element("small", {}, ...children);

/** A row of a table; on a phone it is a card, with the titles beside the cells. */
export function row(look, head, ...cells) {
  return element("tr", { role: "row", class: look },
    element("th", { scope: "row", role: "rowheader" }, ...head),
    ...cells.map(([title, kind, ...children]) => element("td", { role: "cell", class: kind, "data-title": title }, element("div", {}, ...children))));
}

// ---- times

/** A moment by the clock of a zone (the reader's own by default), which is named; the day if it is not today. */
export function clock(moment, timeZone, seconds = false) {
  const date = new Date(moment);
  const day = { timeZone, day: "numeric", month: "short", weekday: "short" };
  const isToday = new Intl.DateTimeFormat("en-GB", day).format(date) === new Intl.DateTimeFormat("en-GB", day).format(new Date());
  const year = Math.abs(date - Date.now()) > 300 * 86_400_000 ? { year: "numeric" } : {};
  const time = { hour: "2-digit", minute: "2-digit", ...(seconds && { second: "2-digit" }), timeZoneName: "short", hourCycle: "h23" };
  return new Intl.DateTimeFormat("en-GB", { ...(isToday ? { timeZone } : { ...day, ...year }), ...time }).format(date);
}

/** A length of time in its two largest units: `12 h 28 min`. */
export function length(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const first = UNITS.findIndex(([, size]) => seconds >= size);
  const [unit, size] = UNITS[first];
  const [below, part] = UNITS[first + 1] ?? ["", 0];
  const rest = part ? Math.floor((seconds % size) / part) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${below}` : ""}`;
}

export const took = (ms) => (ms === null ? "–" : length(ms / 1000));

/** How far a moment is from now: `in 4 min 3 s`. */
export function distance(moment) {
  const seconds = Math.round((new Date(moment) - Date.now()) / 1000);
  if (seconds === 0) return "now";
  return seconds > 0 ? `in ${length(seconds)}` : `${length(-seconds)} ago`;
}

/** A moment as its distance, which `tick` keeps true. */
export const near = (moment) => element("time", { class: "near", datetime: moment, title: clock(moment, undefined, true) }, distance(moment));

export function tick() {
  for (const one of document.querySelectorAll("time.near")) one.textContent = distance(one.dateTime);
  at("now").textContent = clock(new Date(), undefined, true);
}

export const zoneName = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

// ---- runs

export const runPath = (id) => `/runs/${encodeURIComponent(id)}`;
export const isByHand = (run) => run.scheduled_at === null && run.parent_id === null;
export const isAlone = (run) => run.job_id.startsWith("immediate_");

/** A state as it is always shown: shape, colour and word. */
export const state = (tone, words) => element("span", { class: `state ${tone}` }, words);

export const stateOf = ({ state: name }, words) => state(STATES[name][0], words ?? STATES[name][1]);

/** What a run came to: its state, with the counts where it has some, and what else there is to say. */
export function outcome(run) {
  const { outcome: came, ticks } = run;
  const flags = [ticks?.count > 1 && `${many(ticks.count)} ticks`, run.late && "late", isByHand(run) && "by hand"].filter(Boolean);
  if (run.waiting) return [state("gone", "waits for its handler"), [...flags, run.error].join(" · ")];
  if (["uploaded", "waiting", "reported", "done", "unchanged"].includes(came.state)) {
    const [word, ...counts] = came.words.split(", ");
    return [stateOf(came, word), [...counts, ...flags].join(", ")];
  }
  const more = came.words.replace(/^(running|queued|retry|missed|skipped|lost)(: |$)/, "");
  const word = ["skipped", "lost", "queued", "retry"].includes(run.status) ? run.status : undefined;
  return [stateOf(came, word), [...flags, more].filter(Boolean).join(" · ")];
}

/** The last runs as a strip: colour and shape by state, height by how long each took. */
export function strip(runs, own) {
  const counts = {};
  for (const { state: name } of runs) counts[name] = (counts[name] ?? 0) + 1;
  const said = Object.entries(counts).map(([name, number]) => `${number} ${STATES[name][1]}`).join(", ");
  const most = Math.max(...runs.map((run) => run.duration_ms ?? 0), 1);
  const marks = runs.map((run) => {
    const height = Math.max(2, Math.ceil(8 * (run.duration_ms ?? 0) / most));
    return element("i", { class: `${STATES[run.state][0]} h${height}${run.execution_id === own ? " this" : ""}` });
  });
  const words = runs.length ? `Last ${runs.length} runs: ${said}` : "No run yet";
  const look = own ? "strip big" : "strip";
  return element("span", { class: look, role: "img", "aria-label": own ? `${words}; this one is framed` : words }, ...marks);
}

/** Replace what a place shows, where it would show something else. */
export function replace(place, ...nodes) {
  const made = element("div", {}, ...nodes);
  if (made.innerHTML !== place.innerHTML) place.replaceChildren(...made.childNodes);
}

export const keyOf = (record) => record.id ?? record.execution_id;

/** Show these, and touch only what changed: what is read, opened or focused stays. */
export function show(list, records, build) {
  const old = new Map([...list.children].map((made) => [made.dataset.key, made]));
  const focused = document.activeElement;
  const made = records.map((record) => {
    const [key, seen] = [keyOf(record), JSON.stringify(record)];
    const kept = old.get(key) ?? build(record);
    if (kept.dataset.seen && kept.dataset.seen !== seen) patch(kept, build(record));
    Object.assign(kept.dataset, { key, seen });
    return kept;
  });
  const same = made.length === list.children.length && made.every((one, n) => one === list.children[n]);
  if (!same) list.replaceChildren(...made);
  if (focused !== document.activeElement) {
    const { place } = focused.dataset;
    const again = focused.isConnected ? focused : [...list.querySelectorAll("button")].find((one) => place && one.dataset.place === place);
    again?.focus({ preventScroll: true });
  }
  at(`no-${list.id}`)?.toggleAttribute("hidden", records.length > 0);
  list.closest("table")?.toggleAttribute("hidden", records.length === 0);
}

/** Make a row that is shown as another: of its parts, those that differ are replaced. */
function patch(shown, made) {
  const parts = [...made.childNodes];
  shown.className = made.className;
  while (shown.childNodes.length > parts.length) shown.lastChild.remove();
  parts.forEach((part, n) => {
    const old = shown.childNodes[n];
    if (!old) shown.append(part);
    else if (!old.isEqualNode(part)) old.replaceWith(part);
  });
}

// ---- any value as something to read

const MOST = 200;
const isObject = (value) => value !== null && typeof value === "object";

/** A value to read: numbers with commas, lists of objects as tables, what is nested folded. */
export function readable(value) {
  if (value === null || value === "") return element("span", { class: "soft" }, "–");
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return many(value);
  if (typeof value === "string") return element("code", {}, value);
  const length = Array.isArray(value) ? value.length : Object.keys(value).length;
  if (length === 0) return element("span", { class: "soft" }, "none");
  if (Array.isArray(value) && length <= 5 && !value.some(isObject)) return element("span", {}, value.join(", "));
  const what = Array.isArray(value) ? (length === 1 ? "item" : "items") : length === 1 ? "field" : "fields";
  return element("details", { class: "bare" }, element("summary", {}, `${many(length)} ${what}`), inside(value));
}

/** What is in a list or an object. */
function inside(value) {
  if (!Array.isArray(value)) return pairs(value);
  const shown = value.slice(0, MOST);
  const more = value.length > MOST ? element("p", { class: "small soft" }, `and ${many(value.length - MOST)} more`) : "";
  const names = [...new Set(shown.flatMap((one) => (isObject(one) ? Object.keys(one) : [])))];
  if (names.length <= 6 && shown.every((one) => isObject(one) && !Object.values(one).some(isObject))) return element("div", {}, grid(names, shown), more);
  if (!shown.every((one) => isObject(one) && !Array.isArray(one))) {
    return element("div", {}, element("ul", { class: "bullets" }, ...shown.map((one) => element("li", {}, readable(one)))), more);
  }
  return element("div", {}, ...shown.map((one) => element("div", { class: "gap" }, pairs(one))), more);
}

/** Flat objects as a table, a column for each of their fields. */
function grid(names, rows) {
  const titles = names.map((name) => name.replaceAll("_", " "));
  const head = titles.map((title) => element("th", { scope: "col", role: "columnheader" }, title));
  const body = rows.map((one) => row("", [readable(one[names[0]] ?? null)], ...names.slice(1).map((name, n) => [titles[n + 1], "", readable(one[name] ?? null)])));
  return element("table", { role: "table", "aria-label": titles.join(", ") },
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)), element("tbody", { role: "rowgroup" }, ...body));
}

/** The fields of an object by name. */
export function pairs(fields, look = "pairs") {
  return element("dl", { class: look }, ...Object.entries(fields).flatMap(([name, value]) => [
    element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, readable(value)),
  ]));
}
