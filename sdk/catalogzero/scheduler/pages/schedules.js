"use strict";

const EVERY_MS = 2000;
const SHOWN = 50;
const at = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") ?? "";

/** One request of the API; asks for the token when one is needed. */
async function ask(method, path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { method, headers });
  if (answer.status === 401) {
    at("token-form").hidden = false;
    at("main").hidden = true;
  }
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error.message);
  return told;
}

/** An element with a text, never markup. */
function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function row(cells, key) {
  const made = document.createElement("tr");
  made.dataset.key = key;
  made.append(...cells);
  return made;
}

function when(moment) {
  return moment ? new Date(moment).toLocaleString() : "–";
}

function button(label, job, method, path) {
  const made = element("button", label);
  made.setAttribute("aria-label", `${label} ${job}`);
  made.addEventListener("click", () => act(made, method, path));
  return made;
}

async function act(pressed, method, path) {
  pressed.disabled = true;
  try {
    await ask(method, path);
    await refresh();
  } catch (error) {
    at("state").textContent = error.message;
  } finally {
    pressed.disabled = false;
  }
}

function scheduleRow(one) {
  const place = `/api/schedules/${encodeURIComponent(one.id)}`;
  const actions = document.createElement("td");
  const turn = one.paused ? "resume" : "pause";
  actions.append(
    button("Run now", one.id, "POST", `${place}/run`),
    button(one.paused ? "Resume" : "Pause", one.id, "POST", `${place}/${turn}`),
  );
  return row([
    element("td", one.id),
    element("td", `${one.handler_id}.${one.method_name}`),
    element("td", one.trigger),
    element("td", one.paused ? "paused" : when(one.next_fire_time)),
    actions,
  ], one.id);
}

function executionRow(one) {
  const took = one.duration_ms === null ? "" : `${Math.round(one.duration_ms)} ms`;
  const more = one.ticks && one.ticks.count > 1 ? ` × ${one.ticks.count}` : "";
  const late = one.late ? " (late)" : "";
  const text = one.error ?? (one.result === null ? "" : JSON.stringify(one.result));
  return row([
    element("td", when(one.started_at)),
    element("td", one.job_id),
    element("td", `${one.handler_id}.${one.method_name}`),
    element("td", one.status + more + late, one.status),
    element("td", took),
    element("td", text.slice(0, 300), "text"),
  ], one.execution_id);
}

function handlerItem(one) {
  const made = element("li", `${one.id} at ${one.address}: `);
  made.append(element("span", one.status, one.status));
  return made;
}

async function refresh() {
  const status = at("status").value;
  const query = `limit=${SHOWN}${status ? `&status=${status}` : ""}`;
  const [schedules, executions, handlers] = await Promise.all([
    ask("GET", "/api/schedules"),
    ask("GET", `/api/executions?${query}`),
    ask("GET", "/api/handlers"),
  ]);
  at("schedules").replaceChildren(...schedules.schedules.slice(0, 500).map(scheduleRow));
  at("executions").replaceChildren(...executions.records.map(executionRow));
  at("handlers").replaceChildren(...handlers.handlers.map(handlerItem));
  at("token-form").hidden = true;
  at("main").hidden = false;
  at("state").textContent =
    `${schedules.count} schedules, looked at ${new Date().toLocaleTimeString()}`;
}

/** Look again and again, while somebody watches and uses no button. */
async function watch() {
  try {
    if (!document.hidden && !document.activeElement?.closest("tbody")) await refresh();
  } catch (error) {
    at("state").textContent = error.message;
  }
  setTimeout(watch, EVERY_MS);
}

at("status").addEventListener("change", () => refresh());
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  sessionStorage.setItem("token", token);
  refresh().catch((error) => { at("state").textContent = error.message; });
});
watch();
