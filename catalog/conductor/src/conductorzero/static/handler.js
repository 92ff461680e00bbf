// One handler's page: its figures now and over time, its runs, methods and settings.

import { chart } from "./chart.js";
import {
  count, dateTime, duration, element, known, megabytes, milliseconds, moment, percent, put, share, since, time,
} from "./format.js";
import { Refused, follow, read, showLink } from "./live.js";
import { askToken, signalButtons } from "./signals.js";

const $ = (id) => document.getElementById(id);
const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/api/handlers/${encodeURIComponent(id)}`;
const WINDOWS = [["1 h", 3600], ["24 h", 86400], ["7 d", 604800], ["30 d", 2592000]];
const DETAIL_EVERY_MS = 4000;
const CHARTS_EVERY_MS = 20_000;
const view = { window_s: 3600, detailAt: 0, chartsAt: 0, busy: false };
const tiles = new Map();

const when = (at) => {
  const date = new Date(at * 1000);
  return view.window_s <= 86400 ? time(date).slice(0, 5) : dateTime(date);
};

const charts = [
  chart({ title: "Response time", format: milliseconds, when, top: 1, series: [{ key: "p50_ms", name: "median", kind: "response" }, { key: "p95_ms", name: "95 %", kind: "slow" }] }),
  chart({ title: "Availability", format: share, when, top: 1, fixed: true, series: [{ key: "availability", name: "answered", kind: "up" }] }),
  chart({ title: "Memory", format: megabytes, when, top: 10, series: [{ key: "memory_mb", name: "memory", kind: "memory" }] }),
  chart({ title: "Processor", format: percent, when, top: 1, series: [{ key: "cpu_percent", name: "processor", kind: "cpu" }] }),
];

// --- what is asked for -----------------------------------------------------------------------

async function refresh({ now = false } = {}) {
  if (view.busy || document.hidden) return;
  view.busy = true;
  try {
    if (now || Date.now() - view.detailAt > DETAIL_EVERY_MS) {
      view.detailAt = Date.now();
      drawDetail(await read(path));
    }
    if (now || Date.now() - view.chartsAt > CHARTS_EVERY_MS) {
      view.chartsAt = Date.now();
      const [figures, changes] = await Promise.all([
        read(`${path}/history?window_s=${view.window_s}`),
        read(`/api/events?limit=50&handler_id=${encodeURIComponent(id)}`),
      ]);
      drawCharts(figures);
      drawChanges(changes.events);
    }
  } catch (error) {
    if (error instanceof Refused && error.status === 404) {
      document.body.classList.add("gone");
      document.title = `${id}: unknown · ConductorZero`;
      put($("trouble"), "No list of handlers that the conductor reads names this one now.");
    }
  } finally {
    view.busy = false;
  }
}

// --- what is shown ---------------------------------------------------------------------------

function drawRow(one, at) {
  $("state").className = one.state;
  put($("state").firstChild, `${one.state} for ${since(one.since, at)}`);
  document.title = `${id}: ${one.state} · ConductorZero`;
  const source = one.entry ? `${one.entry} ${one.version}` : one.version;
  put($("where"), [one.address, source, one.sdk_version && `catalogzero ${one.sdk_version}`].filter(Boolean).join(" · "));
  const dead = one.state === "unreachable";
  const now = (text) => (dead ? null : text);
  const figures = {
    Response: dead ? "no reply" : milliseconds(one.response_time_ms),
    "Last seen": dead && one.last_seen_at ? moment(one.last_seen_at, at) : null,
    Memory: now(megabytes(one.memory_mb)),
    Worker: one.worker_memory_mb ? now(megabytes(one.worker_memory_mb)) : null,
    CPU: now(percent(one.cpu_percent)),
    "Running now": now(count(one.in_flight)),
    Queued: one.queued ? now(count(one.queued)) : null,
    Runs: count(one.runs_total),
    "Failed runs": count(one.failures_total),
    "Woken up": known(one.wakes_total) ? `${count(one.wakes_total)} times` : "–",
    "Outbox": one.outbox ? `${count(one.outbox.uploads)} uploads` : null,
    "Dead letters": one.outbox?.dead ? count(one.outbox.dead) : null,
    Up: now(duration(one.uptime_seconds)),
  };
  for (const [name, text] of Object.entries(figures)) {
    if (!tiles.has(name)) {
      const value = element("dd");
      tiles.set(name, value);
      $("tiles").append(element("div", {}, element("dt", {}, name), value));
    }
    tiles.get(name).parentNode.hidden = text === null;
    put(tiles.get(name), text ?? "");
  }
  document.body.classList.remove("gone");
  put($("trouble"), [one.trouble, one.last_error && `last error: ${one.last_error}`].filter(Boolean).join(" · "));
}

function drawDetail(data) {
  drawRow(data.handler, data.at);
  const told = data.description;
  if (told) {
    put($("doc"), (told.doc ?? "").split("\n\n")[0].replace(/\s+/g, " "));
    drawMethods(told.methods ?? []);
    drawSettings(told);
  } else if (!$("methods").firstChild) {
    for (const sheet of ["methods", "settings"]) nothing($(sheet), "It does not answer, so it cannot say.");
  }
  drawRuns(data.runs?.runs ?? (Array.isArray(data.runs) ? data.runs : null));
}

function drawRuns(runs) {
  if (!runs?.length) {
    if (runs || !$("runs").firstChild) nothing($("runs"), runs ? "No run since it was started." : "It does not answer, so it cannot say.");
    return;
  }
  sheet($("runs"), ["Run", "Method", "Status", "Began", "Took"], runs.map((run) => {
    const took = run.started_at ? secondsOf(run) : null;
    const status = element("span", { class: run.status }, run.status);
    const cell = [status];
    if (run.error) cell.push(element("span", { class: "why" }, run.error));
    if (run.progress && !run.ended_at) cell.push(" ", element("code", {}, JSON.stringify(run.progress)));
    return [[element("code", {}, run.run_id)], [run.method], cell, [time(run.started_at)], [took === null ? "–" : took < 10 ? milliseconds(took * 1000) : duration(took)]];
  }));
}

/** How long a run took so far; the handler's clock may be ahead of this one. */
const secondsOf = (run) => Math.max(0, (Date.parse(run.ended_at ?? new Date()) - Date.parse(run.started_at)) / 1000);

function drawMethods(methods) {
  if (!methods.length) return nothing($("methods"), "It names no job methods.");
  sheet($("methods"), ["Method", "What it does"], methods.map((method) => {
    const flags = ["quiet", "retry_safe", "isolate"].filter((flag) => method[flag]);
    if (method.timeout_s) flags.push(`at most ${method.timeout_s} s`);
    const doc = (method.doc ?? "").split("\n\n")[0].replace(/\s+/g, " ");
    return [
      [element("code", {}, `${method.name}(${signature(method.params_schema)})`)],
      [doc, doc && flags.length ? element("br") : "", ...flags.map((flag) => element("span", { class: "flag" }, flag.replace("_", " ")))],
    ];
  }));
}

function signature(schema) {
  const required = new Set(schema?.required ?? []);
  return Object.keys(schema?.properties ?? {}).map((name) => (required.has(name) ? name : `${name}?`)).join(", ");
}

function drawSettings({ settings = {}, runtime = {}, settings_schema: schema }) {
  const rows = Object.entries({ ...runtime, ...settings }).map(([name, value]) => [
    [element("code", {}, name)],
    [element("code", {}, typeof value === "string" ? value : JSON.stringify(value))],
    [schema?.properties?.[name]?.description ?? ""],
  ]);
  if (rows.length) sheet($("settings"), ["Setting", "Value", "Meaning"], rows);
  else nothing($("settings"), "It has no settings of its own.");
}

function drawChanges(events) {
  if (!events.length) return nothing($("changes"), "Nothing has changed yet.");
  sheet($("changes"), ["When", "What"], events.map((event) => [
    [element("time", { datetime: event.at }, dateTime(event.at))],
    [element("span", { class: `what ${event.kind} ${event.state}` }, event.text)],
  ]));
}

function drawCharts({ total, points }) {
  for (const one of charts) one.draw(points);
  put($("window-total"), `answered ${share(total.availability)}, median ${milliseconds(total.p50_ms)}, 95 % within ${milliseconds(total.p95_ms)}`);
}

function sheet(place, heads, rows) {
  // Roles by name: a narrow screen lays the cells out as blocks, which takes a table's own away.
  const row = (cells) => element("tr", { role: "row" }, ...cells);
  const head = row(heads.map((name) => element("th", { role: "columnheader", scope: "col" }, name)));
  const body = rows.map((cells) => row(cells.map((parts, at) => element("td", { role: "cell", "data-title": heads[at] }, ...parts))));
  const group = { role: "rowgroup" };
  const table = element("table", { role: "table" }, element("thead", group, head), element("tbody", group, ...body));
  if (place.firstChild?.outerHTML !== table.outerHTML) place.replaceChildren(table);
}

function nothing(place, text) {
  place.replaceChildren(element("p", { class: "none" }, text));
}

function say(text) {
  put($("toast"), text);
  $("toast").classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => $("toast").classList.remove("on"), 9000);
  refresh({ now: true });
}

// --- the connection --------------------------------------------------------------------------

function take(event, data) {
  const mine = data.handlers.find((one) => one.handler_id === id);
  if (mine) drawRow(mine, data.at);
  refresh({ now: event === "snapshot" });
}

function connected(state, detail) {
  showLink(state);
  if (state === "refused") askToken(detail).then((given) => given && link.resume());
}

put($("name"), id);
$("charts").append(...charts.map((one) => one.node));
for (const [name, seconds] of WINDOWS) {
  const button = element("button", { type: "button", "aria-pressed": String(seconds === view.window_s) }, name);
  button.addEventListener("click", () => {
    view.window_s = seconds;
    for (const other of $("windows").children) other.setAttribute("aria-pressed", String(other === button));
    refresh({ now: true });
  });
  $("windows").append(button);
}
signalButtons($("signals"), () => [id], say);
const link = follow(take, connected);
