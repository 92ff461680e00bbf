"use strict";

// Sorts and filters what the server wrote, and fetches it again every half minute.
const table = document.getElementById("fleet");
const find = document.getElementById("find");
const health = document.getElementById("health");
const REFRESH_MS = 30000;
let order = { column: -1, step: 1 };

const rows = () => [...table.tBodies[0].rows];
const key = (row) => row.cells[order.column].dataset.key;

function apply() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows()) {
    const text = row.textContent.toLowerCase();
    const fits = words.every((word) => text.includes(word));
    row.hidden = !fits || (health.value !== "" && row.dataset.state !== health.value);
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = shown;
  document.getElementById("none").hidden = shown > 0;
}

function sort() {
  if (order.column < 0) return;
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const sorted = rows().sort((a, b) => order.step * compare(key(a), key(b)));
  table.tBodies[0].append(...sorted);
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const direction = order.step > 0 ? "ascending" : "descending";
    cell.setAttribute("aria-sort", column === order.column ? direction : "none");
  });
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("./");
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    table.tBodies[0].replaceWith(page.getElementById("fleet").tBodies[0]);
    document.getElementById("now").replaceWith(page.getElementById("now"));
    sort();
    apply();
  } catch {
    document.getElementById("now").textContent += " (the backend does not answer)";
  }
}

[...table.tHead.rows[0].cells].forEach((cell, column) => {
  cell.querySelector("button").addEventListener("click", () => {
    order = { column, step: order.column === column ? -order.step : 1 };
    sort();
  });
});
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
find.addEventListener("input", apply);
health.addEventListener("change", apply);
setInterval(refresh, REFRESH_MS);
