// The audit page. Texts go in as texts; there is no markup in what others wrote.
"use strict";

(() => {
  const editor = acquireVsCodeApi();
  const at = (id) => document.getElementById(id);
  const form = at("filter");
  const body = at("lines");
  let next;
  let size = 0;
  let shown = 0;

  const ask = (after) => editor.postMessage({ kind: "entries", filter: Object.fromEntries(new FormData(form)), after });
  const open = (index) => editor.postMessage({ kind: "entry", index });

  function add(line) {
    const row = body.insertRow();
    row.tabIndex = 0;
    row.dataset.index = String(line.index);
    row.dataset.result = line.result;
    const time = line.at.replace("T", " ").replace(/\.\d+Z$/, "");
    for (const text of [String(line.index), time, line.result, line.who, line.what, line.why]) {
      const cell = row.insertCell();
      cell.textContent = text;
      cell.title = text;
    }
    row.addEventListener("click", () => open(line.index));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter") open(line.index);
      if (event.key === "ArrowDown") row.nextElementSibling?.focus();
      if (event.key === "ArrowUp") row.previousElementSibling?.focus();
    });
  }

  const heard = {
    entries(message) {
      if (!message.more) body.replaceChildren();
      message.lines.forEach(add);
      next = message.next;
      at("more").hidden = next === null || next === undefined;
      at("empty").hidden = body.rows.length > 0;
      shown = size;
      at("grown").textContent = "";
    },
    entry(message) {
      at("one").hidden = false;
      at("title").textContent = `Entry ${message.index}`;
      at("proof").textContent = message.message;
      at("proof").className = message.proven ? "proven" : "unproven";
      at("leaf").textContent = `Leaf ${message.leaf}`;
      at("entry").textContent = message.entry;
      for (const row of body.rows) row.setAttribute("aria-selected", String(row.dataset.index === String(message.index)));
    },
    grown(message) {
      size = message.size;
      const scrolled = at("left").scrollTop > 0;
      if (size !== shown && !scrolled) ask();
      else if (size !== shown) at("grown").textContent = "There are newer entries; press Filter to see them";
    },
    wanted(message) {
      if (message.text !== undefined) form.elements.text.value = message.text;
      ask();
      if (message.index !== undefined) open(message.index);
    },
    failed(message) {
      at("grown").textContent = message.message;
    },
  };

  window.addEventListener("message", ({ data }) => heard[data.kind]?.(data));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("more").addEventListener("click", () => ask(next));
  editor.postMessage({ kind: "ready" });
})();
