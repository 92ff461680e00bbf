// One run: what it came to, with what it was called, what its handler knows of it, and its neighbours.
import {
  EVERY_MS, ask, at, clock, distance, element, isAlone, onToken, outcome, pairs, readable, reason, replace, row, runPath, say, show as showRows, small, state, stateOf,
  strip, tick, took,
} from "./scheduler.js";

const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `/api/executions/${encodeURIComponent(id)}`;
const whole = new Intl.NumberFormat("en");
const UPLOADS = {
  done: ["ok", "arrived"], dead: ["fail", "refused for good"], superseded: ["same", "a newer one took its place"],
  abandoned: ["off", "given up"],
};
const ITEMS = 25;
const ITEMS_SHOWN = { "": "all", error: "failed", queued: "not begun" };
let isAsked = false;
let items = { status: "", cursors: [], next: null };

const command = (text) => element("span", { class: "cmd" }, element("code", {}, text), element("button", { type: "button" }, "Copy"));
const quoted = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The command that runs the same once more. */
function again(run) {
  if (run.schedule) return `catalogzero schedule run ${quoted(run.job_id)}`;
  const params = Object.keys(run.params).length ? ` --params ${quoted(JSON.stringify(run.params))}` : "";
  return `catalogzero schedule run ${quoted(run.handler_id)} ${quoted(run.method_name)}${params}`;
}

/** What went wrong, since when, why, and what to do. */
function trouble(run) {
  const { outcome: came } = run;
  if (!(came.state === "failed" || came.state === "missed" || run.waiting)) return [];
  const [word] = outcome(run);
  const error = run.error ?? came.words;
  const [what, ...why] = error.split("\n");
  const isAway = run.waiting || came.state === "missed";
  const fix = isAway
    ? ["see that ", element("b", {}, run.handler_id), " is there with ", command("catalogzero status"), run.waiting ? ": the run begins by itself" : ", then "]
    : ["correct what it says, then "];
  const time = run.completed_at ?? run.started_at;
  return [element("h2", { class: "hidden" }, "What to do"), element("ol", { class: "card" }, element("li", { class: "trouble fail" },
    element("div", {}, word, element("span", { class: "since" }, distance(time), element("br", {}), clock(time, undefined, true))),
    element("div", {}, element("h3", {}, what), why.length ? element("p", { class: "why" }, why.join(" ")) : "",
      element("div", { class: "do" }, element("b", {}, "Fix"), ...fix, run.waiting ? "" : command(again(run)))),
  ))];
}

function facts(run) {
  const due = run.scheduled_at;
  const late = due && run.late ? (new Date(run.started_at) - new Date(due)) / 1000 : 0;
  const ticks = run.ticks;
  const all = [
    ["Began", clock(run.started_at, undefined, true), distance(run.started_at)],
    ["Ended", run.completed_at ? clock(run.completed_at, undefined, true) : "not yet", ""],
    ["Took", took(run.duration_ms), ""],
    ["Asked for", due ? clock(due, undefined, true) : "by hand", due ? (run.late ? `${took(late * 1000)} late` : "in time") : ""],
    ["Attempt", `${run.attempt_number} of ${run.max_attempts}`, run.max_attempts > 1 ? "where its method is safe to try again" : ""],
    ...(run.parts ? [["Items", run.parts.items === null ? "not listed yet" : `${whole.format(run.parts.ended)} of ${whole.format(run.parts.items)}`, run.parts.failed ? `${whole.format(run.parts.failed)} failed` : ""]] : []),
    ...(ticks ? [["Ticks", whole.format(ticks.count), ticks.count > 1 ? `${clock(ticks.first)} to ${clock(ticks.last)}` : ""]] : []),
  ];
  return all.map(([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, more && small(more))));
}

function call(run) {
  const schedule = run.schedule
    ? element("span", {}, element("a", { href: `/?schedule=${encodeURIComponent(run.job_id)}` }, run.job_id), `, ${run.schedule.trigger_words}`)
    : isAlone(run) ? "none, by hand" : `${run.job_id}, which was removed`;
  const item = run.item ? [["Item", element("code", {}, run.item.name)]] : [];
  const own = [["Method", element("code", {}, run.method_name)], ...item, ["Handler", run.handler_id], ["Schedule", schedule], ["Run", command(run.execution_id)]];
  const list = pairs(run.params);
  for (const [name, value] of own) list.append(element("dt", {}, name), element("dd", {}, value));
  return list;
}

/** What it returned, but for what the headline says already. */
function result(run) {
  if (run.status !== "success") return element("p", { class: "soft" }, run.completed_at ? "It returned nothing." : "It goes on.");
  const { success: _, ...fields } = run.result ?? {};
  if (Object.keys(fields).length === 0) return element("p", { class: "soft" }, "It returned nothing.");
  if (Object.keys(fields).length === 1 && "result" in fields) return readable(fields.result);
  return pairs(fields);
}

function show(run) {
  const [word, more] = outcome(run);
  const name = run.item ? run.item.name : isAlone(run) ? `${run.handler_id} · ${run.method_name}` : run.job_id;
  document.title = `${word.textContent} · ${name}, ${clock(run.started_at)} · catalogzero`;
  replace(at("headline"), name, " ", word);
  at("sub").textContent = more || `${clock(run.started_at)}, ${distance(run.started_at)}`;
  replace(at("crumbs"), element("a", { href: "/" }, "Schedules"), run.schedule ? element("a", { href: `/?schedule=${encodeURIComponent(run.job_id)}` }, run.job_id) : "", run.parent_id ? element("a", { href: runPath(run.parent_id) }, "all items") : "", element("span", {}, `run ${run.execution_id}`));
  const place = run.neighbours.findIndex((one) => one.execution_id === run.execution_id);
  const [before, after] = [run.neighbours[place - 1], run.neighbours[place + 1]];
  const beside = (one, words) => (one ? element("a", { class: "button", href: runPath(one.execution_id) }, words) : "");
  if (!at("again")) {
    const button = element("button", { type: "button", class: "main-act", id: "again" }, "Run again");
    button.addEventListener("click", () => runAgain(run));
    const stop = element("button", { type: "button", id: "cancel" }, "Cancel");
    stop.addEventListener("click", cancel);
    at("acts").append(button, stop, element("span", { class: "acts", id: "beside-links" }));
    if (run.parent_id) button.hidden = true;
  }
  at("cancel").hidden = run.completed_at !== null;
  at("items-section").toggleAttribute("data-empty", !run.parts);
  replace(at("beside-links"), beside(before, "← Before"), beside(after, "After →"));
  at("beside-links").hidden = !before && !after;
  replace(at("trouble"), ...trouble(run));
  at("trouble").toggleAttribute("data-empty", at("trouble").childElementCount === 0);
  replace(at("facts"), ...facts(run));
  if (!at("call").firstChild) at("call").append(call(run));
  if (at("result").dataset.status !== run.status) {
    at("result").dataset.status = run.status;
    at("result").replaceChildren(result(run));
  }
  at("beside-words").textContent = run.parent_id ? "runs of the other items; this one is framed" : isAlone(run) ? "" : `runs of ${run.job_id}; this one is framed; height is how long each took`;
  const own = run.neighbours.find((one) => one.execution_id === run.execution_id);
  replace(at("neighbours"), strip(run.neighbours, run.execution_id), element("p", { class: "key" }, ...keys(run.neighbours)));
  for (const one of document.querySelectorAll("[data-shown]")) one.hidden = one.hasAttribute("data-empty") || (one.id === "beside" && run.neighbours.length < 2 && Boolean(own));
}

/** The states that a strip shows, each with its word. */
function keys(runs) {
  const first = new Map(runs.map((one) => [one.state, one]));
  return [...first.values()].map((one) => {
    const made = stateOf(one);
    return element("i", { class: made.className.replace("state ", "") }, made.textContent);
  });
}

function uploadRow(one) {
  const [tone, words] = UPLOADS[one.state] ?? ["wait", "waits to be sent"];
  const time = one.completed_at && tone === "ok" ? clock(one.completed_at, undefined, true) : "";
  return row("", [element("code", {}, String(one.upload_id))],
    ["State", "bare", state(tone, words), small([time, one.reason].filter(Boolean).join(" · "))],
    ["Rows", "num", typeof one.records === "number" ? whole.format(one.records) : "–"],
    ["Bytes", "num", typeof one.bytes === "number" ? whole.format(one.bytes) : "–"]);
}

/** Its traceback and its uploads as they are now, of the handler itself. */
function showHandler(view) {
  at("asked").textContent = view.known ? `asked ${clock(new Date(), undefined, true)}${view.run_id ? `, run ${view.run_id} there` : ""}` : "";
  const parts = [];
  if (!view.known) parts.push(element("p", { class: "pad soft" }, view.reason));
  if (view.uploads.length) {
    const titles = [["Upload", ""], ["State", ""], ["Rows", "num"], ["Bytes", "num"]];
    const head = titles.map(([title, look]) => element("th", { scope: "col", role: "columnheader", class: look }, title));
    parts.push(element("table", { role: "table", "aria-label": "Uploads of this run" },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)),
      element("tbody", { role: "rowgroup" }, ...view.uploads.map(uploadRow))));
  }
  if (view.traceback) {
    parts.push(element("details", {}, element("summary", {}, "Traceback ", element("span", { class: "soft" }, "in the handler's own code")),
      element("div", { class: "pad" }, element("pre", { tabindex: "0" }, view.traceback))));
  }
  if (!parts.length) parts.push(element("p", { class: "pad soft" }, "It knows this run: no traceback, and no uploads of it."));
  at("handler").replaceChildren(...parts);
}

function itemRow(run) {
  const [came, more] = outcome(run);
  const { rows } = run.outcome;
  return row("",
    [element("a", { href: runPath(run.execution_id) }, run.item.name)],
    ["Outcome", "why-cell bare", came, more && small(more)],
    ["Rows", "num", rows === null ? "–" : whole.format(rows)],
    ["Took", "num", took(run.duration_ms)],
  );
}

/** A page of the runs of its items, once somebody looks at them. */
async function showItems({ parts }) {
  if (!parts) return;
  const failed = parts.failed ? `, ${whole.format(parts.failed)} failed` : "";
  at("items-summary").textContent = parts.items === null ? "not listed yet" : `${whole.format(parts.ended)} of ${whole.format(parts.items)} ended${failed}`;
  if (!at("items-fold").open) return;
  const query = new URLSearchParams({ parent: id, limit: ITEMS, ...(items.status && { status: items.status }) });
  if (items.cursors.length) query.set("cursor", items.cursors.at(-1));
  const { records, cursor } = await ask("GET", `/api/executions?${query}`);
  items.next = cursor;
  showRows(at("items"), records, itemRow);
  at("items-pages").hidden = false;
  const turn = (words, change) => {
    const made = element("button", { type: "button" }, words);
    made.addEventListener("click", () => { change(); look(); });
    return made;
  };
  const kinds = Object.entries(ITEMS_SHOWN).map(([status, words]) => turn(words, () => { items = { status, cursors: [], next: null }; }));
  const before = items.cursors.length ? [turn("Previous", () => items.cursors.pop())] : [];
  const after = cursor ? [turn("Next", () => items.cursors.push(items.next))] : [];
  const focused = document.activeElement?.textContent;
  const isInside = at("items-pages").contains(document.activeElement);
  at("items-pages").replaceChildren(...kinds, ...before, ...after);
  if (isInside) [...at("items-pages").children].find((one) => one.textContent === focused)?.focus();
}

async function cancel() {
  try {
    await ask("POST", `${path}/cancel`);
    await look();
  } catch (error) {
    say(`Cancel: ${reason(error)}`);
  }
}

async function runAgain(run) {
  const body = { handler_id: run.handler_id, job_method: run.method_name, job_params: run.params, wait: false, ...(run.parts && { partition: true }), ...(run.schedule && { job_id: run.job_id }) };
  at("again").disabled = true;
  try {
    const { execution_id } = await ask("POST", "/api/run_now", body);
    location.assign(runPath(execution_id));
  } catch (error) {
    say(`Run again: ${reason(error)}`);
    at("again").disabled = false;
  }
}

/** Look at it; what the handler knows is asked for once it ended, and never holds up the rest. */
async function look() {
  try {
    const run = await ask("GET", path);
    show(run);
    await showItems(run);
    say("", "link");
    tick();
    if (!isAsked) {
      isAsked = run.completed_at !== null;
      ask("GET", `${path}/handler`).then(showHandler, (error) => { at("handler").textContent = reason(error); });
    }
    return run.completed_at !== null;
  } catch (error) {
    for (const one of document.querySelectorAll("[data-shown]")) one.hidden ||= error.status === 401;
    if (error.status !== 401) say(reason(error), "link");
    if (error.status === 404) at("headline").textContent = "No such run";
    return error.status === 404;
  }
}

/** Look again and again until it ended; then it never changes. */
async function watch() {
  const isOver = !document.hidden && at("token-form").hidden && (await look());
  if (!isOver) setTimeout(watch, EVERY_MS);
}

at("items-fold").addEventListener("toggle", look);
onToken(look);
watch();
