"use strict";
(() => {
  const all = (root, query) => [...root.querySelectorAll(query)];
  const root = document.documentElement;

  const themes = ["system", "light", "dark"];
  const button = document.getElementById("theme");
  const remembered = (value) => {
    // A file opened from disk may have no storage; the choice then lasts until the page is left.
    try {
      if (value !== undefined) sessionStorage.setItem("theme", value);
      return sessionStorage.getItem("theme");
    } catch { return null; }
  };
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    button.textContent = `Theme: ${name}`;
    button.dataset.name = name;
  };
  setTheme(themes.includes(remembered()) ? remembered() : "system");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(button.dataset.name) + 1) % themes.length];
    setTheme(next);
    remembered(next);
  });

  const order = new Intl.Collator("en", { numeric: true });
  const sortBy = (table, head, column) => {
    const old = head.getAttribute("aria-sort");
    const text = head.dataset.kind === "text";
    const first = text || "lower" in head.dataset ? "ascending" : "descending";
    const way = !old ? first : old === "ascending" ? "descending" : "ascending";
    all(table, "th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[column];
      return [row, cell.dataset.v === undefined ? cell.textContent : cell.dataset.v];
    });
    keyed.sort(([, a], [, b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const x = Number(a), y = Number(b);
      return sign * (Number.isNaN(x) || Number.isNaN(y) ? order.compare(a, b) : x - y);
    });
    body.append(...keyed.map(([row]) => row));
  };
  for (const table of all(document, "main table:not(.glance)")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => sortBy(table, head, column));
    });
  }

  for (const section of all(document, "section.table")) {
    const table = section.querySelector("table.all");
    const rows = [...table.tBodies[0].rows];
    const count = section.querySelector(".count");
    const heads = [...table.tHead.rows[1].cells];
    section.querySelector(".controls").hidden = false;
    section.querySelector(".filter").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.cells[0].textContent.toLowerCase();
        const keep = words.every((word) => text.includes(word));
        row.classList.toggle("off", !keep);
        shown += keep;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
    for (const box of all(section, "input.part")) {
      box.addEventListener("change", () => {
        const hide = !box.checked;
        all(table, "thead th").filter((th) => th.dataset.part === box.value).forEach((th) => th.classList.toggle("off", hide));
        heads.forEach((head, column) => {
          if (head.dataset.part === box.value) [...rows, ...table.tFoot?.rows ?? []].forEach((row) => row.cells[column].classList.toggle("off", hide));
        });
        all(section, "[data-legend]").filter((li) => li.dataset.legend === box.value).forEach((li) => li.classList.toggle("off", hide));
      });
    }
  }

  for (const block of all(document, ".charts.choice")) {
    const figures = all(block, "figure");
    const select = document.createElement("select");
    const label = document.createElement("label");
    figures.forEach((figure) => select.add(new Option(figure.dataset.chart)));
    const show = () => figures.forEach((figure, n) => figure.classList.toggle("off", n !== select.selectedIndex));
    label.append("Against ", select);
    block.before(label);
    block.classList.add("live");
    select.addEventListener("change", show);
    show();
  }

  const tip = document.getElementById("tip");
  const showTip = (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = mark.getBoundingClientRect();
    const left = Math.min(Math.max(box.left, 8), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 8}px`;
  };
  document.addEventListener("pointerover", showTip);
  document.addEventListener("focusin", showTip);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  addEventListener("beforeprint", () => all(document, ".banner details").forEach((part) => { part.open = true; }));

  // One stop of the Tab key a chart: arrows, Home and End move between its marks.
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const move = (mark, step) => {
    const marks = all(mark.closest("svg"), ".mark");
    const next = marks[Math.min(Math.max(marks.indexOf(mark) + step, 0), marks.length - 1)];
    mark.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  };
  document.addEventListener("keydown", (event) => {
    if (!(event.key in moves) || !event.target.matches(".mark")) return;
    event.preventDefault();
    move(event.target, moves[event.key]);
  });

  // What a link can ask for: #sort=<table>,<column>[,<times>], #filter=<table>,<words>, #theme=<name>; joined by &.
  const asked = new URLSearchParams(location.hash.slice(1));
  const tables = all(document, "section.table");
  const [at, column, times] = (asked.get("sort") || "").split(",").map(Number);
  if (tables[at - 1]) {
    const head = tables[at - 1].querySelector("table.all thead").rows[1].cells[column];
    for (let n = 0; head && n < (times || 1); n += 1) head.querySelector("button").click();
  }
  const [which, ...words] = (asked.get("filter") || "").split(",");
  if (tables[which - 1]) {
    const box = tables[which - 1].querySelector(".filter");
    box.value = words.join(",");
    box.dispatchEvent(new Event("input"));
  }
  if (themes.includes(asked.get("theme"))) setTheme(asked.get("theme"));
})();
