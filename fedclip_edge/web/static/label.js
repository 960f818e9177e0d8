// Selecting and labelling by keyboard and mouse. Without this file, check boxes and buttons do it.

const form = document.getElementById("label");
const boxes = form ? [...form.querySelectorAll("input[type=checkbox]")] : [];

function columns() {
  const top = boxes[0].closest("li").offsetTop;
  const first = boxes.findIndex((box) => box.closest("li").offsetTop !== top);
  return first < 0 ? boxes.length : first;
}

let anchor = 0;  // where a range begins

function go_to(place) {
  boxes.forEach((box, at) => { box.tabIndex = at === place ? 0 : -1; });
  boxes[place].focus({ preventScroll: true });
  boxes[place].closest("li").scrollIntoView({ block: "nearest" });
}

function select(from, to, checked) {
  for (let at = Math.min(from, to); at <= Math.max(from, to); at++) boxes[at].checked = checked;
  tell();
}

function tell() {
  const count = boxes.filter((box) => box.checked).length;
  for (const text of form.querySelectorAll(".selected")) {
    text.textContent = count === 1 ? "1 picture" : `${count || "the selected"} pictures`;
  }
  form.querySelector("button.all").textContent =
    count === boxes.length ? "Select none" : "Select all";
}

function choose(chip) {
  form.elements.typed.value = chip.value;
  for (const other of form.querySelectorAll(".chips button")) {
    other.setAttribute("aria-pressed", other === chip);
  }
}

function move(event, place) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  let to = place + (steps[event.key] ?? 0);
  if (event.key === "Home") to = 0;
  else if (event.key === "End") to = boxes.length - 1;
  else if (!(event.key in steps)) return false;
  if (to >= 0 && to < boxes.length) {
    if (event.shiftKey) select(anchor, to, true);
    else anchor = to;
    go_to(to);
  }
  return true;
}

// Returns true if the key was one of ours.
function act(event) {
  const place = boxes.indexOf(document.activeElement);
  if (place >= 0 && move(event, place)) return true;
  if (event.shiftKey) return false;
  const chip = form.querySelector(`.chips button[data-key="${CSS.escape(event.key)}"]`);
  if (event.key === "a") select(0, boxes.length - 1, true);
  else if (event.key === "Escape") select(0, boxes.length - 1, false);
  else if (event.key === "n") form.elements.typed.focus();
  else if (chip) choose(chip);
  else if (event.key === "Enter" && place >= 0) form.requestSubmit();
  else if (event.key.startsWith("Arrow") && document.activeElement === document.body) go_to(anchor);
  else return false;
  return true;
}

function is_text(element) {
  return element.matches("select, textarea, input:not([type=checkbox])");
}

if (boxes.length) {
  boxes.forEach((box, at) => { box.tabIndex = at ? -1 : 0; });
  document.getElementById("keys").hidden = false;
  const all = form.querySelector("button.all");
  all.hidden = false;
  all.addEventListener("click", () => {
    select(0, boxes.length - 1, !boxes.every((box) => box.checked));
  });
  form.addEventListener("click", (event) => {
    const place = boxes.indexOf(event.target);
    if (place < 0) return;
    if (event.shiftKey) select(anchor, place, boxes[place].checked);
    else anchor = place;
    boxes.forEach((box, at) => { box.tabIndex = at === place ? 0 : -1; });
    tell();
  });
  // Then the browser has scrolled to the pictures, and may have restored what was selected.
  addEventListener("pageshow", () => {
    tell();
    if (location.hash === "#pictures") setTimeout(() => go_to(0));
  });
  tell();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || is_text(event.target)) return;
  if (event.key === "u") document.getElementById("undo")?.requestSubmit();
  else if (!boxes.length || !act(event)) return;
  event.preventDefault();
});

// The lists are computed while the page is open. Nobody's selection is lost: a person asks for them.
const newer = document.getElementById("newer");
if (newer) {
  setInterval(() => {
    if (document.getElementById("lists").dataset.version === newer.dataset.version) return;
    if (boxes.length) newer.hidden = false;
    else location.reload();
  }, 500);
}
