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

function makeGrid(table) {
  table.setAttribute("role", "grid");
  for (const part of table.querySelectorAll("thead, tbody, tfoot")) part.setAttribute("role", "rowgroup");
  for (const row of table.rows) row.setAttribute("role", "row");
  const cells = [...table.querySelectorAll("th, td")];
  for (const cell of cells) {
    cell.setAttribute("role", cell.scope === "col" ? "columnheader" : cell.scope === "row" ? "rowheader" : "gridcell");
    cell.tabIndex = -1;
  }
  let current = cells[0];
  let column = 0;
  if (current) current.tabIndex = 0;
  const choose = (cell) => {
    current.tabIndex = -1;
    current = cell;
    current.tabIndex = 0;
  };
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("th, td");
    if (cell) choose(cell);
  });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("th, td");
    if (!cell || !(event.key in STEPS || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const here = cellsOf(cell.parentElement).find((each) => each.cell === cell);
    if (column < here.start || column >= here.stop) column = here.start;
    const target = cellFor(event, table, cell, column);
    if (!target) return;
    if (!(event.key in STEPS) || STEPS[event.key][1]) {
      column = cellsOf(target.parentElement).find((each) => each.cell === target).start;
    }
    target.focus();
  });
}

function makeGrids() {
  for (const table of document.querySelectorAll("table[data-grid]")) makeGrid(table);
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
  const scrolled = [...main.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  const opened = [...main.querySelectorAll("details")].map((each) => each.open);
  main.replaceChildren(...newer.childNodes);
  main.dataset.version = newer.dataset.version;
  [...main.querySelectorAll(".scroll")].forEach((each, index) => {
    if (scrolled[index]) [each.scrollLeft, each.scrollTop] = scrolled[index];
  });
  [...main.querySelectorAll("details")].forEach((each, index) => {
    if (index in opened) each.open = opened[index];
  });
  makeGrids();
  const focused = way && follow(main, way);
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
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const newer = page.querySelector("main");
      if (newer && !paused && !isEdited()) {
        replaceMain(main, newer);
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
