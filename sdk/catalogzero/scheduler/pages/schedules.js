// The schedules: which fail, what ran, who does the work; everything shown is of one answer.
import { keptOrder } from "/assets/order.js";
import {
  EVERY_MS, ask, at, clock, element, isAlone, keyOf, length, near, onToken, outcome, reason, replace, row, runPath, say, show, small, state, strip,
  tick, took, zoneName,
} from "./scheduler.js";

const LONG_AWAY_MS = 86_400_000;
const PAGE = 25;
const whole = new Intl.NumberFormat("en");
let looks = 0;
let shownAt = null;
let answered = null;

/** The address with other values in its query; an empty one goes. */
function address(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) value ? query.set(name, value) : query.delete(name);
  return query.size ? `?${query}` : "/";
}

const given = (name) => new URLSearchParams(location.search).get(name) ?? "";

function go(href) {
  history.pushState(null, "", href);
  look();
}

const link = (changes, attributes, ...children) => element("a", { href: address(changes), "data-stays": "", ...attributes }, ...children);

function chip(changes, name, words, count, tone = "") {
  const [[key, value]] = Object.entries(changes);
  const isOn = given(key) === value;
  return link({ page: "", cursor: "", ...changes }, { class: `chip ${tone}`.trim(), ...(isOn && { "aria-current": "true" }) }, words, ...(count === undefined ? [] : [element("b", {}, whole.format(count))]));
}

function button(label, job, path, place, method = "POST", look = "") {
  const made = element("button", { type: "button", class: look, "data-place": `${place} ${job}`, "aria-label": `${label} ${job}`, ...(place === "run" && { "aria-keyshortcuts": "r" }) }, label);
  made.addEventListener("click", async () => {
    if (made.ariaBusy === "true" || (method === "DELETE" && !(await isSure(`${label} ${job}?`)))) return;
    made.ariaBusy = "true";
    say("");
    try {
      await ask(method, path);
      await refresh();
    } catch (error) {
      say(`${label} ${job}: ${reason(error)}`);
    } finally {
      made.ariaBusy = "false";
    }
  });
  return made;
}

/** Ask before what cannot be undone. */
function isSure(question) {
  const asked = at("sure");
  at("sure-title").textContent = question;
  asked.returnValue = "no";
  asked.showModal();
  return new Promise((answer) => asked.addEventListener("close", () => answer(asked.returnValue === "yes"), { once: true }));
}

function nextCell(one) {
  if (one.error) return [state("fail", "stands still"), small(one.error)];
  if (one.paused) return [state("rest", "paused")];
  if (!one.next_fire_time) return ["–"];
  const own = clock(one.next_fire_time);
  const zone = one.trigger_config.timezone;
  const there = zone && clock(one.next_fire_time, zone);
  const [day] = own.split(", ");
  const other = there?.startsWith(`${day}, `) ? there.slice(day.length + 2) : there;
  return [near(one.next_fire_time), small(there && there !== own && zone !== zoneName() ? `${own} = ${other}` : own)];
}

function lastCell(run) {
  if (!run) return [element("span", { class: "soft" }, "has not run yet")];
  const [came, more] = outcome(run);
  return [element("a", { href: runPath(run.execution_id) }, came), small([clock(run.started_at), more].filter(Boolean).join(" · "))];
}

function scheduleRow(one) {
  const place = `/api/schedules/${encodeURIComponent(one.id)}`;
  const [label, path] = one.paused ? ["Resume", "resume"] : ["Pause", "pause"];
  const zone = one.trigger_words.endsWith(` ${one.timezone}`) ? one.timezone : "";
  const params = Object.entries(one.params).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
  const look = { failing: "fail tinted", waiting: "wait tinted", well: "" }[one.standing];
  return row(look,
    [link({ schedule: one.id, cursor: "" }, {}, one.id), small(`${one.handler_id} · ${one.method_name}`), params && small(params.length > 90 ? `${params.slice(0, 90)}…` : params)],
    ["When", "nowrap", zone ? one.trigger_words.slice(0, -zone.length - 1) : one.trigger_words, zone && small(zone)],
    ["Last 30 runs", "bare", strip(one.recent)],
    ["Last outcome", "why-cell bare", ...lastCell(one.last_execution)],
    ["Next", "", ...nextCell(one)],
    ["", "bare", element("div", { class: "acts" },
      button("Run now", one.id, `${place}/run`, "run"), button(label, one.id, `${place}/${path}`, "turn"), button("Remove", one.id, place, "remove", "DELETE", "quiet"))],
  );
}

function runRow(run) {
  const [came, more] = outcome(run);
  const { rows } = run.outcome;
  const name = isAlone(run) ? `${run.handler_id} · ${run.method_name}` : link({ schedule: run.job_id, cursor: "" }, {}, run.job_id);
  return row("",
    [element("a", { href: runPath(run.execution_id) }, clock(run.started_at, undefined, true))],
    ["Schedule", "lead", name],
    ["Outcome", "why-cell bare", came, more && small(more)],
    ["Rows", "num", rows === null ? "–" : whole.format(rows)],
    ["Took", "num", took(run.duration_ms)],
  );
}

/** A handler; below one with instances each of them, with what it has to do. */
function handlerItem(one) {
  if (!one.instances.length) return element("li", {}, ...presence(one, one.id));
  const away = one.instances.filter(({ status, left }) => status !== "Connected" && !left).length;
  const all = one.instances.filter(({ status, left }) => status === "Connected" || !left).length;
  const how = !away && all ? state("ok", "answers") : away < all ? state("warn", `${away} of ${all} away`) : state("gone", "no answer");
  return element("li", {}, how, element("b", {}, one.id), element("span", { class: "soft" }, `${all} ${all === 1 ? "instance" : "instances"}`),
    element("ol", { class: "list", "aria-label": `Instances of ${one.id}` }, ...one.instances.map((each) => element("li", {}, ...presence(each, each.instance_id)))));
}

/** Whether it answers, who it is, since when it does not, and where it is. */
function presence(one, name) {
  const there = one.status === "Connected";
  const seen = there || !one.last_seen_at ? "" : element("span", { class: "soft" }, "since ", clock(one.last_seen_at, undefined, true));
  const taken = one.places ? element("span", { class: "soft" }, `${whole.format(one.load)} of ${whole.format(one.places)} ${one.places === 1 ? "place" : "places"} taken`) : "";
  return [one.left ? state("off", "left") : there ? state("ok", "answers") : state("gone", "no answer"), element("b", {}, name), taken, seen,
    element("span", { class: "end soft small" }, [one.address, one.error].filter(Boolean).join(" · "))];
}

/** A handler that is long away: when it was last seen, and a way to forget it. */
function goneItem(one) {
  return element("li", {}, state("off", "retired"), element("b", {}, one.id),
    element("span", { class: "soft" }, "last seen ", one.last_seen_at ? clock(one.last_seen_at) : "never", ` at ${one.address}`),
    element("span", { class: "end" }, button("Remove", one.id, `/api/handlers/${encodeURIComponent(one.id)}`, "forget", "DELETE")));
}

/** The handlers, those that do not answer first; who has been away for more than a day is folded. */
function showHandlers(handlers) {
  const shown = ({ address, status, error, last_seen_at }) => ({ address, status, error: error ?? "", last_seen_at: status === "Connected" ? null : last_seen_at });
  const lean = handlers.map((one) => ({ id: one.id, ...shown(one),
    instances: one.instances.map((each) => ({ instance_id: each.instance_id, places: each.places, load: each.load, left: each.left, ...shown(each) })) }));
  const isGone = (one) => one.status !== "Connected" && Date.now() - new Date(one.last_seen_at) > LONG_AWAY_MS;
  const there = lean.filter((one) => !isGone(one));
  const answering = there.filter((one) => one.status === "Connected");
  showKept("handlers", [...there.filter((one) => one.status !== "Connected"), ...answering], handlerItem);
  show(at("gone"), lean.filter(isGone), goneItem);
  at("away").hidden = there.length === lean.length;
  at("away").firstElementChild.textContent = `${lean.length - there.length} not seen for more than a day`;
  at("answering").textContent = there.length ? `${answering.length} of ${there.length} answer` : "";
  at("no-handlers").hidden = handlers.length > 0;
}

/** The answer in one sentence: does everything run? */
function headline({ all, failing, waiting }) {
  const many = `${whole.format(all)} ${all === 1 ? "schedule" : "schedules"}`;
  const wait = `${whole.format(waiting)} ${waiting === 1 ? "waits" : "wait"} to be sent`;
  if (failing) return `${failing === 1 ? "1 schedule fails" : `${whole.format(failing)} of ${many} fail`}${waiting ? `, ${wait}` : ""}`;
  if (waiting) return `Rows of ${whole.format(waiting)} of ${many} wait to be sent`;
  if (all) return `${many}, all well`;
  return given("q") ? "No schedule matches" : "No schedule yet";
}

/** What the runs of the last day came to, in a sentence; nothing where there were none. */
function lastDay({ since, runs, states }) {
  if (!runs) return "";
  const sum = (...names) => names.reduce((total, name) => total + (states[name] ?? 0), 0);
  const waiting = sum("waiting");
  const parts = [
    [sum("uploaded", "unchanged"), "uploaded or found nothing new"], [sum("done", "reported"), "done"], [waiting, waiting === 1 ? "waits" : "wait"],
    [sum("failed"), "failed"], [sum("missed"), "missed"],
  ];
  const words = parts.filter(([number]) => number).map(([number, what]) => `${whole.format(number)} ${what}`);
  return `Since ${clock(since).replace(/^.*, /, "yesterday ")}, of ${whole.format(runs)} ${runs === 1 ? "run" : "runs"} ${words.join(", ")}. `;
}

function showTop({ counts, outcomes, next_fire_time, clock_step }) {
  const text = headline(counts);
  if (at("headline").textContent !== text) at("headline").textContent = text;
  at("headline").className = counts.failing ? "bad" : "";
  const short = counts.failing ? `◆ ${counts.failing} ${counts.failing === 1 ? "fails" : "fail"}` : counts.waiting ? `⧗ ${counts.waiting} ${counts.waiting === 1 ? "waits" : "wait"}` : "";
  document.title = [short, "Schedules", "catalogzero"].filter(Boolean).join(" · ");
  const parts = next_fire_time ? ["The next fires at ", element("b", {}, clock(next_fire_time)), ", ", near(next_fire_time), "."] : [];
  const step = clock_step?.step_s;
  if (clock_step) parts.push(` The clock jumped${step === null ? "" : ` by ${length(Math.abs(step))}`}, seen ${clock(clock_step.seen_at)}.`);
  replace(at("sub"), lastDay(outcomes), ...parts);
}

function showPages({ page, pages, schedules, counts }) {
  replace(at("shows"),
    chip({ show: "" }, "show", "all", counts.all), chip({ show: "failing" }, "show", "failing", counts.failing, "fail"),
    chip({ show: "waiting" }, "show", "waiting", counts.waiting, "wait"), chip({ show: "paused" }, "show", "paused", counts.paused, "rest"),
  );
  const first = (page - 1) * PAGE;
  at("pages").hidden = pages === 1;
  replace(at("pages"),
    element("p", {}, `${first + 1} to ${first + schedules.length}, page ${page} of ${pages}`),
    page > 1 ? link({ page: page > 2 ? String(page - 1) : "" }, { class: "button" }, "Earlier") : "",
    page < pages ? link({ page: String(page + 1) }, { class: "button" }, "Later") : "",
  );
  at("no-schedules").textContent = counts.all ? "No schedule is so now." : given("q") ? `No schedule has “${given("q")}” in its name, handler or method.` : "No schedule yet: add one with catalogzero schedule add.";
}

function showRuns({ cursor, schedules }) {
  const chosen = given("schedule");
  const names = [...new Set([...(chosen ? [chosen] : []), ...schedules.map((one) => one.id)])];
  const options = [["", "all"], ...names.map((name) => [name, name])];
  if (at("schedule").dataset.names !== JSON.stringify(names)) {
    at("schedule").dataset.names = JSON.stringify(names);
    at("schedule").replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
  }
  at("schedule").value = chosen;
  replace(at("runs-shows"),
    chip({ runs: "" }, "runs", "all"), chip({ runs: "failed" }, "runs", "failed", undefined, "fail"),
    chip({ runs: "waiting" }, "runs", "waiting", undefined, "wait"), chip({ runs: "by_hand" }, "runs", "by hand"),
  );
  at("no-runs").textContent = chosen || given("runs") ? "No run is so." : "Nothing has run yet.";
  at("older").hidden = cursor === null && !given("cursor");
  replace(at("older"),
    element("p", {}, given("cursor") ? "older runs" : "the newest runs"),
    given("cursor") ? link({ cursor: "" }, { class: "button" }, "Newest") : "",
    cursor ? link({ cursor }, { class: "button" }, "Older") : "",
  );
  at("zone").textContent = `times in ${zoneName()}, your own zone`;
}

/** Ask for everything that is shown; an answer that a later look overtook is dropped. */
async function refresh() {
  const mine = ++looks;
  const answer = await ask("GET", `/api/overview${location.search}`);
  if (mine !== looks) return;
  answered = { ...answer, view: location.search };
  draw(answered);
  for (const one of document.querySelectorAll("[data-shown]")) one.hidden = false;
  live(true);
  say("", "link");
  tick();
}

function draw(answer) {
  if (document.activeElement !== at("find")) at("find").value = given("q");
  showTop(answer);
  showPages(answer);
  showKept("schedules", answer.schedules, scheduleRow);
  showRuns(answer);
  showKept("runs", answer.records, runRow);
  showHandlers(answer.handlers);
}

const orders = Object.fromEntries(["schedules", "runs", "handlers"].map((name) => [name, keptOrder(at(name).closest(".card"), () => draw(answered))]));

/** Show these in their order, but for somebody who is among them: then in the order that they have there. */
function showKept(name, records, build) {
  const known = new Map(records.map((record) => [keyOf(record), record]));
  show(at(name), orders[name]([...known.keys()], answered.view).map((key) => known.get(key)), build);
}

function live(isLive) {
  at("live").className = isLive ? "state ok pulse" : "state fail";
  at("live").textContent = isLive ? "live" : "not live";
  at("main").classList.toggle("stale", !isLive);
  if (isLive) shownAt = new Date();
}

function look() {
  return refresh().catch((error) => {
    live(false);
    for (const one of document.querySelectorAll("[data-shown]")) one.hidden ||= error.status === 401;
    const age = shownAt ? ` What is shown is of ${clock(shownAt, undefined, true)}; the next try is in ${EVERY_MS / 1000} s.` : "";
    say(error.status === 401 ? "" : `${reason(error)}${age}`, "link");
    if (error.status === 401) at("headline").textContent = "Locked";
  });
}

/** Look again and again, while somebody watches. */
async function watch() {
  if (!document.hidden && at("token-form").hidden) await look();
  setTimeout(watch, EVERY_MS);
}

addEventListener("click", (event) => {
  const stays = event.target.closest("a[data-stays]");
  if (!stays || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  go(stays.href);
});
addEventListener("popstate", look);
addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
at("find").addEventListener("input", () => {
  history.replaceState(null, "", address({ q: at("find").value.trim(), page: "" }));
  look();
});
at("schedule").addEventListener("change", () => go(address({ schedule: at("schedule").value, cursor: "" })));
onToken(look);
watch();
