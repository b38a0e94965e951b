// Asks for what has changed, again and again, and has each panel show it. Nothing is asked for while nobody looks.

import { $, bytes, dollars, el, num, say, span, DASH } from "./words.js";
import { R, Store } from "./store.js";
import * as charts from "./charts.js";
import * as control from "./control.js";
import * as fleet from "./fleet.js";
import * as more from "./more.js";
import * as round from "./round.js";

const store = new Store();
const THEMES = { "": ["◐", "as the system has it"], light: ["○", "light"], dark: ["●", "dark"] };
let timer, asking = false, heard = 0, failed = 0, spoken = "", jobs = "";

async function ask(path, about) {
  const query = new URLSearchParams({ run: store.asked, ...about });
  return fetch(`/api/${path}?${query}`, { headers: { "x-fleetfold-token": control.token() }, cache: "no-store" });
}

/** What was asked for, or nothing, and then a word why. */
async function get(path, about) {
  try {
    const answer = await ask(path, about), told = await answer.json();
    if (answer.ok) return told;
    control.toast(told.error, true);
  } catch {
    control.toast("the dashboard's process does not answer", true);
  }
  return null;
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  let next = 2000;
  const run = store.asked;
  try {
    const answer = await ask("poll", { cursor: store.cursor });
    const told = await answer.json();
    if (run !== store.asked) next = 0;
    else if (answer.ok) {
      failed = 0;
      heard = Date.now();
      show(store.take(told));
      next = told.next;
    } else if (answer.status === 401) {
      if (!$("dialog").open) control.unlock(told.error);
      next = 1500;
    } else trouble(told.error);
  } catch {
    failed += 1;
    trouble("the dashboard's process does not answer; it is asked again");
    next = Math.min(10000, 1000 * 2 ** failed);
  }
  asking = false;
  timer = setTimeout(poll, next);
}

function trouble(text) {
  say($("trouble"), text);
  $("trouble").hidden = !text;
}

function show(changed) {
  $("empty").hidden = store.run !== null || store.runs.length > 0;
  const first = $("all").hidden && store.run !== null;
  $("all").hidden = store.run === null;
  trouble(store.trouble || (store.run?.standing ?? ""));
  head();
  if (!store.run) return;
  if (first) charts.build(store);
  figures();
  control.update();
  if (changed.has("rounds")) { charts.update(store); more.timeline(); }
  if (changed.has("devices") || changed.has("lanes")) fleet.update();
  more.refused();
  round.update(store, more.device_);
  live();
}

function head() {
  const run = store.run, names = store.runs;
  if ($("run").dataset.key !== names.join()) {
    $("run").dataset.key = names.join();
    $("run").replaceChildren(el("option", { value: "latest" }, "the newest run"), ...names.map((name) => el("option", { value: name }, name)));
  }
  $("run").value = store.asked;
  if (!run) { say($("state"), "no run"); return; }
  const wish = run.wish ? `, asked to ${run.wish}` : "";
  say($("state"), `${run.state}${wish}`);
  $("state").className = `chip chip-${run.state}`;
  say($("title"), `Run ${run.name}`);
  document.title = `${run.state === "running" ? `${run.round}/${run.rounds} · ` : ""}${run.name} · fleetfold`;
  const told = store.jobs.filter((job) => job.state === "failed").map((job) => `${job.what}: ${job.words}`)[0] ?? "";
  if (told && told !== jobs) control.toast(told, true);
  jobs = told;
  if (run.reason !== spoken && run.state !== "running") say($("said"), `run ${run.name}: ${run.reason}`);
  spoken = run.reason;
}

/** The numbers of the run, by the names that they have everywhere. */
function figures() {
  const run = store.run, rows = store.ended(), train = rows.filter((row) => row[R.kind] !== 1);
  const last = (name) => rows.reduce((found, row) => row[R[name]] ?? found, null), sum = (of) => train.reduce((all, row) => all + (of(row) || 0), 0);
  const newest = train[train.length - 1], took = (run.ended || store.clock()) - run.started;
  const list = [
    ["round", `${Math.min(run.round, run.rounds)} of ${run.rounds}`, run.state === "running" ? `${run.where === "here" ? "on this machine" : run.where === "hub" ? "on a hub" : "on AWS"}` : run.reason],
    ["accuracy reported by devices", num(last("toldAccuracy")), `of the model ${num(last("accuracy"))}`],
    ["loss reported by devices", num(last("toldLoss")), `of the model ${num(last("loss"))}`],
    ["devices used", newest ? num(newest[R.arrived] + newest[R.credited]) : DASH, "in the newest round"],
    ["successful responses", num(sum((row) => row[R.arrived])), `${num(sum((row) => row[R.late]))} came late`],
    ["failed responses", num(sum((row) => row[R.cohort] - row[R.arrived])), `${num(sum((row) => row[R.refused]))} refused`],
    ["run time", span(took), newest ? `${span(sum((row) => row[R.seconds]) / train.length)} a round` : ""],
    ["bytes up", bytes(sum((row) => row[R.up])), `down ${bytes(sum((row) => row[R.down]))}`],
    ...(last("epsilon") === null ? [] : [["privacy spent, ε", num(last("epsilon")), "by the run so far"]]),
    ...(last("cost") === null ? [] : [["cost", dollars(sum((row) => row[R.cost])), "by a model and public prices"]]),
  ];
  const text = JSON.stringify(list);
  if ($("figures").dataset.key === text) return;
  $("figures").dataset.key = text;
  const bar = el("span", { class: "progress", "aria-hidden": "true" }, el("i", { style: { width: `${(100 * train.length) / Math.max(1, run.rounds)}%` } }));
  $("figures").replaceChildren(...list.map(([name, value, more], k) => el("div", {}, el("dt", {}, name), el("dd", {}, el("b", {}, value), k === 0 ? bar : "", el("small", {}, more)))));
}

function live() {
  const late = Date.now() - heard > 6000, behind = store.run?.todo > 1;
  $("live").className = late ? "live off" : "live on";
  say($("live"), late ? "not heard of" : behind ? `reading ${num(store.run.todo)} rounds` : store.run?.state === "running" ? "live" : "");
}

function choose(run) {
  store.reset(run);
  fleet.reset();
  more.reset();
  const url = new URL(location.href);
  if (run === "latest") url.searchParams.delete("run"); else url.searchParams.set("run", run);
  history.replaceState(null, "", url);
  charts.draw(store);
  poll();
}

function theme(change) {
  let now = document.documentElement.dataset.theme || "";
  if (change) {
    now = { "": "light", light: "dark", dark: "" }[now];
    if (now) document.documentElement.dataset.theme = now; else delete document.documentElement.dataset.theme;
    try { localStorage.setItem("fleetfold-theme", now); } catch { /* a browser that keeps nothing */ }
    redraw();
  }
  say($("theme"), THEMES[now][0]);
  $("theme").setAttribute("aria-label", `Theme: ${THEMES[now][1]}`);
}

function redraw() {
  if (!store.run) return;
  charts.build(store);
  fleet.update();
}

function begin() {
  store.reset(new URLSearchParams(location.search).get("run") || "latest");
  control.begin(store, poll);
  fleet.begin(store, more.device_);
  more.begin(store, get);
  theme(false);
  $("theme").addEventListener("click", () => theme(true));
  $("run").addEventListener("change", () => choose($("run").value));
  $("log").addEventListener("change", () => charts.build(store));
  $("lanes-order").addEventListener("change", () => round.update(store, more.device_));
  $("run-table").addEventListener("click", () => {
    const shown = $("rounds").hidden;
    $("rounds").hidden = !shown;
    $("curves").hidden = shown;
    $("run-table").setAttribute("aria-pressed", String(shown));
    say($("run-table"), shown ? "As curves" : "As a table");
    if (shown) charts.asTable(store); else charts.resize();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new ResizeObserver(() => { charts.resize(); if (store.run) fleet.update(); }).observe($("main"));
  document.addEventListener("visibilitychange", poll);
  setInterval(() => { round.tick(store); live(); if (store.run?.state === "running") figures(); }, 1000);
  poll();
}

begin();
