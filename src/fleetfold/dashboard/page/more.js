// What is asked for: the timeline of one round, the history of one device, one refused update.

import { $, bytes, clock, el, num, percent, plural, say, span, table, DASH } from "./words.js";
import { D, KINDS, Q, R } from "./store.js";

let store, get, which = "", loaded = "", laid = "", refusedKey = "";

export function begin(theStore, theGet) {
  store = theStore;
  get = theGet;
  $("which").addEventListener("change", () => pick($("which").value));
  $("earlier").addEventListener("click", () => move(1));
  $("later").addEventListener("click", () => move(-1));
  $("slowest-round").addEventListener("click", () => {
    const found = store.ended().reduce((a, b) => ((b[R.seconds] ?? 0) > (a?.[R.seconds] ?? -1) ? b : a), null);
    if (found) pick(`${found[R.round]}.${found[R.kind]}`);
  });
}

export function reset() { which = loaded = laid = refusedKey = ""; $("gantt").replaceChildren(); }

function pick(key) { which = key; timeline(); }
function move(by) {
  const options = [...$("which").options], index = options.findIndex((option) => option.value === $("which").value) + by;
  if (options[index]) pick(options[index].value);
}

/** The timeline follows the newest round that has ended, until one is picked. */
export async function timeline() {
  const ended = store.ended(), newest = ended[ended.length - 1];
  if (!newest) { say($("timeline-said"), "of no round yet"); return; }
  const key = which || `${newest[R.round]}.${newest[R.kind]}`;
  const keys = ended.map((row) => [`${row[R.round]}.${row[R.kind]}`, row[R.title]]).reverse();
  if (laid !== keys.length + keys[0][0]) {
    laid = keys.length + keys[0][0];
    $("which").replaceChildren(...keys.map(([each, title]) => el("option", { value: each }, title)));
  }
  $("which").value = key;
  const [number, kind] = key.split(".").map(Number), row = store.rounds.get(number * 4 + kind);
  const state = `${key} ${row?.[R.phase]} ${row?.[R.late]}`;
  if (loaded === state) return;
  loaded = state;
  const told = await get("round", { round: number, kind: KINDS[kind] });
  if (!told) { loaded = ""; return; }
  if (loaded === state) gantt(told);
}

function gantt(told) {
  const end = Math.max(told.ended ?? 0, told.next ?? 0, ...told.lanes.flatMap((lane) => lane[3].map((step) => step[2])), 1e-6);
  const percentOf = (at) => `${(100 * at) / end}%`;
  const piece = (name, from, to) => el("i", { class: `p-${name}`, style: { left: percentOf(from), width: `max(2px, ${(100 * (to - from)) / end}%)` }, title: `${name} ${span(to - from)}` });
  const line = (title, pieces, words, total, about = {}) => el("tr", about,
    el("th", { scope: "row" }, title), el("td", { class: "bars" }, el("div", { class: "track", "aria-hidden": "true" }, ...pieces), el("span", { class: "hidden" }, words)), el("td", { class: "n" }, total));
  const begun = Math.min(...told.lanes.flatMap((lane) => lane[3].slice(0, 1).map((step) => (step[0] === "wait" ? step[1] : step[1]))), told.closed ?? end);
  const asked = told.asked ?? 0;
  const rows = [line("initiator", [piece("invite", 0, Math.max(asked, begun))], `devices were invited in ${span(asked)}`, span(asked), { class: "own" })];
  for (const [id, name, state, steps, why] of told.lanes) {
    const device = id === null ? el("span", {}, name) : el("button", { type: "button", class: "name", on: { click: () => device_(id) } }, name);
    const words = steps.length ? steps.map(([step, from, to]) => `${step} ${span(to - from)}`).join(", ") : "it was not heard of";
    const total = steps.length ? span(steps[steps.length - 1][2] - asked) : state;
    const mark = state === "refused" || state === "late" ? el("span", { class: `tag tag-${state}`, title: why }, state) : null;
    rows.push(line(el("span", { class: "who" }, device, mark), steps.map(([step, from, to]) => piece(step, from, to)), `${state}: ${words}`, total, { class: `s-${state}` }));
  }
  if (told.closed !== null) rows.push(line("fold", [piece("fold", told.closed, told.ended ?? end)], `from ${span(told.closed)} on`, span((told.ended ?? end) - told.closed), { class: "own" }));
  if (told.ended !== null) rows.push(line("publish", [piece("publish", told.ended, told.next ?? told.ended)], told.next === null ? "the last round" : "until the next round was opened", told.next === null ? DASH : span(told.next - told.ended), { class: "own" }));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => el("span", { style: { left: `${share * 100}%` } }, span(share * end)));
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Who"), el("th", { scope: "col", class: "bars" }, el("span", { class: "hidden" }, "When"), el("div", { class: "ticks", "aria-hidden": "true" }, ...ticks)), el("th", { scope: "col", class: "n" }, "Took")));
  $("gantt").replaceChildren(el("table", { class: "gantt-table" }, el("caption", { class: "hidden" }, `Timeline of round ${told.round}`), head, el("tbody", {}, ...rows)));
  const left = told.devices - told.lanes.length;
  say($("timeline-said"), `round ${told.round}${told.kind === "evaluate" ? ", evaluation" : ""}: ${span(told.ended)}, ${plural(told.devices, "device")}${left > 0 ? `, the ${told.lanes.length} slowest shown` : ""}`);
}

// Devices

export async function device_(id) {
  const device = store.devices[id];
  if (!device) return;
  show(device[D.name], el("p", {}, "…"));
  const told = await get("device", { id });
  if (!told || !$("dialog").open) return;
  const facts = [["state", [store.stateOf(device), device[D.why]].filter(Boolean).join(": ")], ["last seen", clock(device[D.seen])], ["turnaround", span(device[D.turnaround])],
    ["examples", num(device[D.examples])], ["chosen", num(device[D.chosen])], ["arrived", num(device[D.arrived])], ["failures", num(device[D.failures])],
    ...(device[D.battery] === null ? [] : [["battery", `${percent(device[D.battery])}${device[D.charging] ? ", charging" : ""}`]]),
    ...(device[D.link] ? [["link", device[D.link]]] : []), ...(told.memory ? [["memory", bytes(told.memory)]] : []), ...(told.agent ? [["agent", told.agent]] : [])];
  const rows = told.rounds.map(([round, kind, state, examples, download, compute, upload, size, loss, accuracy, at, why]) => [
    { n: `${round}${kind === 1 ? " evaluation" : ""}` }, el("span", { class: `tag tag-${state}` }, state), { n: num(examples) }, { n: span(download) }, { n: span(compute) }, { n: span(upload) },
    { n: bytes(size) }, { n: num(loss) }, { n: num(accuracy) }, clock(at), why || DASH]);
  show(told.long, el("dl", { class: "facts" }, ...facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    el("h3", {}, rows.length ? `What it brought to ${plural(rows.length, "round")}, the newest first` : "It has brought nothing to the newest rounds"),
    ...(rows.length ? [el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "History" }, table([">Round", "State", ">Examples", ">Download", ">Compute", ">Upload", ">Size", ">Loss", ">Accuracy", "At", "Why"], rows, "History of the device"))] : []));
}

// Quarantine

export function refused() {
  const rows = store.refused.filter(Boolean).sort((a, b) => b[Q.round] - a[Q.round] || (b[Q.at] ?? 0) - (a[Q.at] ?? 0)), key = String(rows.length);
  if (refusedKey === key) return;
  refusedKey = key;
  say($("refused-said"), rows.length ? plural(rows.length, "refused update") : "");
  if (!rows.length) { $("refused").replaceChildren(el("p", { class: "soft" }, "Nothing was refused.")); return; }
  const cells = rows.slice(0, 200).map((row) => [{ n: `${row[Q.round]}${row[Q.kind] === 1 ? " evaluation" : ""}` },
    row[Q.device] === null ? row[Q.name] : el("button", { type: "button", class: "name", on: { click: () => device_(row[Q.device]) } }, row[Q.name]),
    row[Q.why], el("button", { type: "button", class: "quiet", "aria-label": `Header of the update of ${row[Q.name]}, round ${row[Q.round]}`, on: { click: () => refusal(row) } }, "Header")]);
  $("refused").replaceChildren(table([">Round", "Who", "Why", "File"], cells, "Refused updates, the newest first"));
}

async function refusal(row) {
  show(`Refused: ${row[Q.name]}, round ${row[Q.round]}`, el("p", {}, "…"));
  const told = await get("refused", { id: row[Q.id] });
  if (!told || !$("dialog").open) return;
  show(`Refused: ${told.name}, round ${told.round}`, el("p", { class: "why" }, told.why),
    el("dl", { class: "facts" }, ...[["file", told.key], ["size", bytes(told.bytes)], ["came", clock(told.at)]].map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    el("h3", {}, "The header of its file"), ...(told.about ? [el("p", { class: "soft" }, `${told.about}.`)] : []), ...(told.header ? [el("pre", { tabindex: 0 }, told.header)] : []));
}

export function show(title, ...body) {
  say($("dialog-title"), title);
  $("dialog-body").replaceChildren(...body);
  if (!$("dialog").open) $("dialog").showModal();
}
