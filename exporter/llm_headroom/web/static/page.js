// Keeps the page up to date: each event brings the parts that have changed. What a reader has opened, focused or
// selected stays, since only the nodes that differ are touched.
"use strict";

const main = document.querySelector("main");
const live = document.getElementById("live");
const said = document.getElementById("said");
const icon = document.querySelector("link[rel=icon]");
const ICONS = { good: "icon", warn: "icon-warn", bad: "icon-bad", unknown: "icon-warn" };
const MARKS = { warn: "▲ ", bad: "■ " };
const REOPEN = 10000; // ms; an EventSource tries again by itself unless the server has refused it
const SILENCE = 60000; // ms; a connection that a network or a sleeping laptop has lost shows in nothing else

let behind = Number(main.dataset.time) * 1000 - Date.now(); // of the server's clock against this one, in ms
let source = null;
let reopening = 0;
let heard = Date.now();
let order = null; // keys of all parts, as the server sent them
const sorting = {}; // by list: the column's index, and whether it goes down
const filters = {};

// Time ----------------------------------------------------------------------------------------------------------------
function span(seconds) {
  if (seconds < 120) return `${Math.max(Math.round(seconds), 0)}\u00a0s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)}\u00a0min`;
  const minutes = Math.floor((seconds % 3600) / 60);
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}\u00a0h${minutes ? ` ${minutes}\u00a0min` : ""}`;
  return `${Math.round(seconds / 86400)}\u00a0d`;
}

function tick(root) {
  const now = (Date.now() + behind) / 1000;
  for (const time of root.querySelectorAll("time[data-at]")) {
    const text = span(now - Number(time.dataset.at));
    if (time.firstChild?.data !== text) time.textContent = text;
  }
}

// Parts ---------------------------------------------------------------------------------------------------------------
const part = (key) => main.querySelector(`[data-id="${key}"]`);

function made(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  tick(template.content);
  return template.content.firstElementChild;
}

// Makes a node the same as another one, keeping every part of it that is the same already.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return undefined;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const wanted = new Set([...fresh.childNodes].map(kin));
  const spare = [...old.childNodes].filter((node) => wanted.has(kin(node)) || node.remove());
  let place = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const at = spare.findIndex((each) => kin(each) === kin(node));
    const [same] = at < 0 ? [node] : spare.splice(at, 1);
    if (same === place) place = place.nextSibling;
    else old.insertBefore(same, place);
    if (same !== node) morph(same, node);
  }
  spare.forEach((node) => node.remove());
  return undefined;
}

// What makes two children of the same parent one and the same: their kind, and their heading if they have one.
function kin(node) {
  return `${node.nodeName} ${node.querySelector?.(":scope > h4")?.firstChild.data ?? ""}`;
}

const FRAMES = ["summary", "engines", "gpus", "absent"];

function show(event) {
  const { time, title, level, order: keys, parts } = JSON.parse(event.data);
  heard = Date.now();
  behind = time * 1000 - heard;
  order = keys ?? order;
  const fresh = new Map(Object.entries(parts).map(([key, html]) => [key, made(html)]));
  for (const key of FRAMES) {
    if (!fresh.has(key)) continue;
    const [before, after] = [part(key), fresh.get(key)];
    if (key === "summary" || key === "absent") morph(before, after);
    else if (list(key[0]).nodeName !== after.querySelector("[data-list]").nodeName) before.replaceWith(after);
    // else the frame is as it was: only cards and a table, or nothing yet, have different ones
  }
  for (const [key, node] of fresh) {
    if (FRAMES.includes(key)) continue;
    const old = part(key);
    if (old && old.nodeName === node.nodeName) morph(old, node);
    else if (old) old.replaceWith(node);
    else list(key[0])?.append(node);
  }
  if (keys) for (const old of main.querySelectorAll("[data-list] > [data-id]")) if (!keys.includes(old.dataset.id)) old.remove();
  arrange("e");
  arrange("g");
  headline(title, level);
  state("live", "live");
}

function headline(title, level) {
  const text = `${MARKS[level] ?? ""}${title} – llm-headroom`;
  if (document.title === text) return;
  document.title = text;
  said.textContent = title; // for those who hear the page: how many are in trouble, not every number
  const href = `static/${ICONS[level]}.svg`;
  if (icon.getAttribute("href") !== href) icon.setAttribute("href", href);
}

// Lists ---------------------------------------------------------------------------------------------------------------
const list = (kind) => main.querySelector(`[data-list="${kind}"]`);

function arrange(kind) {
  const place = list(kind);
  if (!place) return;
  const keys = order ?? [...place.children].map((child) => child.dataset.id ?? "");
  let nodes = keys.filter((key) => key[0] === kind && !FRAMES.includes(key)).map(part).filter(Boolean);
  if (place.nodeName === "TABLE") nodes = sorted(kind, place, nodes);
  nodes.forEach((node, index) => {
    const next = index ? nodes[index - 1].nextElementSibling : place.querySelector(":scope > [data-id]");
    if (next !== node) place.insertBefore(node, next);
  });
}

function sorted(kind, table, nodes) {
  const by = sorting[kind];
  const words = (filters[kind] ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const node of nodes) {
    const text = node.rows[0].textContent.toLowerCase();
    node.hidden = !words.every((word) => text.includes(word));
    shown += node.hidden ? 0 : 1;
  }
  const count = main.querySelector(`[data-shown="${kind}"]`);
  const counted = shown === nodes.length ? `${shown} shown` : `${shown} of ${nodes.length} shown`;
  if (count && count.textContent !== counted) count.textContent = counted;
  const search = main.querySelector(`[data-filter="${kind}"]`);
  if (search && search.value !== (filters[kind] ?? "") && document.activeElement !== search) search.value = filters[kind];
  table.querySelectorAll("thead th").forEach((head, index) => {
    if (by?.column === index) head.setAttribute("aria-sort", by.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  if (!by) return nodes;
  const number = table.querySelectorAll("thead th")[by.column].classList.contains("number");
  const value = (node) => node.rows[0].cells[by.column].dataset.v;
  const compare = (a, b) => (number ? Number(a) - Number(b) : a.localeCompare(b));
  return [...nodes].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // unknown last, always
    return by.down ? compare(y, x) : compare(x, y);
  });
}

main.addEventListener("input", (event) => {
  const kind = event.target.dataset.filter;
  if (kind === undefined) return;
  filters[kind] = event.target.value;
  arrange(kind);
});

main.addEventListener("click", (event) => {
  const button = event.target.closest("[data-sort]");
  if (button) {
    const kind = button.closest("[data-list]").dataset.list;
    const column = Number(button.dataset.sort);
    const first = button.parentElement.classList.contains("number"); // of numbers the greatest first
    const before = sorting[kind];
    if (before?.column !== column) sorting[kind] = { column, down: first };
    else if (before.down === first) before.down = !first;
    else delete sorting[kind];
    arrange(kind);
    return;
  }
  const link = event.target.closest("a[data-look]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const query = link.getAttribute("href").split("#")[0];
  history.replaceState(null, "", query === "?" ? location.pathname : query);
  wanted = link.closest("tbody, article") ? "" : link.dataset.look;
  open();
});

let wanted = ""; // the card to be brought into sight as soon as it is there

function reveal() {
  const node = wanted && document.getElementById(wanted);
  if (!node) return;
  wanted = "";
  node.scrollIntoView({ block: "start" });
}

// Values of charts under the pointer ----------------------------------------------------------------------------------
const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
const needle = Object.assign(document.createElement("div"), { id: "needle", hidden: true });
document.body.append(needle, tip);

function amount(value, unit) {
  const short = (number) => Number(number.toPrecision(3)).toLocaleString("en");
  switch (unit) {
    case "ratio":
      return `${Math.round(value * 100)}%`;
    case "bytes":
      return `${short(value / 2 ** 30)} GiB`;
    case "watts":
      return `${Math.round(value)} W`;
    case "seconds":
      return value < 0.1 ? `${short(value * 1000)} ms` : `${short(value)} s`;
    default:
      return short(value);
  }
}

function point(event) {
  const chart = event.target.closest?.("svg.chart");
  tip.hidden = needle.hidden = !chart;
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * 1000;
  const { top, unit } = chart.closest("figure").dataset;
  const seconds = Number(chart.closest("[data-span]").dataset.span);
  const nearest = new Map();
  for (const line of chart.querySelectorAll("polyline")) {
    for (const { x: at, y } of line.points) {
      const far = Math.abs(at - x);
      if (far < (nearest.get(line.dataset.name)?.far ?? 30)) nearest.set(line.dataset.name, { far, at, y });
    }
  }
  const values = [...nearest].map(([name, { y }]) => `${name} ${amount((1 - y / 1000) * Number(top), unit)}`);
  tip.textContent = `${span(seconds * (1 - x / 1000))} ago: ${values.join(", ") || "no value"}`;
  needle.style.cssText = `left:${event.pageX}px;top:${box.top + scrollY}px;height:${box.height}px`;
  tip.style.cssText = `left:${Math.min(event.pageX, innerWidth - 180)}px;top:${box.bottom + scrollY + 4}px`;
}
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);

// The stream ----------------------------------------------------------------------------------------------------------
function state(kind, text) {
  document.body.classList.toggle("lost", kind === "lost");
  live.className = kind;
  if (live.textContent !== text) live.textContent = text;
}

function close() {
  clearTimeout(reopening);
  source?.close();
  source = null;
}

function open() {
  close();
  heard = Date.now();
  const query = new URLSearchParams(location.search);
  query.set("form", "page");
  source = new EventSource(`api/v1/stream?${query}`);
  source.onmessage = (event) => {
    show(event);
    reveal();
  };
  source.onerror = () => {
    state("lost", "connection lost");
    if (source?.readyState === EventSource.CLOSED) reopening = setTimeout(open, REOPEN);
  };
}

// A page that nobody sees costs nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
setInterval(() => {
  tick(document);
  if (source && Date.now() - heard > SILENCE) open();
}, 1000);
arrange("e");
arrange("g");
open();
