"use strict";
// Everything works without this script.  It makes the map a grid for the keyboard, and shows new snapshots as they come.

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The cells of a row with the columns that they span. */
function cellsOf(row) {
  let column = 0;
  return [...row.cells].map((cell) => {
    const spanned = { cell, start: column, stop: column + cell.colSpan };
    column = spanned.stop;
    return spanned;
  });
}

/** The cell that a key leads to, and the column that is kept on the way up and down. */
function cellFor(event, table, cell, column) {
  const row = cell.parentElement;
  const rows = [...table.rows];
  if (event.key === "Home" || event.key === "End") {
    const end = event.key === "End";
    const goal = event.ctrlKey ? rows[end ? rows.length - 1 : 0] : row;
    return goal.cells[end ? goal.cells.length - 1 : 0];
  }
  const [down, right] = STEPS[event.key];
  if (right) return row.cells[cell.cellIndex + right];
  const next = rows[rows.indexOf(row) + down];
  const over = next && cellsOf(next).find((each) => each.start <= column && column < each.stop);
  return over && over.cell;
}

const grids = new WeakMap(); // table -> its cell for the tab key, and the column that is kept

/** Make a table a grid, or a grid that has other rows now a whole one again. */
function makeGrid(table) {
  if (!grids.has(table)) {
    grids.set(table, { current: null, column: 0 });
    listen(table, grids.get(table));
  }
  table.setAttribute("role", "grid");
  for (const part of table.querySelectorAll(":is(thead, tbody, tfoot):not([role])")) part.setAttribute("role", "rowgroup");
  for (const row of table.querySelectorAll("tr:not([role])")) row.setAttribute("role", "row");
  for (const cell of table.querySelectorAll(":is(th, td):not([role])")) {
    cell.setAttribute("role", cell.scope === "col" ? "columnheader" : cell.scope === "row" ? "rowheader" : "gridcell");
    cell.tabIndex = -1;
  }
  const grid = grids.get(table);
  if (grid.current && table.contains(grid.current)) return;
  grid.current = table.querySelector("th, td");
  if (grid.current) grid.current.tabIndex = 0;
}

function listen(table, grid) {
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("th, td");
    if (!cell) return;
    grid.current.tabIndex = -1;
    grid.current = cell;
    cell.tabIndex = 0;
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("th, td");
    if (!cell || !(event.key in STEPS || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const here = cellsOf(cell.parentElement).find((each) => each.cell === cell);
    if (grid.column < here.start || grid.column >= here.stop) grid.column = here.start;
    const target = cellFor(event, table, cell, grid.column);
    if (!target) return;
    if (!(event.key in STEPS) || STEPS[event.key][1]) {
      grid.column = cellsOf(target.parentElement).find((each) => each.cell === target).start;
    }
    target.focus();
  });
}

function makeGrids() {
  for (const table of document.querySelectorAll("table[data-grid]")) makeGrid(table);
}

const OURS = new Set(["role", "tabindex", "open"]); // attributes that this script or the reader sets

/** Make a node say what a newer one says. What is equal stays as it is drawn: a page may have hundreds of rows. */
function patch(old, newer) {
  if (old.isEqualNode(newer)) return;
  if (old.nodeName !== newer.nodeName) {
    old.replaceWith(newer);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    old.data = newer.data;
  } else {
    patchAttributes(old, newer);
    if (old.nodeName === "TBODY") patchRows(old, newer);
    else if (old.childNodes.length !== newer.childNodes.length) old.replaceChildren(...newer.childNodes);
    else [...newer.childNodes].forEach((child, index) => patch(old.childNodes[index], child));
  }
}

function patchAttributes(old, newer) {
  for (const { name } of [...old.attributes]) {
    if (!newer.hasAttribute(name) && !OURS.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of newer.attributes) {
    if (!OURS.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

/** Rows belong together by the peer that they name; other rows by their order. */
function patchRows(old, newer) {
  const keyOf = (row) => row.querySelector("code[title]")?.title;
  const rows = [...newer.rows];
  const wanted = new Set(rows.map(keyOf));
  for (const row of [...old.rows]) if (!wanted.has(keyOf(row))) row.remove();
  const known = new Map([...old.rows].map((row) => [keyOf(row), row]));
  rows.forEach((row, index) => {
    const there = keyOf(row) === undefined ? old.rows[index] : known.get(keyOf(row));
    known.delete(keyOf(row));
    if (there === undefined || keyOf(there) !== keyOf(row)) {
      old.insertBefore(row, old.rows[index] ?? null);
      return;
    }
    if (old.rows[index] !== there) old.insertBefore(there, old.rows[index]);
    patch(there, row);
  });
  while (old.rows.length > rows.length) old.rows[rows.length].remove();
}

/** Where the focus is below an element, as a way of child numbers; null if it is elsewhere. */
function wayToFocus(top) {
  const way = [];
  let node = document.activeElement;
  while (node && node !== top && node.parentElement) {
    way.unshift([...node.parentElement.children].indexOf(node));
    node = node.parentElement;
  }
  return node === top && way.length ? way : null;
}

function follow(top, way) {
  return way.reduce((node, index) => node && node.children[index], top);
}

/** Put the newer page in, with focus, scrolling and opened details as they were. */
function replaceMain(main, newer) {
  const way = wayToFocus(main);
  const before = document.activeElement;
  const scrolled = [...main.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  const opened = [...main.querySelectorAll("details")].map((each) => each.open);
  patch(main, newer);
  [...main.querySelectorAll(".scroll")].forEach((each, index) => {
    if (scrolled[index]) [each.scrollLeft, each.scrollTop] = scrolled[index];
  });
  [...main.querySelectorAll("details")].forEach((each, index) => {
    if (index in opened) each.open = opened[index];
  });
  makeGrids();
  const focused = way && (main.contains(before) ? before : follow(main, way));
  if (focused) focused.focus({ preventScroll: true });
}

function keepFresh(main) {
  const status = document.createElement("span");
  status.setAttribute("role", "status");
  const button = document.createElement("button");
  button.type = "button";
  const line = document.createElement("p");
  line.id = "live";
  line.append(button, " ", status);
  document.querySelector("footer").prepend(line);

  let paused = false;
  let fetching = false;
  const isEdited = () => main.contains(document.activeElement) && document.activeElement.matches("input, select");
  const say = () => {
    button.textContent = paused ? "Go on updating" : "Pause updates";
    status.textContent = paused ? "This page is not updated." : "";
  };

  const update = async (version) => {
    if (paused || fetching || isEdited() || String(version) === main.dataset.version) return;
    fetching = true;
    try {
      const answer = await fetch(location.href);
      if (!answer.ok) {
        status.textContent = `The dashboard cannot say how it is now (${answer.status}): this page is old.`;
        return;
      }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const newer = page.querySelector("main");
      if (newer && !paused && !isEdited()) {
        replaceMain(main, newer);
        const [made, newerMade] = [document, page].map((each) => each.querySelector("footer time"));
        patch(made, newerMade);
        status.textContent = "";
      }
    } catch {
      status.textContent = "The dashboard does not answer: this page is old.";
    } finally {
      fetching = false;
    }
  };

  button.addEventListener("click", () => {
    paused = !paused;
    say();
    if (!paused) update(null);
  });
  say();
  const source = new EventSource("/api/v1/stream");
  source.addEventListener("snapshot", (event) => update(JSON.parse(event.data).version));
  source.addEventListener("error", () => {
    if (!paused) status.textContent = "Not connected: this page may be old.";
  });
  source.addEventListener("open", () => !paused && (status.textContent = ""));
}

makeGrids();
const main = document.querySelector("main[data-version]");
if (main && window.EventSource) keepFresh(main);
