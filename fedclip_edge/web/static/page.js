// Live updates, sorting and filtering. Without this file the page shows the same content, still.

const body = document.body;
const lost = document.getElementById("lost");

// Live updates: elements of the page, by id, as HTML that the server has escaped.
let since = body.dataset.since;
let source = null;
let since_when = null;

function place(id, html) {
  const old = document.getElementById(id);
  if (!html) {
    old?.remove();
    return;
  }
  const template = document.createElement("template");
  template.innerHTML = html;
  const fresh = template.content.firstElementChild;
  if (old) {
    // A part that a person has opened stays open.
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(fresh);
    if (focused?.tagName === "A") {  // the same link, if it is still there and has a name
      const link = focused.id ? `#${CSS.escape(focused.id)}` : "a";
      fresh.querySelector(link)?.focus({ preventScroll: true });
    }
  } else if (fresh.tagName === "TR") {
    document.querySelector("table[data-live] tbody")?.append(fresh);
  }
}

function connect() {
  if (source || !since || document.hidden) return;
  source = new EventSource(`/events?since=${encodeURIComponent(since)}`);
  source.onopen = () => { lost.hidden = true; since_when = null; };
  source.onmessage = (message) => {
    since = message.lastEventId || since;
    const changed = JSON.parse(message.data);
    for (const [id, html] of Object.entries(changed)) place(id, html);
    tell_ages();
    for (const table of document.querySelectorAll("table[data-live]")) arrange(table);
  };
  source.onerror = () => {
    since_when ??= new Date().toLocaleTimeString();
    lost.textContent = `No connection since ${since_when}: this page shows what was known then.`;
    lost.hidden = false;
    if (source.readyState === EventSource.CLOSED) {  // the server answered with an error
      source = null;
      fetch(`/events?since=none`, { method: "HEAD" }).then((answer) => {
        if (answer.status === 401) location.assign("/login");
      }).catch(() => {});
      setTimeout(connect, 3000);
    }
  };
}

function disconnect() {
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => document.hidden ? disconnect() : connect());
addEventListener("pagehide", disconnect);  // before the next page asks for anything
addEventListener("pageshow", (shown) => { if (shown.persisted) connect(); });

// Times are sent once; their age grows here.
function tell_ages() {
  const now = Date.now() / 1000;
  for (const time of document.querySelectorAll("time[data-at]")) {
    const age = Math.max(0, now - Number(time.dataset.at));
    const text = age >= 7200 ? `${Math.round(age / 3600)} h`
      : age >= 120 ? `${Math.round(age / 60)} min` : age >= 10 ? `${10 * Math.floor(age / 10)} s` : "now";
    if (time.textContent !== text) time.textContent = text;
  }
}

// Sorting and filtering.
function key_of(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.key ?? cell.textContent.trim();
  const number = Number(value);
  return value === "" || Number.isNaN(number) ? value : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;  // what is not known comes last
}

function arrange(table) {
  const head = table.querySelector("th[aria-sort]");
  const column = head ? head.cellIndex : Number(table.dataset.first ?? 1);
  const sign = head?.getAttribute("aria-sort") === "descending" ? -1 : 1;
  const words = (table.closest("section")?.querySelector("input[type=search]")?.value ?? "")
    .toLowerCase().split(/\s+/).filter(Boolean);
  const section = table.tBodies[0];
  const rows = [...section.rows];
  let shown = 0;
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : "";
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  const count = table.closest("section")?.querySelector("output");
  if (count) count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  if (section.contains(document.activeElement)) return;  // a row must not move away from the keyboard
  const keyed = rows.map((row) => [key_of(row, column), key_of(row, 0), row]);
  keyed.sort((a, b) => sign * compare(a[0], b[0]) || compare(a[1], b[1]));
  if (keyed.some(([, , row], place) => rows[place] !== row)) {
    section.append(...keyed.map(([, , row]) => row));
  }
}

for (const table of document.querySelectorAll("table[data-sort]")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      arrange(table);
    });
  }
  const tools = table.closest("section")?.querySelector(".tools");
  if (tools) tools.hidden = false;
  tools?.querySelector("input[type=search]")?.addEventListener("input", () => arrange(table));
}

tell_ages();
setInterval(tell_ages, 5000);
setTimeout(connect, 500);
