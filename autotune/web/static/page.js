"use strict";
// Sorting, copying as CSV, moving in a map by arrow keys, and live parts. Every page reads well without it.

const state = new URL(location.href).searchParams;

function keep(name, value) {
  const url = new URL(location.href);
  url.searchParams.set(name, value);
  history.replaceState(null, "", url);
  state.set(name, value);
}

function shown(cell) {
  return cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ");
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function order(table, column, down) {
  const body = table.tBodies[0];
  const key = (row) => shown(row.cells[column]);
  const number = (text) => (text === "" ? NaN : Number(text.replace(/[+%×]/g, "")));
  const rows = [...body.rows];
  const numeric = rows.some((row) => !Number.isNaN(number(key(row))));
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    const [n, m] = [number(x), number(y)];
    if (Number.isNaN(n) || Number.isNaN(m)) return Number.isNaN(n) - Number.isNaN(m);
    return down ? m - n : n - m;
  });
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    if (place === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function sortable(table) {
  const name = table.dataset.csv;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if ("still" in head.dataset) return;
    const made = button(head.textContent, () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      order(table, column, down);
      keep("sort", `${name}.${column}.${down ? "down" : "up"}`);
    });
    made.className = "sort";
    head.replaceChildren(made);
  });
  const [which, column, way] = (state.get("sort") ?? "").split(".");
  if (which === name && table.tHead.rows[0].cells[column]) order(table, Number(column), way === "down");
}

function csv(table) {
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [...table.rows].map((row) => [...row.cells].map((cell) => quote(shown(cell))).join(",")).join("\n");
}

async function copy(text, made) {
  const before = made.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page that did not come over HTTPS or loopback has no clipboard of that kind.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  made.textContent = "copied";
  setTimeout(() => (made.textContent = before), 1500);
}

function copyable(table) {
  const made = button("copy as CSV", () => copy(csv(table), made));
  made.className = "copy";
  (table.closest(".scroll") ?? table).after(made);
}

// One cell of a map is reached by Tab, the others from there by arrow keys.
function roving(table) {
  const cells = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.querySelector("a[href]")));
  const every = cells.flat().filter(Boolean);
  const rest = (link) => every.forEach((each) => (each.tabIndex = each === link ? 0 : -1));
  if (every.length) rest(every[0]);
  table.addEventListener("focusin", (event) => every.includes(event.target) && rest(event.target));
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step || !every.includes(event.target)) return;
    event.preventDefault();
    let row = cells.findIndex((each) => each.includes(event.target));
    let column = cells[row].indexOf(event.target);
    do {
      row += step[0];
      column += step[1];
    } while (cells[row] && column < cells[row].length && column >= 0 && !cells[row][column]);
    cells[row]?.[column]?.focus();
  });
}

function enhance(part) {
  part.querySelectorAll("table[data-sort]").forEach(sortable);
  part.querySelectorAll("table[data-csv]").forEach(copyable);
  part.querySelectorAll("table.map").forEach(roving);
  part.querySelectorAll(".command code").forEach((code) => {
    const made = button("copy", () => copy(code.textContent, made));
    made.className = "copy";
    code.after(made);
  });
}

function live(part) {
  const pulse = document.getElementById("pulse");
  const say = (text) => pulse.textContent !== text && (pulse.textContent = text);
  const source = new EventSource(part.dataset.events);
  source.addEventListener("open", () => say("live"));
  source.addEventListener("trouble", (event) => say(JSON.parse(event.data)));
  source.addEventListener("error", () => say("no news from the server; trying again"));
  source.addEventListener("news", (event) => {
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = JSON.parse(event.data);
    enhance(part);
    if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    say("live");
  });
}

// What is wider than its box begins where its winner is.
function look(box) {
  const found = box.querySelector(".chart .winner .dot")?.getBoundingClientRect();
  if (found) box.scrollLeft += found.left - box.getBoundingClientRect().left - box.clientWidth / 2;
}

enhance(document);
document.querySelectorAll(".scroll").forEach(look);
document.querySelectorAll("[data-events]").forEach(live);
