"use strict";

// Keeps the page fresh while somebody looks at it; everything else is the server's.
const REFRESH_MS = 30000;

async function refresh() {
  if (document.hidden) return;
  const live = document.getElementById("live");
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = document.getElementById("main");
    const open = new Set([...main.querySelectorAll("details[open]")].map((one) => one.id));
    const busy = main.contains(document.activeElement) && document.activeElement !== main;
    if (busy) return;
    for (const one of page.querySelectorAll("details")) one.open = open.has(one.id);
    main.replaceWith(page.getElementById("main"));
    document.title = page.title;
    document.getElementById("now").replaceWith(page.getElementById("now"));
    live.textContent = "live";
    live.className = "state ok";
  } catch {
    live.textContent = "not live: the backend does not answer";
    live.className = "state fail";
  }
}

document.addEventListener("keydown", (event) => {
  const find = document.getElementById("find");
  if (event.key !== "/" || !find || document.activeElement === find) return;
  event.preventDefault();
  find.focus();
});
setInterval(refresh, REFRESH_MS);
