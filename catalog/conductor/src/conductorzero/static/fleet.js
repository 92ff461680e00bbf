// The overview: whether the rows arrive, what needs a person, and a table that draws only the rows in sight.
// Below a handler with instances each of them is a row; `handlers` are processes, `view.units` have such a handler as one.

import { keptOrder } from "/assets/order.js";
import { chart } from "./chart.js";
import { deliveredToday, deliveryCharts } from "./delivery.js";
import { eventItems, routine } from "./events.js";
import {
  STATES, count, digits, drawStrip, element, handlerLink, known, lookOf, mark, megabytes, milliseconds, moment, percent, put, putMark,
  replace, since, table, takenOf, things, zone, zoned,
} from "./format.js";
import { follow, showScheduler } from "./live.js";
import { askToken, signalButtons } from "./signals.js";
import { troubleList } from "./troubles.js";

const EVENTS_SHOWN = 30;
const OVERSCAN = 3;
const RANKS = { fail: 0, gone: 1, wait: 2, warn: 3 };
const NOT_WELL = { draining: 4, unknown: 5 };
const $ = (id) => document.getElementById(id);

// Each column: key, title, the value it sorts by, whether it first sorts downward, its class.
const COLUMNS = [
  ["handler_id", "Handler", (h) => h.handler_id, false, "handler_id"],
  ["state", "State", (h) => rankOf(h) * 10 + STATES.indexOf(h.state), false, "state-word lead"],
  ["last_upload", "Last upload", (h) => h.outbox?.last_upload_at, true, "last_upload"],
  ["runs_total", "Last runs", (h) => h.runs_total, true, "runs_total bare"],
  ["response_time_ms", "Response", (h) => h.response_time_ms, true, "response_time_ms num"],
  ["memory_mb", "Memory", (h) => memoryOf(h), true, "memory_mb num"],
];

const handlers = new Map();
const selected = new Set();
const drawn = new Map();
const view = { about: null, events: [], units: new Map(), ids: [], shown: [], state: null, cause: null, text: "", sort: "state", down: false, points: [] };

const rankOf = ({ state, troubles }) => (troubles.length ? RANKS[troubles[0].tone] : NOT_WELL[state] ?? 6);

function memoryOf(handler) {
  const here = known(handler.memory_mb) && handler.state !== "unreachable";
  return here ? handler.memory_mb + (handler.worker_memory_mb ?? 0) : null;
}

// --- what arrives ----------------------------------------------------------------------------

function take(event, data) {
  if (event === "snapshot") {
    handlers.clear();
    view.events = data.events;
    for (const one of data.handlers) handlers.set(one.key, one);
  } else {
    for (const one of data.handlers) handlers.set(one.key, { runs: handlers.get(one.key)?.runs ?? [], ...one });
    view.events = [...view.events, ...data.events.filter((one) => !routine(one))].slice(-EVENTS_SHOWN);
    if (data.members) keepOnly(new Set(data.members));
  }
  view.about = data;
  view.units = unitsOf(data.groups);
  for (const id of selected) if (!handlers.has(id) && !view.units.has(id)) selected.delete(id);
  arrange();
  drawGlance();
  if (event === "snapshot" || data.events.length) drawEvents();
  charts({ now: event === "snapshot" }).catch(() => {}); // the next change asks again
}

function keepOnly(members) {
  for (const id of handlers.keys()) if (!members.has(id)) handlers.delete(id);
}

/** The handlers by id, of which one with instances is a row of its own and has them as `parts`. */
function unitsOf(groups) {
  const units = new Map();
  for (const one of handlers.values()) if (!one.instance_id) units.set(one.key, one);
  for (const group of groups) {
    const parts = group.members.map((key) => handlers.get(key)).filter(Boolean);
    units.set(group.key, { labels: {}, runs: [], outbox: null, address: "", ...group, parts });
  }
  return units;
}

// --- which rows, in which order --------------------------------------------------------------

/** Whether a handler is of a state; one in trouble is of no other, but for its silence. */
function isOf(one, state) {
  if (state === "trouble") return one.troubles.length > 0;
  return one.state === state && (state === "unreachable" || !one.troubles.length);
}

/** Whether a row is to be shown: of the state and cause, and with all of the words. */
function fits(one, words) {
  if (view.state && !isOf(one, view.state)) return false;
  if (view.cause && !one.troubles.some(({ cause }) => cause === view.cause)) return false;
  const labels = Object.values(one.labels).join(" ");
  const text = `${one.key} ${one.address} ${one.entry ?? ""} ${one.version ?? ""} ${labels}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function arrange() {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const parts = new Map();
  const [, , value] = COLUMNS.find(([key]) => key === view.sort);
  const sign = view.down ? -1 : 1;
  const entries = [];
  for (const one of view.units.values()) {
    parts.set(one.key, (one.parts ?? []).filter((part) => fits(part, words)));
    if (parts.get(one.key).length || fits(one, words)) entries.push([value(one), one]);
  }
  entries.sort(([a, one], [b, other]) => {
    if (known(a) !== known(b)) return known(a) ? -1 : 1;
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return (order || 0) * sign || one.handler_id.localeCompare(other.handler_id, "en", { numeric: true });
  });
  const { sort, down, state, cause, text } = view;
  view.ids = sorted(entries.map(([, one]) => one.key), JSON.stringify([sort, down, state, cause, text]));
  view.shown = view.ids.flatMap((id) => [view.units.get(id), ...parts.get(id)]);
  draw();
}

// --- the glance ------------------------------------------------------------------------------

function drawGlance() {
  const { summary, problems, troubles, at } = view.about;
  put($("headline"), summary.headline);
  $("headline").classList.toggle("bad", troubles.some(({ tone }) => tone !== "warn"));
  document.title = `${summary.in_trouble ? `◆ ${things(troubles.length, "trouble")}` : summary.headline} · Overview · catalogzero`;
  const { waiting } = summary;
  const others = summary.senders - summary.not_delivering;
  replace($("sub"), ...(summary.not_delivering && others ? [`The other ${count(others)} deliver. `] : []),
    ...(waiting.uploads ? [element("b", {}, `${things(waiting.uploads, "upload")} with ${things(waiting.records, "row")}`), ` ${waiting.uploads === 1 ? "waits" : "wait"} on their machines${troubles.some(({ cause }) => cause === "missing_sources") ? "" : "; nothing is lost"}.`] : []));
  const shown = problems.join("\n");
  if ($("problems").textContent !== shown) $("problems").textContent = shown;
  drawAnswers(at);
  drawNext(view.about.next_runs, at);
  drawHosts(view.about.hosts);
  drawTroubles(troubles, at);
  $("troubles").hidden = !troubles.length;
  $("well").hidden = troubles.length > 0 || summary.alive < summary.total || !summary.total;
  for (const [state, chip] of chips) {
    const number = [...view.units.values()].filter((one) => state === null || [one, ...(one.parts ?? [])].some((each) => isOf(each, state))).length;
    put(chip.lastChild, count(number));
    chip.hidden = state !== null && !number && view.state !== state;
  }
  put($("zone"), zone());
  showScheduler(view.about.scheduler_url);
}

function drawAnswers(at) {
  const { summary: { waiting, ...all }, troubles } = view.about;
  const last = all.last_upload_at ? `last upload ${since(all.last_upload_at, at)} ago` : "no upload yet";
  const oldest = all.oldest_at ? `oldest waiting ${since(all.oldest_at, at)}` : "nothing waits";
  const delivering = all.senders - all.not_delivering;
  const arrives = all.senders ? mark(all.not_delivering ? "fail" : "ok", `from ${count(delivering)} of ${count(all.senders)} handlers`) : "no handler sends any";
  const dead = waiting.dead ? [" · ", mark("fail", things(waiting.dead, "dead letter"))] : [];
  answer("arrive", arrives, all.senders ? [`${last} · ${count(deliveredToday(view.points))} rows today · ${oldest}`, ...dead] : []);
  answer("failed", troubles.length ? mark(troubles[0].tone, things(troubles.length, "trouble")) : mark("ok", "nothing"),
    [all.in_trouble ? `${things(all.in_trouble, "handler")} in trouble` : "no handler is in trouble"]);
  answer("runs", all.in_flight ? mark("run", things(all.in_flight, "run")) : "nothing", [`${count(all.queued)} queued · ${count(all.runs_total)} since their start`]);
  const times = [...handlers.values()].map((h) => h.response_time_ms).filter(known).sort((a, b) => a - b);
  answer("answers", mark(all.silent ? "gone" : all.away ? "warn" : all.alive ? "ok" : "off", `${count(all.alive)} of ${count(all.total)}`), [`95 % within ${milliseconds(times[Math.floor(times.length * 0.95)])}`]);
  answer("takes", megabytes(all.memory_mb), [`processor ${digits(all.cpu_percent / 100)} cores`]);
}

/** What a scheduler runs next, and what can be foreseen of it. */
function drawNext(runs, at) {
  $("next").hidden = !runs.length;
  replace($("next-runs"), ...runs.map((run) => {
    const troubles = view.units.get(run.handler_id)?.troubles ?? [];
    const missed = troubles.some(({ cause }) => cause === "no_answer");
    const stopped = troubles.find(({ cause }) => cause === "paused" || cause === "fault");
    const foreseen = missed ? mark("fail", `will be missed: ${run.handler_id} does not answer`) : stopped ? mark("wait", `will wait: ${run.handler_id}, ${stopped.words}`) : "";
    return element("li", {}, element("time", { datetime: run.at }, `${zoned(run.at, at)}, in ${since(at, run.at)}`),
      element("b", {}, run.job_id), handlerLink(run.handler_id), element("span", { class: "end" }, foreseen));
  }));
}

/** What each host of instances has to do. */
function drawHosts(hosts) {
  $("hosts").hidden = !hosts.length;
  const heads = [["Host"], ["Instances", "lead"], ["Runs", "num"], ["Places", "num"]];
  replace($("host-rows"), table("Hosts", heads, hosts.map((one) => [
    [one.host], [mark(one.answering === one.instances ? "ok" : one.answering ? "warn" : "gone", `${count(one.answering)} of ${count(one.instances)} answer`)],
    [count(one.load)], [count(one.places)],
  ])));
}

function answer(key, shown, detail) {
  const [value, more] = answers.get(key);
  replace(value, shown);
  replace(more, ...detail);
}

function drawEvents() {
  const items = eventItems(view.events, view.about.at);
  replace($("events"), ...(items.length ? items : [element("li", { class: "soft" }, "Nothing has changed since the conductor started.")]));
}

// --- the table -------------------------------------------------------------------------------

const above = element("tr", { class: "space", "aria-hidden": "true" }, element("td", { colspan: COLUMNS.length + 1 }));
const below = above.cloneNode(true);

function draw() {
  const body = $("rows");
  const height = parseFloat(getComputedStyle(body).getPropertyValue("--row"));
  const total = view.shown.length;
  const from = Math.max(0, Math.floor(-body.getBoundingClientRect().top / height) - OVERSCAN);
  const first = Math.min(from, Math.max(0, total - 1));
  const last = Math.min(total, first + Math.ceil(innerHeight / height) + 2 * OVERSCAN);
  const wanted = view.shown.slice(first, last);
  const focused = document.activeElement;
  const keep = new Set(wanted.map((one) => one.key));
  for (const [id, row] of drawn) {
    if (!keep.has(id)) {
      row.node.remove();
      drawn.delete(id);
    }
  }
  above.firstChild.style.height = `${first * height}px`;
  below.firstChild.style.height = `${(total - last) * height}px`;
  if (above.parentNode !== body) body.append(above, below);
  let previous = above;
  wanted.forEach((one, index) => {
    const row = drawn.get(one.key) ?? newRow(one.key);
    row.draw(one, first + index + 2);
    if (previous.nextSibling !== row.node) previous.after(row.node);
    previous = row.node;
  });
  if (focused && focused !== document.activeElement && body.contains(focused)) focused.focus({ preventScroll: true });
  $("table").setAttribute("aria-rowcount", total + 1);
  $("table").hidden = !total;
  $("nothing").hidden = total > 0 || !view.about;
  put($("nothing-text"), handlers.size ? "No handler fits this filter." : "Say where they are, in the conductor's section of handler_registry.yaml:");
  $("example").hidden = handlers.size > 0;
  drawSelection();
}

function newRow(id) {
  const cells = COLUMNS.map(([key, title, , , look]) => (key === "handler_id"
    ? element("th", { role: "rowheader", scope: "row", class: look })
    : element("td", { role: "cell", class: look, "data-title": title })));
  const [name, state, upload, runs, response, memory] = cells;
  const box = element("input", { type: "checkbox", "aria-label": `Select ${id}` });
  box.addEventListener("change", () => choose(id, box.checked));
  const about = element("small");
  name.append(handlerLink(id), about);
  const word = mark("off", "");
  const age = element("small");
  state.append(word, age);
  const uploadAt = element("span");
  const waiting = element("small");
  upload.append(element("div", {}, uploadAt, waiting));
  const strip = element("span", { class: "strip", role: "img" });
  runs.append(strip);
  const pick = element("td", { role: "cell", class: "pick" }, element("label", {}, box));
  const node = element("tr", { role: "row" }, pick, ...cells);
  const row = {
    node,
    draw(one, index) {
      const { at } = view.about;
      const { tone, words } = lookOf(one);
      node.setAttribute("aria-rowindex", index);
      const look = [one.instance_id && "instance", one.troubles.length && `${tone} tinted`].filter(Boolean).join(" ");
      if (node.className !== look) node.className = look;
      box.disabled = Boolean(one.instance_id) && selected.has(one.handler_id); // with all of its handler
      box.checked = box.disabled || selected.has(id);
      put(about, aboutOf(one));
      about.title = [one.address, ...Object.entries(one.labels).map(([key, value]) => `${key}: ${value}`)].join("\n");
      putMark(word, tone, words);
      const [worst] = one.troubles;
      put(age, worst && worst.cause === "other_peer" ? worst.why : since(worst?.since ?? one.since, at));
      age.title = worst?.why ?? "";
      const dead = one.state === "unreachable";
      put(uploadAt, one.outbox ? moment(one.outbox.last_upload_at, at) : "–");
      put(waiting, !one.outbox ? "sends no rows" : dead ? "unknown what waits" : `${count(one.outbox.uploads)} waiting${one.outbox.records ? `, ${things(one.outbox.records, "row")}` : ""}`);
      strip.hidden = Boolean(one.parts);
      drawStrip(strip, one.runs);
      strip.title = one.last_error ?? "";
      put(response, milliseconds(dead ? null : one.response_time_ms));
      put(memory, megabytes(memoryOf(one)));
    },
  };
  drawn.set(id, row);
  return row;
}

/** What stands below a name: of instances where they are, and how many of their places are taken. */
function aboutOf(one) {
  if (one.parts) return `${things(one.instances, "instance")} on ${things(one.hosts.length, "host")} · ${takenOf(one)}`;
  if (one.instance_id) return [one.host, takenOf(one)].filter(Boolean).join(" · ");
  return [...Object.values(one.labels), one.entry ? `${one.entry} ${one.version}` : one.address.replace("tcp://", "")].join(" · ");
}

// --- selection and signals -------------------------------------------------------------------

function choose(id, on) {
  if (on) selected.add(id);
  else selected.delete(id);
  draw();
}

function drawSelection() {
  const some = selected.size;
  const all = view.ids.length > 0 && view.ids.every((id) => selected.has(id));
  everybody.checked = all;
  everybody.indeterminate = some > 0 && !all;
  const filtered = view.ids.length !== view.units.size;
  const parts = [filtered ? `${count(view.ids.length)} of ${count(view.units.size)} shown` : ""];
  if (some) parts.push(`${count(some)} selected`);
  put($("shown"), parts.filter(Boolean).join(", "));
  $("signals").hidden = !some;
}

// --- the controls ----------------------------------------------------------------------------

const everybody = element("input", { type: "checkbox", "aria-label": "Select all handlers shown" });
const chips = new Map();
const answers = new Map();
const buttons = new Map();

function sortBy(key, down) {
  view.sort = key;
  view.down = down;
  for (const [name, button] of buttons) {
    const sort = name !== key ? "none" : down ? "descending" : "ascending";
    button.parentNode.setAttribute("aria-sort", sort);
  }
  $("sort-by").value = key;
  remember();
  arrange();
}

function filterBy(state, cause = null) {
  view.state = state;
  view.cause = cause;
  for (const [name, chip] of chips) chip.setAttribute("aria-pressed", String(name === state && !cause));
  remember();
  arrange();
  if (view.about) drawGlance();
}

function remember() {
  const query = new URLSearchParams(location.search);
  const keep = { sort: view.sort !== "state" || view.down ? (view.down ? "-" : "") + view.sort : "", state: view.state, cause: view.cause, q: view.text };
  for (const [name, value] of Object.entries(keep)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  history.replaceState(null, "", (query.size ? `?${query}` : location.pathname) + location.hash);
}

function build() {
  $("heads").append(element("th", { role: "columnheader", scope: "col", class: "pick" }, element("label", {}, everybody)));
  for (const [key, title, , down, look] of COLUMNS) {
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => sortBy(key, view.sort === key ? !view.down : down));
    buttons.set(key, button);
    $("heads").append(element("th", { role: "columnheader", scope: "col", class: look }, button));
    $("sort-by").append(element("option", { value: key }, title));
  }
  for (const state of [null, "trouble", ...STATES]) {
    const { tone, words } = state === "trouble" ? { tone: "fail", words: "in trouble" } : lookOf({ state, troubles: [] });
    const chip = element("button", { type: "button", class: state ? `chip ${tone}` : "chip", "aria-pressed": String(state === null) }, element("span", {}, state ? words : "all"), element("b", {}, "0"));
    chip.addEventListener("click", () => filterBy(view.state === state ? null : state));
    chips.set(state, chip);
  }
  $("chips").append(...chips.values());
  const questions = [["arrive", "Do the rows arrive?", "#delivery"], ["failed", "What failed?", "#needs"], ["runs", "What runs now?", "#handlers"], ["answers", "Who answers?", "#handlers"], ["takes", "What does it take?", "#resources"]];
  for (const [key, question, place] of questions) {
    const parts = [element("span", { class: "a" }, element("span", { class: "bone" })), element("span", { class: "d" }, "asking")];
    answers.set(key, parts);
    $("answers").append(element("a", { href: place }, element("span", { class: "q" }, question), ...parts));
  }
  everybody.addEventListener("change", () => {
    for (const id of view.ids) everybody.checked ? selected.add(id) : selected.delete(id);
    draw();
  });
  $("sort-by").addEventListener("change", (event) => {
    sortBy(event.target.value, COLUMNS.find(([key]) => key === event.target.value)[3]);
  });
  $("filter").addEventListener("input", (event) => {
    view.text = event.target.value;
    remember();
    arrange();
  });
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (view.about) draw();
    });
  };
  addEventListener("scroll", soon, { passive: true });
  $("rows").addEventListener("focusin", draw); // keys may come faster than frames: the next row must be there
  addEventListener("resize", soon);
  signalButtons($("signals"), () => [...selected]);
}

function recall() {
  const query = new URLSearchParams(location.search);
  const sort = query.get("sort") ?? "state";
  const key = sort.replace(/^-/, "");
  $("filter").value = view.text = query.get("q") ?? "";
  if (chips.has(query.get("state")) || query.get("cause")) filterBy(query.get("state"), query.get("cause"));
  if (COLUMNS.some(([name]) => name === key)) sortBy(key, sort.startsWith("-"));
}

function connected(state, detail) {
  if (state === "refused") askToken(detail).then((given) => given && link.resume());
}

const when = (at) => `${moment(at * 1000)} ${zone(at * 1000)}`;
const resources = [
  chart({ title: "Memory of all", format: megabytes, when, top: 10, series: [{ key: "memory_mb", name: "memory", tone: "run" }] }),
  chart({ title: "Processor of all", format: percent, when, top: 10, series: [{ key: "cpu_percent", name: "of one core", tone: "run" }] }),
];
$("charts").append(...resources.map(({ node }) => node));
const charts = deliveryCharts({ path: "/api/history", place: $("delivered"), buttons: $("spans"), onPoints: (points) => {
  view.points = points;
  for (const one of resources) one.draw(points);
  if (view.about) drawAnswers(view.about.at);
} });
const drawTroubles = troubleList($("troubles"));
const sorted = keptOrder($("table").parentNode, arrange);
build();
recall();
const link = follow(take, connected);
