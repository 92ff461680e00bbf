"use strict";

const EVERY_MS = 2000;
const PAGE = 50;
const SHORT = 90;
const LONG_AWAY_MS = 86_400_000;
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const CRON = ["year", "month", "day", "week", "day_of_week", "hour", "minute", "second"];
const at = (id) => document.getElementById(id);
const wall = new Intl.DateTimeFormat(undefined, {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const relative = new Intl.RelativeTimeFormat("en", { style: "short" });
let token = sessionStorage.getItem("token") ?? "";
let shown = PAGE;
let pages = [null];
let next = null;
let looks = 0;

/** One request of the API; asks for the token when one is needed. */
async function ask(method, path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { method, headers });
  if (answer.status === 401) {
    at("token-form").hidden = false;
    at("main").hidden = true;
  }
  const answered = await answer.json();
  if (!answer.ok) throw new Error(answered.error.message);
  return answered;
}

/** An element with children, of which texts stay texts, never markup. */
function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

/** A table's cell; on a phone the title stands before it. */
function cell(title, ...children) {
  const made = element("td", "", ...children);
  made.dataset.title = title;
  return made;
}

/** How far a moment is from now: "in 4 min." */
function distance(moment) {
  const seconds = (new Date(moment) - Date.now()) / 1000;
  if (Math.abs(seconds) < 1) return "now";
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
  return relative.format(Math.round(seconds / size), unit);
}

/** A moment: its distance, and the reader's own wall time below. */
function time(moment) {
  if (!moment) return ["–"];
  const near = element("time", "near", distance(moment));
  near.dateTime = moment;
  return [near, element("small", "", wall.format(new Date(moment)))];
}

/** A trigger for people. */
function inWords({ trigger, error, trigger_config: config }) {
  if (error) return trigger;
  if (config.type === "interval") return `every ${length(config)}${config.wall ? ", by the clock" : ""}`;
  if (config.type === "date") return "once";
  const named = CRON.filter((name) => (config[name] ?? "*") !== "*");
  const { hour, minute = "0", day_of_week = "*" } = config;
  const days = day_of_week.replace("mon,tue,wed,thu,fri", "mon-fri").replaceAll(",", ", ");
  const daily = named.every((name) => ["hour", "minute", "day_of_week"].includes(name));
  if (daily && hour && /^\d+$/.test(hour) && /^\d+$/.test(minute)) {
    const clock = `${hour.padStart(2, "0")}:${minute.padStart(2, "0")}`;
    return `${days === "*" ? "every day" : days} at ${clock}`;
  }
  const open = CRON.findLast((name) => config[name] !== undefined);
  const fields = (named.includes(open) ? named : [...named, open]).map((name) => `${name.replaceAll("_", " ")} ${name === "day_of_week" ? days : config[name]}`);
  return `cron: ${fields.join(", ")}${config.day_or_weekday ? " (day or weekday)" : ""}`;
}

/** "5 minutes", "1 hour 30 minutes". */
function length(config) {
  const units = ["weeks", "days", "hours", "minutes", "seconds"].filter((unit) => config[unit]);
  const single = units.length === 1 && config[units[0]] === 1;
  if (single) return units[0].slice(0, -1);
  return units.map((unit) => `${config[unit]} ${config[unit] === 1 ? unit.slice(0, -1) : unit}`).join(" ");
}

function button(label, job, path, place, method = "POST") {
  const made = element("button", place, label);
  made.dataset.place = `${place} ${job}`;
  made.setAttribute("aria-label", `${label} ${job}`);
  made.addEventListener("click", () => act(made, label, job, method, path));
  return made;
}

async function act(pressed, label, job, method, path) {
  if (pressed.ariaBusy === "true") return;
  pressed.ariaBusy = "true";
  try {
    await ask(method, path);
    await refresh();
  } catch (error) {
    fail(`${label} ${job}: ${error.message}`);
  } finally {
    pressed.ariaBusy = "false";
  }
}

function badge(one) {
  const count = one.ticks && one.ticks.count > 1 ? ` × ${one.ticks.count}` : "";
  const flags = (one.waiting ? ", waiting" : "") + (one.late ? ", late" : "");
  return element("span", `badge ${one.status}`, one.status + count + flags);
}

function scheduleRow(one) {
  const last = one.last_execution;
  const place = `/api/schedules/${encodeURIComponent(one.id)}`;
  const actions = cell("", button("Run now", one.id, `${place}/run`, "run"));
  actions.classList.add("actions");
  const [label, path] = one.paused ? ["Resume", "resume"] : ["Pause", "pause"];
  actions.append(button(label, one.id, `${place}/${path}`, "turn"));
  const zone = one.trigger_config.timezone ? [element("small", "", one.timezone)] : [];
  const params = Object.keys(one.params).length ? JSON.stringify(one.params) : "";
  return element("tr", one.paused ? "paused" : "",
    cell("Schedule", element("b", "", one.id), element("small", "", `${one.handler_id}.${one.method_name}(${cut(params)})`)),
    cell("When", inWords(one), ...zone),
    cell("Next", ...(one.error ? [element("span", "badge error", "stands still"), element("small", "", one.error)] : one.paused ? [element("span", "badge", "paused")] : time(one.next_fire_time))),
    cell("Last run", ...(last ? [badge(last), element("small", "", ...time(last.started_at).slice(0, 1))] : ["–"])),
    actions,
  );
}

function cut(text, most = SHORT) {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** What came of a run; a long text opens. */
function outcome(one) {
  if (one.error === null && one.result === null) return [];
  const text = one.error ?? JSON.stringify(one.result);
  if (text.length <= SHORT) return [text];
  const whole = one.error ?? JSON.stringify(one.result, null, 2);
  return [element("details", "", element("summary", "", cut(text)), element("pre", "", whole))];
}

function executionRow(one) {
  const ms = one.duration_ms;
  const took = ms === null ? "" : ms < 10_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`;
  const name = one.job_id.startsWith("immediate_") ? "run now" : one.job_id;
  const byHand = one.scheduled_at || name === "run now" ? "" : ", by hand";
  const result = cell("Result", ...outcome(one));
  result.classList.add("text");
  return element("tr", "",
    cell("Started", ...time(one.started_at)),
    cell("Run", element("b", "", name), element("small", "", `${one.handler_id}.${one.method_name}${byHand}`)),
    cell("Status", badge(one)),
    cell("Took", ...(took ? [element("span", "took", took)] : [])),
    result,
  );
}

function handlerItem(one) {
  return element("li", one.status,
    element("b", "", one.id), element("span", `badge ${one.status}`, one.status),
    element("small", "", one.address), ...(one.error ? [element("small", "", one.error)] : []));
}

/** A handler that is long away: when it was last seen, and a way to forget it. */
function goneItem(one) {
  const place = `/api/handlers/${encodeURIComponent(one.id)}`;
  const seen = element("small", "", "last seen ", ...time(one.last_seen_at).slice(0, 1), ` at ${one.address}`);
  return element("li", one.status, element("b", "", one.id), button("Remove", one.id, place, "forget", "DELETE"), seen);
}

/** The handlers: those that have been away for more than a day are folded. */
function showHandlers(handlers) {
  const isGone = (one) => one.status !== "Connected" && Date.now() - new Date(one.last_seen_at) > LONG_AWAY_MS;
  const gone = handlers.filter(isGone).map(({ id, address, status, last_seen_at }) => ({ id, address, status, last_seen_at }));
  const shown = handlers.filter((one) => !isGone(one)).map(({ id, address, status, error }) => ({ id, address, status, error }));
  show(at("handlers"), shown, handlerItem);
  show(at("gone"), gone, goneItem);
  at("away").hidden = gone.length === 0;
  at("away").firstElementChild.textContent = `${gone.length} away for more than a day`;
  at("no-handlers").hidden = handlers.length > 0;
}

/** Show these, and touch only what changed: what is read, opened or focused stays. */
function show(list, records, build) {
  const old = new Map([...list.children].map((made) => [made.dataset.seen, made]));
  const focused = document.activeElement?.dataset.place;
  const made = records.map((record) => {
    const seen = JSON.stringify(record);
    const kept = old.get(seen) ?? build(record);
    kept.dataset.seen = seen;
    return kept;
  });
  const same = made.length === list.children.length && made.every((one, n) => one === list.children[n]);
  if (!same) list.replaceChildren(...made);
  if (focused && document.activeElement === document.body) {
    [...list.querySelectorAll("button")].find((one) => one.dataset.place === focused)?.focus();
  }
  at(`no-${list.id}`)?.toggleAttribute("hidden", records.length > 0);
  list.closest("table")?.toggleAttribute("hidden", records.length === 0);
}

/** Ask for everything that is shown; an answer that a later look overtook is dropped. */
async function refresh() {
  const look = ++looks;
  const status = at("status").value;
  const search = at("search").value.trim();
  const cursor = pages.at(-1);
  const find = new URLSearchParams({ limit: PAGE, ...(search && { search }), ...(cursor && { cursor }) });
  const newest = new URLSearchParams({ limit: shown, ...(status && { status }) });
  const [schedules, executions, handlers, health] = await Promise.all([
    ask("GET", `/api/schedules?${find}`), ask("GET", `/api/executions?${newest}`), ask("GET", "/api/handlers"), ask("GET", "/api/health"),
  ]);
  if (look !== looks) return;
  at("no-schedules").textContent = search ? `No schedule has “${search}” in its name or call.` : "No schedule yet: add one with catalogzero schedule add.";
  show(at("schedules"), schedules.schedules, scheduleRow);
  turnTo(schedules);
  show(at("executions"), executions.records, executionRow);
  showHandlers(handlers.handlers);
  at("older").hidden = executions.cursor === null || shown >= 1000;
  for (const one of document.querySelectorAll("time.near")) one.textContent = distance(one.dateTime);
  at("token-form").hidden = true;
  at("main").hidden = false;
  const step = health.clock_step;
  const jump = step ? `; the clock jumped${step.step_s === null ? "" : ` by ${Math.round(step.step_s)} s`}, seen ${wall.format(new Date(step.seen_at))}` : "";
  showState("live", `${schedules.count} ${schedules.count === 1 ? "schedule" : "schedules"}${jump}`);
}

/** Where this page is among all; back to the first where nothing is left on it. */
function turnTo({ schedules, count, cursor }) {
  next = cursor;
  const before = (pages.length - 1) * PAGE;
  at("place").textContent = `${before + 1} to ${before + schedules.length} of ${count}`;
  at("pages").hidden = pages.length === 1 && next === null;
  at("earlier").disabled = pages.length === 1;
  at("later").disabled = next === null;
  if (schedules.length === 0 && pages.length > 1) toFirst();
}

function toFirst() {
  pages = [null];
  look();
}

function showState(link, text) {
  document.body.dataset.link = link;
  if (at("state").textContent !== text) at("state").textContent = text;
}

function fail(text) {
  showState("lost", text);
}

function look() {
  return refresh().catch((error) => fail(error instanceof TypeError ? "The scheduler does not answer." : error.message));
}

/** Look again and again, while somebody watches. */
async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY_MS);
}

at("status").addEventListener("change", () => { shown = PAGE; look(); });
at("search").addEventListener("input", toFirst);
at("earlier").addEventListener("click", () => { pages.pop(); look(); });
at("later").addEventListener("click", () => { pages.push(next); look(); });
at("older").addEventListener("click", () => { shown = Math.min(shown + 4 * PAGE, 1000); look(); });
at("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = at("token").value;
  sessionStorage.setItem("token", token);
  await look();
  at("refused").textContent = at("main").hidden ? "That is not its token." : "";
});
watch();
