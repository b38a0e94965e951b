// The fleet: a tile for each device, thousands on one canvas, and the same as a table.

import { $, clock, colour, el, num, percent, plural, say, span, DASH } from "./words.js";
import { D, LANES } from "./store.js";

const PAGE = 50, TALLEST = 380;
const GLYPH = { refused: "✕", late: "!", off: "–", silent: "?", arrived: "✓", waits: "‖", downloading: "↓", uploading: "↑", training: "•" };
const WORDS = ["idle", "free", "waits", "off", ...LANES];
let store, open, size = 12, across = 1, picked = -1, hovered = -1, order = [], sorted = { by: "turnaround", down: true }, first = 0, sought = "", unnamed = true;

export function begin(theStore, theOpen) {
  store = theStore;
  open = theOpen;
  const canvas = $("tiles");
  canvas.addEventListener("mousemove", (event) => { hovered = hit(event); canvas.style.cursor = hovered >= 0 ? "pointer" : "default"; tellTile(hovered >= 0 ? hovered : picked); draw(); });
  canvas.addEventListener("mouseleave", () => { hovered = -1; tellTile(picked); draw(); });
  canvas.addEventListener("click", (event) => { const index = hit(event); if (index >= 0) { picked = index; open(order[index]); draw(); } });
  canvas.addEventListener("blur", () => draw());
  canvas.addEventListener("focus", () => { if (picked < 0 && order.length) picked = 0; tellTile(picked); draw(); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -picked, End: order.length - 1 - picked, PageDown: across * 10, PageUp: -across * 10 }[event.key];
    if (event.key === "Enter" && picked >= 0) { open(order[picked]); event.preventDefault(); }
    if (step === undefined) return;
    event.preventDefault();
    picked = Math.max(0, Math.min(order.length - 1, picked + step));
    tellTile(picked);
    draw();
  });
  $("shade").addEventListener("change", () => { if ($("shade").value === "turnaround") $("slowest").scrollIntoView({ block: "nearest" }); update(); });
  $("fleet-table").addEventListener("click", () => {
    const shown = $("devices").hidden;
    $("devices").hidden = !shown;
    $("tiles-box").hidden = shown;
    $("fleet-table").setAttribute("aria-pressed", String(shown));
    say($("fleet-table"), shown ? "As tiles" : "As a table");
    update();
  });
}

export function reset() { picked = hovered = -1; first = 0; sought = ""; unnamed = true; }

export function update() {
  const known = store.devices.filter(Boolean);
  if (order.length !== known.length || unnamed) { // in the order of their names, which stays as it is
    order = known.slice().sort((a, b) => (a[D.name] < b[D.name] ? -1 : 1)).map((device) => device[D.id]);
    unnamed = false;
  }
  const elsewhere = known.some((device) => device[D.state] > 0), online = known.filter((d) => d[D.state] === 1 || d[D.state] === 2).length;
  say($("fleet-said"), elsewhere ? `${plural(known.length, "device")}, ${num(online)} online` : plural(known.length, "device"));
  if (hovered < 0 && picked < 0) tellTile(-1);
  slowest(known);
  if ($("devices").hidden) { layOut(); draw(); key(known); } else asTable(known);
}

function layOut() {
  const canvas = $("tiles"), width = $("tiles-box").clientWidth, ratio = devicePixelRatio || 1;
  if (!width) return;
  size = Math.max(4, Math.min(34, Math.floor(Math.sqrt((width * Math.min(TALLEST, 0.5 * innerHeight)) / Math.max(1, order.length)))));
  across = Math.max(1, Math.floor(width / size));
  const height = Math.max(size, Math.ceil(order.length / across) * size);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
}

const hit = (event) => {
  const column = Math.floor(event.offsetX / size), index = Math.floor(event.offsetY / size) * across + column;
  return column < across && index >= 0 && index < order.length ? index : -1;
};

const value = (device, by) => (by === "battery" ? device[D.battery] : device[D[by]]);

/** The greatest of them but for the outermost hundredth, so that one device does not hide the others. */
function scaleOf(known, by) {
  if (by === "battery") return [0, 100];
  const found = known.map((device) => value(device, by)).filter((v) => v !== null).sort((a, b) => a - b);
  return found.length ? [found[0], found[Math.max(0, Math.ceil(found.length * 0.99) - 1)]] : [0, 1];
}

const RAMP = [[0, 34, 78], [43, 68, 110], [87, 93, 109], [125, 124, 120], [166, 157, 117], [211, 193, 100], [254, 232, 56]]; // cividis
function ramp(share) {
  const place = Math.max(0, Math.min(0.9999, share)) * (RAMP.length - 1), low = Math.floor(place), part = place - low;
  return `rgb(${RAMP[low].map((c, k) => Math.round(c + (RAMP[low + 1][k] - c) * part)).join()})`;
}

export function draw() {
  const canvas = $("tiles"), context = canvas.getContext("2d"), ratio = devicePixelRatio || 1, by = $("shade").value;
  const shades = Object.fromEntries(WORDS.map((word) => [word, colour(`s-${word}`)])), none = colour("s-idle");
  const known = store.devices.filter(Boolean), [low, high] = by === "state" ? [0, 1] : scaleOf(known, by), gap = size > 8 ? 2 : 1;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.font = `bold ${Math.round(size * 0.5)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  order.forEach((id, index) => {
    const device = store.devices[id], x = (index % across) * size, y = Math.floor(index / across) * size, state = store.stateOf(device);
    const found = by === "state" ? null : value(device, by);
    context.fillStyle = by === "state" ? shades[state] : found === null ? none : ramp((found - low) / (high - low || 1));
    context.fillRect(x, y, size - gap, size - gap);
    if (size >= 14 && by === "state" && GLYPH[state]) {
      context.fillStyle = colour("glyph");
      context.fillText(GLYPH[state], x + (size - gap) / 2, y + (size - gap) / 2 + 1);
    }
    if (size >= 14 && by === "state" && device[D.battery] !== null) {
      context.fillStyle = colour("glyph");
      context.fillRect(x + 2, y + size - gap - 4, ((size - gap - 4) * device[D.battery]) / 100, 2);
    }
  });
  const ring = (index, name) => {
    if (index < 0 || index >= order.length) return;
    context.lineWidth = 2;
    context.strokeStyle = colour(name);
    context.strokeRect((index % across) * size - 1, Math.floor(index / across) * size - 1, size - gap + 2, size - gap + 2);
  };
  ring(hovered, "ink");
  if (document.activeElement === canvas) ring(picked, "accent");
}

function tellTile(index) {
  const device = store.devices[order[index]];
  say($("tile-said"), device ? line(device) : "Point at a device, or walk there with the arrow keys.");
}

function line(device) {
  const more = [store.stateOf(device), device[D.why], device[D.battery] === null ? "" : `battery ${percent(device[D.battery])}${device[D.charging] ? " charging" : ""}`,
    device[D.link], device[D.examples] ? plural(device[D.examples], "example") : "", device[D.turnaround] === null ? "" : `turnaround ${span(device[D.turnaround])}`, `chosen ${num(device[D.chosen])} times`];
  return `${device[D.name]}: ${more.filter(Boolean).join(", ")}`;
}

function key(known) {
  const by = $("shade").value, box = $("shade-key");
  if (by === "state") {
    const counts = new Map();
    for (const device of known) { const state = store.stateOf(device); counts.set(state, (counts.get(state) || 0) + 1); }
    box.replaceChildren(...WORDS.filter((word) => counts.has(word)).map((word) => el("span", { class: `k t-${word}` }, GLYPH[word] ? `${GLYPH[word]} ` : "", `${word} ${num(counts.get(word))}`)));
    return;
  }
  const [low, high] = scaleOf(known, by), format = by === "turnaround" ? span : by === "battery" ? percent : num;
  const bar = el("canvas", { class: "ramp", width: 120, height: 10, "aria-hidden": "true" }), context = bar.getContext("2d");
  for (let x = 0; x < 120; x += 1) { context.fillStyle = ramp(x / 119); context.fillRect(x, 0, 1, 10); }
  box.replaceChildren(el("span", {}, format(low)), bar, el("span", {}, `${format(high)}${by === "battery" ? "" : " and more"}`));
}

function slowest(known) {
  const timed = known.filter((device) => device[D.turnaround] !== null);
  const found = timed.sort((a, b) => b[D.turnaround] - a[D.turnaround]).slice(0, 5), middle = timed[Math.floor(timed.length / 2)]?.[D.turnaround];
  const text = found.map((device) => device.join()).join("|");
  if ($("slowest").dataset.key === text) return;
  $("slowest").dataset.key = text;
  $("slowest").replaceChildren(...(found.length ? [el("h3", {}, "Slowest devices"), el("ol", {}, ...found.map((device) => el("li", {},
    el("button", { type: "button", class: "name", on: { click: () => open(device[D.id]) } }, device[D.name]),
    el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: { width: `${(100 * device[D.turnaround]) / found[0][D.turnaround]}%` } })),
    el("span", { class: "took" }, span(device[D.turnaround])),
    el("span", { class: "soft times-of" }, middle ? `${num(device[D.turnaround] / middle, 1)} × the median` : ""))))] : []));
}

const COLUMNS = [["name", "Device"], ["state", "State"], ["battery", ">Battery"], ["link", "Link"], ["examples", ">Examples"], ["turnaround", ">Turnaround"], ["chosen", ">Chosen"], ["arrived", ">Arrived"], ["failures", ">Failures"], ["seen", "Last seen"]];

function asTable(known) {
  const of = (device) => (sorted.by === "state" ? store.stateOf(device) : device[D[sorted.by]]);
  const found = known.filter((device) => !sought || device[D.name].toLowerCase().includes(sought)).sort((a, b) => {
    const [x, y] = sorted.down ? [of(b), of(a)] : [of(a), of(b)];
    return x === null || x === undefined ? 1 : y === null || y === undefined ? -1 : typeof x === "string" ? x.localeCompare(y) : x - y;
  });
  first = Math.max(0, Math.min(first, Math.floor((found.length - 1) / PAGE) * PAGE));
  const rows = found.slice(first, first + PAGE).map((device) => el("tr", {},
    el("td", {}, el("button", { type: "button", class: "name", on: { click: () => open(device[D.id]) } }, device[D.name])),
    el("td", {}, [store.stateOf(device), device[D.why]].filter(Boolean).join(": ")), el("td", { class: "n" }, `${percent(device[D.battery])}${device[D.charging] ? " +" : ""}`),
    el("td", {}, device[D.link] || DASH), el("td", { class: "n" }, num(device[D.examples])), el("td", { class: "n" }, span(device[D.turnaround])), el("td", { class: "n" }, num(device[D.chosen])),
    el("td", { class: "n" }, num(device[D.arrived])), el("td", { class: "n" }, num(device[D.failures])), el("td", {}, clock(device[D.seen]))));
  let box = $("devices").querySelector(".device-rows");
  if (!box) {
    const filter = el("input", { type: "search", placeholder: "find a device", "aria-label": "Find a device", on: { input: (event) => { sought = event.target.value.toLowerCase(); first = 0; update(); } } });
    box = el("div", { class: "device-rows" });
    $("devices").replaceChildren(filter, box);
  }
  const headings = COLUMNS.map(([by, title]) => {
    const right = title.startsWith(">"), now = sorted.by === by;
    const sort = () => { sorted = { by, down: now ? !sorted.down : right }; update(); box.querySelector(`[data-by="${by}"]`)?.focus(); };
    return el("th", { scope: "col", class: right ? "n" : "", "aria-sort": now ? (sorted.down ? "descending" : "ascending") : null }, el("button", { type: "button", class: "sort", "data-by": by, on: { click: sort } }, right ? title.slice(1) : title, now ? (sorted.down ? " ↓" : " ↑") : ""));
  });
  const focused = document.activeElement?.dataset?.by;
  const turn = (by, text, off) => el("button", { type: "button", class: "quiet", disabled: off, on: { click: () => { first += by; update(); } } }, text);
  box.replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Devices" }, el("table", {}, el("caption", { class: "hidden" }, "Devices of the fleet"), el("thead", {}, el("tr", {}, ...headings)), el("tbody", {}, ...rows))),
    el("div", { class: "pages" }, turn(-PAGE, "‹ before", first === 0), el("span", {}, `${num(found.length ? first + 1 : 0)} to ${num(Math.min(found.length, first + PAGE))} of ${num(found.length)}`), turn(PAGE, "after ›", first + PAGE >= found.length)));
  if (focused) box.querySelector(`[data-by="${focused}"]`)?.focus();
}
