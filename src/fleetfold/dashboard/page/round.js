// The round as it is now: what it waits for, for how long yet, and what each of its devices is at.

import { $, el, num, plural, say, span, bytes } from "./words.js";
import { D, KINDS, L, LANES, R } from "./store.js";

const SHOWN = 40;
const STEPS = ["download", "compute", "upload"];
const PHASES = { open: "open", folding: "folding", done: "done", failed: "failed" };
let laidOut = "";

export function update(store, open) {
  const now = store.now;
  if (!now) { say($("reason"), "no round has been opened yet"); return; }
  const title = store.rounds.get(now.round * 4 + KINDS.indexOf(now.kind))?.[R.title] ?? now.round;
  say($("h-now"), store.run.state === "running" ? `Round ${title} now` : `The last round: ${title}`);
  say($("phase"), PHASES[now.phase] || now.phase);
  $("phase").className = `chip chip-${now.phase}`;
  say($("reason"), now.reason);
  quorum(now);
  tally(store);
  lanes(store, open);
  tick(store);
}

/** Every second: what time alone changes. */
export function tick(store) {
  const now = store.now;
  if (!now) return;
  const at = store.clock(), over = now.phase === "done" || now.phase === "failed";
  const left = now.deadline - at;
  say($("deadline"), over ? `took ${span(now.ended - now.opened)}` : now.phase === "folding" ? "folding" : left > 0 ? `deadline in ${span(left)}` : "the deadline has passed");
  say($("elapsed"), over ? "" : `open for ${span(at - now.opened)}`);
  if (!over) for (const bar of document.querySelectorAll("#lanes .waiting")) say(bar, span(at - now.asked));
}

function quorum(now) {
  const most = Math.max(now.target, now.invited, 1), share = (n) => `${Math.min(100, (100 * n) / most)}%`;
  const text = `${num(now.counted)} of ${plural(now.target, "update")} wanted, quorum ${num(now.quorum)}`;
  const key = `${now.counted}/${now.refused}/${now.target}/${now.quorum}/${most}`;
  if ($("quorum").dataset.key === key) return;
  $("quorum").dataset.key = key;
  $("quorum").replaceChildren(
    el("div", { class: "bar", role: "meter", "aria-label": "Updates", "aria-valuemin": 0, "aria-valuemax": now.target, "aria-valuenow": Math.min(now.counted, now.target), "aria-valuetext": text },
      el("span", { class: "fill", style: { width: share(now.counted) } }),
      el("span", { class: "fill bad", style: { width: share(now.refused), left: share(now.counted) } }),
      el("i", { class: "mark", style: { left: share(now.quorum) }, title: "quorum" }),
      el("i", { class: "mark target", style: { left: share(now.target) }, title: "target" })),
    el("div", { class: "bar-said" }, el("b", {}, num(now.counted)), ` of ${plural(now.target, "update")}`, el("span", { class: "soft" }, ` · quorum ${num(now.quorum)} · ${num(now.invited)} invited${now.refused ? ` · ${num(now.refused)} refused` : ""}`)));
}

function tally(store) {
  const counts = new Array(LANES.length).fill(0);
  for (const lane of store.lanes.values()) counts[lane[L.state]] += 1;
  const key = counts.join(" ");
  if ($("tally").dataset.key === key) return;
  $("tally").dataset.key = key;
  $("tally").replaceChildren(...LANES.flatMap((name, state) => (counts[state]
    ? [el("li", { class: `s-${name}` }, el("b", {}, num(counts[state])), ` ${name}`)] : [])));
}

function ordered(store) {
  const all = [...store.lanes.values()], order = $("lanes-order").value;
  const waiting = (lane) => (lane[L.took] === null ? Infinity : lane[L.took]);
  if (order === "name") return all.sort((a, b) => name(store, a).localeCompare(name(store, b)));
  const sign = order === "slow" ? -1 : 1;
  // Who is at work stands above who was only invited, then what went wrong, whatever the order.
  const rank = (lane) => (lane[L.took] !== null ? (LANES[lane[L.state]] === "arrived" ? 3 : 2) : LANES[lane[L.state]] === "invited" || LANES[lane[L.state]] === "silent" ? 1 : 0);
  return all.sort((a, b) => rank(a) - rank(b) || sign * (waiting(a) - waiting(b) || 0) || a[L.seat] - b[L.seat]);
}

const name = (store, lane) => store.devices[lane[L.device]]?.[D.name] ?? "…";

function lanes(store, open) {
  const found = ordered(store).slice(0, SHOWN);
  const rest = store.lanes.size - found.length;
  say($("lanes-said"), rest > 0 ? `${found.length} of ${plural(store.lanes.size, "device")}; all stand in the timeline` : plural(store.lanes.size, "device"));
  const key = found.map((lane) => lane.join()).join("|") + store.round;
  if (key === laidOut) return;
  laidOut = key;
  const longest = Math.max(1e-6, ...found.map((lane) => lane[L.took] ?? 0));
  const focused = document.activeElement?.closest?.("#lanes button")?.dataset.id;
  $("lanes").replaceChildren(...found.map((lane) => row(store, lane, longest, open)));
  if (focused) $("lanes").querySelector(`button[data-id="${focused}"]`)?.focus();
}

function row(store, lane, longest, open) {
  const state = LANES[lane[L.state]], took = lane[L.took], id = lane[L.device];
  const bar = el("span", { class: "track", "aria-hidden": "true" });
  if (took !== null) {
    const steps = STEPS.map((step) => lane[L[step]] ?? 0), sum = steps.reduce((a, b) => a + b, 0);
    const wait = Math.max(0, took - sum), scale = (took / longest) * 100 / Math.max(took, sum, 1e-9);
    [["wait", wait], ...STEPS.map((step, k) => [step, steps[k]])].forEach(([step, seconds]) =>
      bar.append(el("i", { class: `p-${step}`, style: { width: `${seconds * scale}%` } })));
  } else if (state !== "silent") bar.append(el("i", { class: `p-${state}`, style: { width: "100%" } }));
  const told = took === null ? "" : STEPS.filter((s) => lane[L[s]] !== null).map((s) => `${s} ${span(lane[L[s]])}`).join(", ");
  return el("li", { class: `lane s-${state}`, title: lane[L.why] || told },
    el("button", { type: "button", class: "name", "data-id": id, on: { click: () => open(id) } }, name(store, lane)),
    bar, el("span", { class: "what" }, state),
    el("span", { class: took === null && state !== "silent" ? "took waiting" : "took" }, took === null ? "" : span(took)),
    el("span", { class: "hidden" }, [told, lane[L.why], lane[L.bytes] ? bytes(lane[L.bytes]) : ""].filter(Boolean).join("; ")));
}
