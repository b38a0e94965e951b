// Numbers, times and elements: what every panel makes its words of. Text is set as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (only of those named here) and children: elements or text. */
export function el(name, about = {}, ...children) {
  const found = document.createElement(name);
  for (const [key, value] of Object.entries(about)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") found.className = value;
    else if (key === "on") for (const [event, work] of Object.entries(value)) found.addEventListener(event, work);
    else if (key === "style") Object.assign(found.style, value);
    else found.setAttribute(key, value === true ? "" : String(value));
  }
  found.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return found;
}

/** Puts text where it is, if it is another. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const DASH = "–";

export function num(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(2);
  return value.toFixed(size >= 100 ? 1 : digits);
}

export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return unit === "B" ? `${value} B` : `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return DASH;
  if (seconds < 0) seconds = 0;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = whole % 60;
  return h ? `${h} h ${String(m).padStart(2, "0")} min` : `${m} min ${String(s).padStart(2, "0")} s`;
}

export function dollars(value) {
  if (value === null || value === undefined) return DASH;
  return value >= 1 ? `$${value.toFixed(2)}` : `$${Number(value.toPrecision(3))}`;
}

export const percent = (value) => (value === null || value === undefined ? DASH : `${Math.round(value)} %`);

export function clock(at) {
  if (!at) return DASH;
  const date = new Date(at * 1000);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${date.toLocaleDateString("en-CA")} `;
  return `${day}${date.toLocaleTimeString("en-GB")}`;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** A colour of the theme, as it is now. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A table of rows of cells; a cell is text, an element, or {n: text} for a number on the right. */
export function table(columns, rows, caption) {
  const cell = (value) => (value instanceof Node ? el("td", {}, value)
    : value !== null && typeof value === "object" ? el("td", { class: "n" }, value.n) : el("td", {}, value ?? DASH));
  const headings = columns.map((column) => (column.startsWith(">")
    ? el("th", { scope: "col", class: "n" }, column.slice(1)) : el("th", { scope: "col" }, column)));
  const body = el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))));
  return el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, ...headings)), body);
}
