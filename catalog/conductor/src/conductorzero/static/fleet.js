// The fleet's page: headline, states, and a table that draws only the rows in sight.

import { sparkline } from "./chart.js";
import {
  STATES, count, element, known, megabytes, milliseconds, moment, percent, put, shortDuration, since,
} from "./format.js";
import { follow, showLink } from "./live.js";
import { askToken, signalButtons } from "./signals.js";

const TRAIL = 60;
const EVENTS_SHOWN = 30;
const OVERSCAN = 3;
const NOT_WELL = { unreachable: 0, draining: 1, unknown: 2 };
const $ = (id) => document.getElementById(id);

// Each column: key, title, the value it sorts by, whether it first sorts downward.
const COLUMNS = [
  ["handler_id", "Handler", (h) => h.handler_id, false],
  ["state", "State", (h) => (NOT_WELL[h.state] ?? 3) * 10 + STATES.indexOf(h.state), false],
  ["response_time_ms", "Response", (h) => h.response_time_ms, true],
  ["memory_mb", "Memory", (h) => memoryOf(h), true],
  ["cpu_percent", "CPU", (h) => h.cpu_percent, true],
  ["in_flight", "Running", (h) => (known(h.in_flight) ? h.in_flight + (h.queued ?? 0) : null), true],
  ["runs_total", "Runs", (h) => h.runs_total, true],
  ["failures_total", "Failed", (h) => h.failures_total, true],
  ["uptime_seconds", "Up", (h) => h.uptime_seconds, true],
  ["version", "Version", (h) => h.version, false],
];

const handlers = new Map();
const selected = new Set();
const drawn = new Map();
const view = { about: null, events: [], shown: [], state: null, text: "", sort: "state", down: false };

function memoryOf(handler) {
  const here = known(handler.memory_mb) && handler.state !== "unreachable";
  return here ? handler.memory_mb + (handler.worker_memory_mb ?? 0) : null;
}

// --- what arrives ----------------------------------------------------------------------------

function take(event, data) {
  if (event === "snapshot") {
    handlers.clear();
    view.events = data.events;
    for (const one of data.handlers) handlers.set(one.handler_id, one);
  } else {
    for (const one of data.handlers) merge(one);
    view.events = newest([...view.events, ...data.events]);
    if (data.members) keepOnly(new Set(data.members));
  }
  view.about = data;
  arrange();
  drawGlance();
  if (event === "snapshot" || data.events.length) drawEvents();
}

/** Whether an event is the coming and going of work, and no news of the fleet. */
const routine = ({ kind, text }) => kind === "state" && !/unreachable|draining|unknown/.test(text);

/** The last events: many routine ones push out no news. */
function newest(events) {
  const news = events.filter((event) => !routine(event)).slice(-EVENTS_SHOWN);
  const others = events.filter(routine).slice(-EVENTS_SHOWN);
  return [...news, ...others].sort((a, b) => a.seq - b.seq);
}

function merge(one) {
  const old = handlers.get(one.handler_id);
  one.latency_trail = [...(old?.latency_trail ?? []), one.response_time_ms].slice(-TRAIL);
  one.memory_trail = [...(old?.memory_trail ?? []), memoryOf(one)].slice(-TRAIL);
  handlers.set(one.handler_id, one);
}

function keepOnly(members) {
  for (const id of handlers.keys()) {
    if (!members.has(id)) {
      handlers.delete(id);
      selected.delete(id);
    }
  }
}

// --- which rows, in which order --------------------------------------------------------------

function arrange() {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const [, , value] = COLUMNS.find(([key]) => key === view.sort);
  const sign = view.down ? -1 : 1;
  const entries = [];
  for (const one of handlers.values()) {
    if (view.state && one.state !== view.state) continue;
    if (words.length) {
      const text = `${one.handler_id} ${one.address} ${one.entry ?? ""} ${one.version ?? ""}`.toLowerCase();
      if (!words.every((word) => text.includes(word))) continue;
    }
    entries.push([value(one), one]);
  }
  entries.sort(([a, one], [b, other]) => {
    if (known(a) !== known(b)) return known(a) ? -1 : 1;
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return (order || 0) * sign || one.handler_id.localeCompare(other.handler_id, "en", { numeric: true });
  });
  view.shown = entries.map(([, one]) => one);
  draw();
}

// --- the glance ------------------------------------------------------------------------------

function drawGlance() {
  const { summary, problems } = view.about;
  const dead = summary.states.unreachable;
  put($("headline"), headline(summary, dead));
  document.title = `${dead ? `${dead} down` : `${summary.alive} up`} · ConductorZero`;
  document.body.classList.toggle("broken", dead > 0);
  document.body.classList.toggle("empty", !summary.total);
  for (const state of STATES) {
    const part = spectrum.get(state);
    part.style.flexGrow = summary.states[state];
    part.hidden = !summary.states[state];
    put(chips.get(state).lastChild, count(summary.states[state]));
    chips.get(state).hidden = !summary.states[state] && view.state !== state;
  }
  put(chips.get(null).lastChild, count(summary.total));
  put(tiles.get("Memory"), megabytes(summary.memory_mb));
  tiles.get("Running now").replaceChildren(count(summary.in_flight), " ", element("small", {}, summary.queued ? `${count(summary.queued)} queued` : ""));
  put(tiles.get("Runs"), count(summary.runs_total));
  put(tiles.get("Failed runs"), count(summary.failures_total));
  const times = responseTimes();
  put(tiles.get("Median response"), milliseconds(times[Math.floor(times.length / 2)]));
  put(tiles.get("95 % answer within"), milliseconds(times[Math.floor(times.length * 0.95)]));
  const told = problems.join("\n");
  if ($("problems").textContent !== told) $("problems").textContent = told;
}

function headline({ total, alive, states }, dead) {
  if (!total) return "No handlers are known yet";
  if (states.unknown === total) return `Asking ${count(total)} ${total === 1 ? "handler" : "handlers"}…`;
  if (dead) return `${count(dead)} of ${count(total)} ${total === 1 ? "handler" : "handlers"} ${dead === 1 ? "does" : "do"} not answer`;
  if (total === 1) return "The one handler answers";
  return alive === total ? `All ${count(total)} handlers answer` : `${count(alive)} of ${count(total)} handlers answer so far`;
}

function responseTimes() {
  return [...handlers.values()].map((h) => h.response_time_ms).filter(known).sort((a, b) => a - b);
}

function drawEvents() {
  const events = view.events.toReversed();
  $("events").hidden = !events.length;
  if (!events.length) return;
  const latest = events.find((event) => !routine(event)) ?? events[0];
  put($("latest"), `${moment(latest.at, view.about.at)} ${latest.handler_id} ${latest.text}`);
  $("event-list").replaceChildren(...events.map((event) => element("li", {}, ...told(event))));
}

const told = (event) => [
  element("time", { datetime: event.at }, moment(event.at, view.about.at)), " ",
  element("a", { href: `/handlers/${encodeURIComponent(event.handler_id)}` }, event.handler_id), " ",
  element("span", { class: `what ${event.kind} ${event.state}` }, event.text),
];

// --- the table -------------------------------------------------------------------------------

const above = element("tr", { class: "space", "aria-hidden": "true" }, element("td"));
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
  const keep = new Set(wanted.map((one) => one.handler_id));
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
    const row = drawn.get(one.handler_id) ?? newRow(one.handler_id);
    row.draw(one, first + index + 2);
    if (previous.nextSibling !== row.node) previous.after(row.node);
    previous = row.node;
  });
  if (focused && focused !== document.activeElement && body.contains(focused)) focused.focus({ preventScroll: true });
  $("table").setAttribute("aria-rowcount", total + 1);
  $("table").hidden = !total;
  $("nothing").hidden = total > 0;
  put($("nothing-text"), handlers.size ? "No handler fits this filter." : "Say where they are, in the conductor's section of handler_registry.yaml:");
  $("example").hidden = handlers.size > 0;
  drawSelection();
}

function newRow(id) {
  const cells = COLUMNS.map(([key, title]) => element("td", { role: "cell", class: key, "data-title": title }));
  const [name, state, response, memory, cpu, running, runs, failed, up, version] = cells;
  const box = element("input", { type: "checkbox", "aria-label": `Select ${id}` });
  box.addEventListener("change", () => choose(id, box.checked));
  const address = element("span", { class: "address" });
  name.append(element("a", { href: `/handlers/${encodeURIComponent(id)}` }, id), address);
  const badge = element("span", { class: "badge" });
  const age = element("span", { class: "age" });
  state.append(badge, age);
  const latencyText = element("span", { class: "figure" });
  const latency = sparkline();
  response.append(latencyText, latency.node);
  const memoryText = element("span", { class: "figure" });
  const trail = sparkline();
  memory.append(memoryText, trail.node);
  const pick = element("td", { role: "cell", class: "pick" }, element("label", {}, box));
  const node = element("tr", { role: "row" }, pick, ...cells);
  const row = {
    node,
    draw(one, index) {
      node.setAttribute("aria-rowindex", index);
      const look = `row ${one.state}`;
      if (node.className !== look) node.className = look;
      if (box.checked !== selected.has(id)) box.checked = selected.has(id);
      put(address, one.trouble ?? one.address.replace("tcp://", ""));
      address.classList.toggle("trouble", Boolean(one.trouble));
      address.title = one.trouble ?? "";
      put(badge, one.state);
      put(age, since(one.since, view.about.at));
      put(latencyText, one.state === "unreachable" ? "no reply" : milliseconds(one.response_time_ms));
      latency.draw(one.latency_trail ?? [], TRAIL, 1);
      put(memoryText, megabytes(memoryOf(one)));
      trail.draw(one.memory_trail ?? [], TRAIL);
      const dead = one.state === "unreachable";
      put(cpu, percent(dead ? null : one.cpu_percent));
      put(running, dead ? count(null) : one.queued ? `${count(one.in_flight)} + ${count(one.queued)}` : count(one.in_flight));
      put(runs, count(one.runs_total));
      put(failed, count(one.failures_total));
      failed.classList.toggle("bad", one.failures_total > 0);
      failed.title = one.last_error ?? "";
      put(up, shortDuration(dead ? null : one.uptime_seconds));
      put(version, one.version ?? "–");
      version.title = one.entry ?? "";
    },
  };
  drawn.set(id, row);
  return row;
}

// --- selection and signals -------------------------------------------------------------------

function choose(id, on) {
  if (on) selected.add(id);
  else selected.delete(id);
  drawSelection();
}

function drawSelection() {
  const some = selected.size;
  const all = view.shown.length > 0 && view.shown.every((one) => selected.has(one.handler_id));
  everybody.checked = all;
  everybody.indeterminate = some > 0 && !all;
  const filtered = view.shown.length !== handlers.size;
  const parts = [filtered ? `${count(view.shown.length)} of ${count(handlers.size)} shown` : ""];
  if (some) parts.push(`${count(some)} selected`);
  put($("shown"), parts.filter(Boolean).join(", "));
  $("signals").hidden = !some;
}

function say(text) {
  const toast = $("toast");
  put(toast, text);
  toast.classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("on"), 9000);
}

// --- the controls ----------------------------------------------------------------------------

const everybody = element("input", { type: "checkbox", "aria-label": "Select all handlers shown" });
const spectrum = new Map();
const chips = new Map();
const tiles = new Map();
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

function filterBy(state) {
  view.state = state;
  for (const [name, chip] of chips) chip.setAttribute("aria-pressed", name === state);
  remember();
  arrange();
  if (view.about) drawGlance();
}

function remember() {
  const query = new URLSearchParams();
  if (view.sort !== "state" || view.down) query.set("sort", (view.down ? "-" : "") + view.sort);
  if (view.state) query.set("state", view.state);
  if (view.text) query.set("q", view.text);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

function build() {
  $("heads").append(element("th", { role: "columnheader", scope: "col", class: "pick" }, element("label", {}, everybody)));
  for (const [key, title, , down] of COLUMNS) {
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => sortBy(key, view.sort === key ? !view.down : down));
    buttons.set(key, button);
    $("heads").append(element("th", { role: "columnheader", scope: "col", class: key }, button));
    $("sort-by").append(element("option", { value: key }, title));
  }
  for (const state of [null, ...STATES]) {
    const name = state ?? "all";
    const chip = element("button", { type: "button", class: `chip ${name}`, "aria-pressed": String(state === null) }, element("span", {}, name), element("b", {}, "0"));
    chip.addEventListener("click", () => filterBy(view.state === state ? null : state));
    chips.set(state, chip);
    if (state) spectrum.set(state, element("i", { class: state }));
  }
  $("chips").append(...chips.values());
  $("spectrum").append(...spectrum.values());
  for (const name of ["Median response", "95 % answer within", "Memory", "Running now", "Runs", "Failed runs"]) {
    const value = element("dd", {}, "–");
    tiles.set(name, value);
    $("tiles").append(element("div", {}, element("dt", {}, name), value));
  }
  everybody.addEventListener("change", () => {
    for (const one of view.shown) everybody.checked ? selected.add(one.handler_id) : selected.delete(one.handler_id);
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
  addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
    if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      $("filter").focus();
    } else if (event.key === "Escape" && event.target === $("filter")) {
      $("filter").value = view.text = "";
      remember();
      arrange();
    }
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
  addEventListener("resize", soon);
  signalButtons($("signals"), () => [...selected], say);
}

function recall() {
  const query = new URLSearchParams(location.search);
  const sort = query.get("sort") ?? "state";
  const key = sort.replace(/^-/, "");
  if (COLUMNS.some(([name]) => name === key)) sortBy(key, sort.startsWith("-"));
  $("filter").value = view.text = query.get("q") ?? "";
  if (STATES.includes(query.get("state"))) filterBy(query.get("state"));
}

function connected(state, detail) {
  showLink(state);
  if (state === "refused") askToken(detail).then((given) => given && link.resume());
}

build();
recall();
const link = follow((event, data) => {
  take(event, data);
}, connected);
