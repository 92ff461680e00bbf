// One run's page: what it came to, its result as a table, why it failed, and the uploads that it made.

import {
  count, duration, element, handlerLink, known, mark, megabytes, milliseconds, nothing, outcomeTone, put, putMark, replace, table,
  zoned,
} from "./format.js";
import { Refused, follow, read } from "./live.js";
import { askToken } from "./signals.js";

const $ = (id) => document.getElementById(id);
const [, , handlerId, , runId] = location.pathname.split("/").map(decodeURIComponent);
const path = `/api/handlers/${encodeURIComponent(handlerId)}/runs/${encodeURIComponent(runId)}`;
const AGAIN_MS = 4000;
const ROWS_SHOWN = 200;
const COLUMNS_SHOWN = 8;
/** What became of an upload: how it looks, and what it is called; any other state waits. */
const SENT = {
  done: ["ok", "arrived"], dead: ["fail", "refused for good"], superseded: ["same", "a newer one took its place"],
  abandoned: ["off", "given up"],
};
const view = { askedAt: 0, ended: false };

async function refresh({ now = false } = {}) {
  if (document.hidden || (!now && (view.ended || Date.now() - view.askedAt < AGAIN_MS))) return;
  view.askedAt = Date.now();
  try {
    draw(await read(path));
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) return;
    putMark($("state"), error.status === 503 ? "gone" : "off", error.status === 503 ? "no answer" : "unknown");
    put($("sub"), error.status === 503 ? error.message : `${error.message}. A handler keeps its last runs only.`);
    document.title = `Run ${runId}: unknown · catalogzero`;
  }
}

function draw({ run, at }) {
  const { state, words, rows } = run.outcome ?? { state: run.status, words: run.error ?? run.status, rows: null };
  // What waits may still arrive: it is asked for again.
  view.ended = Boolean(run.ended_at) && !(run.uploads ?? []).some(({ state: one }) => !(one in SENT));
  put($("name"), run.method);
  putMark($("state"), outcomeTone(state), state);
  document.title = `${state === "failed" ? "◆ " : ""}${run.method}: ${state} · catalogzero`;
  const began = run.started_at ?? run.received_at;
  const took = run.started_at ? (Date.parse(run.ended_at ?? at) - Date.parse(run.started_at)) / 1000 : null;
  const shownTook = took === null ? "waits for its place" : took < 10 ? milliseconds(Math.max(0, took) * 1000) : duration(took);
  put($("sub"), [state === "failed" ? "" : words, `began ${zoned(began, at)}`, run.ended_at ? `took ${shownTook}` : `${shownTook} so far`].filter(Boolean).join(" · "));
  $("failure").hidden = !run.error;
  put($("error"), run.error ?? "");
  $("trace").hidden = !run.traceback;
  put($("traceback"), run.traceback ?? "");
  $("parts").hidden = false;
  const shown = run.result ?? (run.ended_at ? undefined : run.progress);
  replace($("result"), ...readable(shown, run.ended_at ? "It returned nothing, or nothing that is kept." : "It runs."));
  const called = [
    ["Method", element("code", {}, run.method)], ["Handler", handlerLink(handlerId)],
    ...Object.entries(run.params ?? {}).map(([name, value]) => [name, element("code", {}, textOf(value))]),
    ["Began", zoned(began, at)], ["Ended", zoned(run.ended_at, at)],
    ...(known(rows) ? [["Rows", count(rows)]] : []), ...(run.code ? [["Code", element("code", {}, run.code)]] : []),
    ["Run", element("span", { class: "cmd" }, element("code", {}, run.run_id), element("button", { type: "button" }, "Copy"))],
  ];
  replace($("called"), ...called.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  drawUploads(run.uploads ?? [], at);
}

function drawUploads(uploads, at) {
  $("sent").hidden = !uploads.length;
  const heads = [["Upload"], ["State", "lead"], ["Rows", "num"], ["Size", "num"], ["At the backend"]];
  replace($("uploads"), table("Uploads", heads, uploads.map((one) => [
    [element("code", {}, one.upload_id)],
    [mark(...(SENT[one.state] ?? ["wait", "waits to be sent"])), ...(one.reason ? [element("small", {}, textOf(one.reason))] : [])],
    [count(one.records)], [megabytes(known(one.bytes) ? one.bytes / 1048576 : null)], [zoned(one.completed_at, at)],
  ])));
}

const textOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const isObject = (value) => value !== null && typeof value === "object";

/** A result as people read it: names and values, lists of objects as tables. */
function readable(value, otherwise) {
  if (value === undefined || value === null) return [nothing(otherwise)];
  if (!isObject(value)) return [element("p", { class: "pad" }, textOf(value))];
  if (Array.isArray(value)) return [listOf(value, "Result")];
  const plain = Object.entries(value).filter(([, one]) => !(Array.isArray(one) && one.some(isObject)));
  const lists = Object.entries(value).filter(([, one]) => Array.isArray(one) && one.some(isObject));
  return [
    ...(plain.length ? [element("dl", { class: "pairs pad" }, ...plain.flatMap(([name, one]) => [element("dt", {}, name), element("dd", {}, isObject(one) ? element("code", {}, textOf(one)) : textOf(one))]))] : []),
    ...lists.flatMap(([name, one]) => [element("h3", { class: "pad" }, name), listOf(one, name)]),
  ];
}

function listOf(list, name) {
  if (!list.some(isObject)) return element("p", { class: "pad" }, list.map(textOf).join(", ") || "an empty list");
  const keys = [...new Set(list.slice(0, ROWS_SHOWN).flatMap((one) => (isObject(one) ? Object.keys(one) : [])))].slice(0, COLUMNS_SHOWN);
  const rows = list.slice(0, ROWS_SHOWN).map((one) => keys.map((key) => [isObject(one) && known(one[key]) ? textOf(one[key]) : "–"]));
  const made = table(name, keys.map((key) => [key]), rows);
  return list.length > ROWS_SHOWN ? element("div", {}, made, nothing(`${count(list.length - ROWS_SHOWN)} more`)) : made;
}

function connected(state, detail) {
  if (state === "refused") askToken(detail).then((given) => given && link.resume());
}

put($("crumb"), `run ${runId}`);
$("handler").replaceWith(handlerLink(handlerId));
const link = follow((event) => refresh({ now: event === "snapshot" }), connected);
