// Fills in this catalog's own address where it is served: commands are ready to be copied then.
const main = document.getElementById("main");
if (location.protocol.startsWith("http")) {
  const catalog = new URL(main.dataset.root, location.href).href.replace(/\/$/, "");
  for (const code of document.querySelectorAll(".cmd code")) code.textContent = code.textContent.replaceAll(/"\$CATALOG([^"]*)"/g, `${catalog}$1`);
  for (const one of document.querySelectorAll("[data-address]")) one.textContent = "the address of this catalog is filled in";
}
