// One handler's page: whether it delivers, its runs, what it takes, methods and settings. An instance has
// such a page; its handler's lists its instances.

import { chart } from "./chart.js";
import { deliveryCharts } from "./delivery.js";
import { eventItems } from "./events.js";
import {
  count, duration, element, handlerLink, known, lookOf, mark, megabytes, milliseconds, moment, nothing, outcomeTone, percent, put, putMark,
  replace, runPath, share, since, table, takenOf, things, zone, zoned,
} from "./format.js";
import { Refused, follow, read, showScheduler } from "./live.js";
import { askToken, signalButtons } from "./signals.js";
import { troubleList } from "./troubles.js";

const $ = (id) => document.getElementById(id);
const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/api/handlers/${encodeURIComponent(id)}`;
const WINDOWS = [["1 h", 3600], ["24 h", 86400], ["7 d", 604800], ["30 d", 2592000]];
const DETAIL_EVERY_MS = 4000;
const CHARTS_EVERY_MS = 20_000;
const RUNS_SHOWN = 10;
const view = { window_s: 3600, detailAt: 0, chartsAt: 0, busy: false, doc: "", runs: null, runState: null, allRuns: false, group: false, members: new Map() };

const when = (at) => `${moment(at * 1000)} ${zone(at * 1000)}`;

const charts = [
  chart({ title: "Response", format: milliseconds, when, top: 1, series: [{ key: "p50_ms", name: "median", tone: "run" }, { key: "p95_ms", name: "95 %", tone: "rest" }] }),
  chart({ title: "Availability", format: share, when, top: 1, fixed: true, series: [{ key: "availability", name: "answered", tone: "ok" }] }),
  chart({ title: "Memory, with its worker", format: megabytes, when, top: 10, series: [{ key: "memory_mb", name: "memory", tone: "run" }] }),
  chart({ title: "Processor", format: percent, when, top: 1, series: [{ key: "cpu_percent", name: "processor", tone: "run" }] }),
];

// --- what is asked for -----------------------------------------------------------------------

const changes = async () => (await read(`/api/events?limit=50&handler_id=${encodeURIComponent(id)}`)).events;

async function refresh({ now = false } = {}) {
  if (view.busy || document.hidden) return;
  view.busy = true;
  try {
    if (now || Date.now() - view.detailAt > DETAIL_EVERY_MS) {
      view.detailAt = Date.now();
      drawDetail(await read(path));
      if (view.group) drawChanges(await changes());
    }
    if (view.group) return;
    if (now || Date.now() - view.chartsAt > CHARTS_EVERY_MS) {
      view.chartsAt = Date.now();
      const [figures, events] = await Promise.all([read(`${path}/history?window_s=${view.window_s}`), changes()]);
      drawCharts(figures);
      drawChanges(events);
    }
    await delivery({ now });
  } catch (error) {
    if (error instanceof Refused && error.status === 404) {
      document.body.classList.add("unlisted");
      document.title = `${id}: unknown · catalogzero`;
      putMark($("state"), "off", "unknown");
      put($("gone"), "No list of handlers that the conductor reads names this one now.");
    }
  } finally {
    view.busy = false;
  }
}

// --- what is shown ---------------------------------------------------------------------------

function drawRow(one, at) {
  const { tone, words } = lookOf(one);
  const silent = one.state === "unreachable";
  const delivers = one.outbox && one.troubles.some(({ cause }) => cause === "paused" || cause === "fault");
  document.body.classList.remove("unlisted", "group");
  put($("gone"), "");
  putMark($("state"), tone, delivers ? `${words}, delivers nothing` : words);
  document.title = `${one.troubles.length ? "◆ " : ""}${id}: ${words} · catalogzero`;
  const source = one.entry ? `${one.entry} ${one.version}` : one.version;
  const answers = silent ? `last seen ${zoned(one.last_seen_at, at)}` : `answers in ${milliseconds(one.response_time_ms)}`;
  put($("sub"), view.doc + [...Object.values(one.labels), source, `${one.state} for ${since(one.since, at)}`, answers].filter(Boolean).join(" · "));
  $("needs").hidden = !one.troubles.length;
  drawTroubles(one.troubles.map((each) => ({ ...each, handlers: 1, handler_ids: [id], uploads: one.outbox?.uploads ?? 0, rows: one.outbox?.records ?? 0 })), at);
  $("delivery").hidden = !one.outbox;
  if (one.outbox) facts($("facts"), deliveryFacts(one, at));
  facts($("figures"), figuresOf(one));
  $("handler").hidden = !one.instance_id;
  replace($("handler"), handlerLink(one.handler_id));
  put($("crumb"), one.instance_id ?? id);
  pairs($("identity"), { Address: one.address, Instance: one.instance_id, Host: one.instance_id && one.host, Places: takenOf(one.instance_id ? one : {}), "Listed by": one.source, Entry: source, catalogzero: one.sdk_version, ...one.labels });
}

/** A handler with instances: how it is as a whole, and each of them; `rows` are those that changed. */
function drawGroup(group, rows, at) {
  const { tone, words } = lookOf(group);
  for (const one of rows) view.members.set(one.key, one);
  const instances = group.members.map((key) => view.members.get(key)).filter(Boolean);
  document.body.classList.remove("unlisted");
  document.body.classList.add("group");
  put($("gone"), "");
  putMark($("state"), tone, words);
  document.title = `${group.troubles.length ? "◆ " : ""}${id}: ${words} · catalogzero`;
  put($("sub"), `${count(group.answering)} of ${things(group.instances, "instance")} answer, on ${things(group.hosts.length, "host")} · ${takenOf(group)} · ${group.state} for ${since(group.since, at)}`);
  $("needs").hidden = !group.troubles.length;
  drawTroubles(group.troubles.map((each) => ({ ...each, run_id: null, handlers: 1, handler_ids: [id], uploads: 0, rows: 0 })), at);
  const heads = [["Instance"], ["State", "lead"], ["Host"], ["Places"], ["Response", "num"], ["Memory", "num"]];
  replace($("instances"), table("Instances", heads, instances.map((one) => {
    const look = lookOf(one);
    const now = (text) => (one.state === "unreachable" ? "–" : text);
    return [[handlerLink(one.key)], [mark(look.tone, look.words), element("small", {}, `for ${since(one.since, at)}`)], [one.host],
      [now(takenOf(one))], [now(milliseconds(one.response_time_ms))], [now(megabytes(one.memory_mb))]];
  })));
}

function deliveryFacts({ outbox, state }, at) {
  const old = state === "unreachable" ? "when it last answered" : "";
  return {
    "Last upload": [moment(outbox.last_upload_at, at), outbox.last_upload_at ? `${zone(outbox.last_upload_at)}, ${since(outbox.last_upload_at, at)} ago` : "none yet"],
    "Waiting here": [outbox.uploads ? mark("wait", things(outbox.uploads, "upload")) : mark("ok", "none"), old || `${things(outbox.records ?? 0, "row")} · ${megabytes((outbox.bytes ?? 0) / 1048576)}`],
    "Oldest waiting": [outbox.uploads ? mark("wait", outbox.oldest_at ? since(outbox.oldest_at, at) : duration(outbox.oldest_age_s)) : "–", outbox.oldest_at && outbox.uploads ? `since ${zoned(outbox.oldest_at, at)}` : ""],
    "Next try": [outbox.next_try_at && Date.parse(outbox.next_try_at) > Date.parse(at) ? `in ${since(at, outbox.next_try_at)}` : "–", outbox.next_try_at ? `${zoned(outbox.next_try_at, at)}` : ""],
    "Dead letters": [outbox.dead ? mark("fail", count(outbox.dead)) : mark("ok", "none"), "refused for good"],
    Delivered: [known(outbox.uploaded_records_total) ? things(outbox.uploaded_records_total, "row") : "–", known(outbox.uploaded_total) ? `in ${things(outbox.uploaded_total, "upload")}` : ""],
    "Disk left": [megabytes(known(outbox.disk_free_bytes) ? outbox.disk_free_bytes / 1048576 : null), "where its outbox lies"],
  };
}

function figuresOf(one) {
  const now = (text) => (one.state === "unreachable" ? "–" : text);
  return {
    Memory: [now(megabytes(one.memory_mb)), one.worker_memory_mb ? now(`and its worker ${megabytes(one.worker_memory_mb)}`) : ""],
    Processor: [now(percent(one.cpu_percent)), "of one core"],
    "Running now": [now(count(one.in_flight)), one.queued ? now(`${count(one.queued)} queued`) : ""],
    Runs: [count(one.runs_total), `${count(one.failures_total)} failed`],
    Up: [now(duration(one.uptime_seconds)), known(one.wakes_total) ? `woken up ${things(one.wakes_total, "time")}` : ""],
  };
}

/** Facts with their figures and what is beside them. */
function facts(place, all) {
  replace(place, ...Object.entries(all).map(([name, [value, more]]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, ...(more ? [element("small", {}, more)] : [])))));
}

function pairs(place, all) {
  replace(place, ...Object.entries(all).filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function drawDetail(data) {
  view.group = Boolean(data.instances);
  if (view.group) {
    showScheduler(data.scheduler_url);
    drawGroup(data.handler, data.instances, data.at);
    return;
  }
  const described = data.description;
  const [doc] = (described?.doc ?? "").split("\n\n");
  if (doc) view.doc = `${doc.replace(/\s+/g, " ").replace(/\.?$/, ".")} `;
  drawRow(data.handler, data.at);
  showScheduler(data.scheduler_url);
  if (described) {
    drawMethods(described.methods ?? []);
    drawSettings(described);
  } else if (!$("methods").firstChild) {
    for (const part of ["methods", "settings"]) replace($(part), nothing("It does not answer, so it cannot say."));
  }
  view.runs = data.runs?.runs ?? (Array.isArray(data.runs) ? data.runs : view.runs);
  drawRuns();
}

const outcomeOf = (run) => run.outcome ?? { state: run.status, words: run.error ?? run.status, rows: null };

function drawRuns() {
  const { runs } = view;
  if (!runs?.length) return replace($("runs"), nothing(runs ? "No run since it was started." : "It does not answer, so it cannot say."));
  const counts = new Map();
  for (const run of runs) counts.set(outcomeOf(run).state, (counts.get(outcomeOf(run).state) ?? 0) + 1);
  replace($("run-chips"), ...[[null, runs.length], ...counts].map(([state, number]) => element("button",
    { type: "button", class: state ? `chip ${outcomeTone(state)}` : "chip", "data-state": state ?? "", "aria-pressed": String(view.runState === state) }, `${state ?? "all"} `, element("b", {}, count(number)))));
  const shown = runs.filter((run) => !view.runState || outcomeOf(run).state === view.runState);
  const heads = [[`Began (${zone()})`], ["Outcome", "lead"], ["Rows", "num"], ["Took", "num"], ["Method"]];
  const more = view.allRuns ? 0 : shown.length - RUNS_SHOWN;
  const all = element("div", { class: "pager" }, element("p", {}, `the last ${RUNS_SHOWN} of ${shown.length}`), element("button", { type: "button" }, `Show ${more} more`));
  replace($("runs"), table("Runs", heads, shown.slice(0, more > 0 ? RUNS_SHOWN : undefined).map((run) => {
    const { state, words, rows } = outcomeOf(run);
    const took = run.started_at ? Math.max(0, (Date.parse(run.ended_at ?? new Date()) - Date.parse(run.started_at)) / 1000) : null;
    const shownTook = took === null ? "–" : took < 10 ? milliseconds(took * 1000) : duration(took);
    const progress = run.progress && !run.ended_at ? JSON.stringify(run.progress) : "";
    return [[element("a", { href: runPath(id, run.run_id) }, moment(run.started_at ?? run.received_at))],
      [mark(outcomeTone(state), state), element("small", {}, words === state ? "" : words, progress)], [count(rows)], [shownTook], [run.method]];
  })), ...(more > 0 ? [all] : []));
}

function drawMethods(methods) {
  if (!methods.length) return replace($("methods"), nothing("It names no job methods."));
  replace($("methods"), table("Methods", [["Method"], ["What it does"]], methods.map((method) => {
    const flags = ["quiet", "retry_safe", "isolate"].filter((flag) => method[flag]).map((flag) => flag.replace("_", " "));
    if (method.timeout_s) flags.push(`at most ${method.timeout_s} s`);
    const doc = (method.doc ?? "").split("\n\n")[0].replace(/\s+/g, " ");
    return [[element("code", {}, `${method.name}(${signature(method.params_schema)})`)], [doc, ...flags.map((flag) => element("small", {}, flag))]];
  })));
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
  replace($("settings"), rows.length ? table("Settings", [["Setting"], ["Value"], ["Meaning"]], rows) : nothing("It has no settings of its own."));
}

function drawChanges(events) {
  const items = eventItems(events.toReversed(), new Date(), { names: view.group });
  replace($("changes"), ...(items.length ? items : [element("li", { class: "soft" }, "Nothing has changed yet.")]));
}

function drawCharts({ total, points }) {
  for (const one of charts) one.draw(points);
  put($("window-total"), `answered ${share(total.availability)}, median ${milliseconds(total.p50_ms)}, 95 % within ${milliseconds(total.p95_ms)}`);
}

// --- the connection --------------------------------------------------------------------------

function take(event, data) {
  const group = data.groups.find((one) => one.key === id);
  if (group) drawGroup(group, data.handlers, data.at);
  const mine = data.handlers.find((one) => one.key === id);
  if (mine) drawRow(mine, data.at);
  refresh({ now: event === "snapshot" });
}

function connected(state, detail) {
  if (state === "refused") askToken(detail).then((given) => given && link.resume());
}

put($("name"), id);
put($("crumb"), id);
$("charts").append(...charts.map((one) => one.node));
for (const [name, seconds] of WINDOWS) {
  const button = element("button", { type: "button", class: "chip", "aria-pressed": String(seconds === view.window_s) }, name);
  button.addEventListener("click", () => {
    view.window_s = seconds;
    for (const other of $("windows").children) other.setAttribute("aria-pressed", String(other === button));
    refresh({ now: true });
  });
  $("windows").append(button);
}
$("run-chips").addEventListener("click", ({ target }) => {
  const chip = target.closest("button");
  if (!chip) return;
  view.runState = chip.dataset.state || null;
  drawRuns();
  $("run-chips").querySelector(`[data-state="${view.runState ?? ""}"]`).focus();
});
$("runs").addEventListener("click", ({ target }) => {
  if (!target.matches(".pager button")) return;
  view.allRuns = true;
  drawRuns();
  $("runs").querySelectorAll("a")[RUNS_SHOWN].focus();
});
signalButtons($("signals"), () => [id], () => refresh({ now: true }));
const delivery = deliveryCharts({ path: `${path}/history`, place: $("delivered"), buttons: $("spans") });
const drawTroubles = troubleList($("troubles"), { names: false });
const link = follow(take, connected);
