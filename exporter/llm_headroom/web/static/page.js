// Keeps the page up to date: takes each event's HTML over, element by element, so that what a reader has opened,
// focused or selected stays wherever nothing has changed.
"use strict";

const main = document.querySelector("main");
const live = document.getElementById("live");
const REOPEN = 10000; // ms; an EventSource tries again by itself unless the server has refused it
const SILENCE = 60000; // ms; a connection that a network or a sleeping laptop has lost shows in nothing else

let behind = Number(main.dataset.time) * 1000 - Date.now(); // of the server's clock against this one, in ms
let source = null;
let reopening = 0;
let heard = Date.now();

function span(seconds) {
  if (seconds < 120) return `${Math.max(Math.round(seconds), 0)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} d`;
}

function tell(root) {
  const now = (Date.now() + behind) / 1000;
  for (const time of root.querySelectorAll("time[data-at]")) {
    const text = span(now - Number(time.dataset.at));
    if (time.textContent !== text) time.textContent = text;
  }
}

function carry(before, after) {
  const old = before.querySelector("details");
  const fresh = after.querySelector("details");
  if (old && fresh && old.open) fresh.open = true;
}

function replace(before, after) {
  carry(before, after);
  if (before.isEqualNode(after)) return before;
  const focused = before.querySelector("summary") === document.activeElement && document.activeElement !== null;
  before.replaceWith(after);
  if (focused) after.querySelector("summary")?.focus();
  return after;
}

// Makes the children of `before` those of `after`; elements are told apart by their data-id.
function reconcile(before, after) {
  const known = new Map([...before.children].map((child) => [child.dataset.id, child]));
  let place = null;
  for (const fresh of [...after.children]) {
    let old = known.get(fresh.dataset.id);
    known.delete(fresh.dataset.id);
    const oldGrid = old?.querySelector(".grid");
    const grid = fresh.querySelector(".grid");
    if (old && oldGrid && grid) reconcile(oldGrid, grid);
    else if (old) old = replace(old, fresh);
    else old = fresh;
    const next = place === null ? before.firstElementChild : place.nextElementSibling;
    if (next !== old) before.insertBefore(old, next);
    place = old;
  }
  for (const gone of known.values()) gone.remove();
}

function show(event) {
  const { time, body } = JSON.parse(event.data);
  heard = Date.now();
  behind = time * 1000 - heard;
  const fresh = document.createElement("template");
  fresh.innerHTML = body;
  tell(fresh.content);
  reconcile(main, fresh.content);
  tell(main);
  state("live", "live");
}

function state(kind, text) {
  live.className = kind;
  live.textContent = text;
}

function close() {
  clearTimeout(reopening);
  source?.close();
  source = null;
}

function open() {
  close();
  heard = Date.now();
  source = new EventSource("api/v1/stream?form=page");
  source.onmessage = show;
  source.onerror = () => {
    state("lost", "connection lost");
    if (source?.readyState === EventSource.CLOSED) reopening = setTimeout(open, REOPEN);
  };
}

// A page that nobody sees costs nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
setInterval(() => {
  tell(document);
  if (source && Date.now() - heard > SILENCE) open();
}, 1000);
open();
