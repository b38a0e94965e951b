// What may be done, by who has the token: asked twice, done by the server, told in words.

import { $, el, say } from "./words.js";
import { show } from "./more.js";

const KEY = "fleetfold-token";
let store, again;

export function token() {
  try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
}

function keep(text) {
  try { sessionStorage.setItem(KEY, text); } catch { /* a browser that keeps nothing */ }
}

/** A token in the address goes into this tab's memory, and out of the address. */
export function begin(theStore, theAgain) {
  store = theStore;
  again = theAgain;
  const given = /^#token=(.+)$/.exec(location.hash);
  if (given) {
    keep(decodeURIComponent(given[1]));
    history.replaceState(null, "", location.pathname + location.search);
  }
  $("unlock").addEventListener("click", () => unlock());
  for (const what of ["pause", "resume", "stop", "start"]) $(what).addEventListener("click", () => confirm(what));
}

export function update() {
  const run = store.run, may = store.control && token() !== "";
  $("controls").hidden = !may || !run || run.kind === "message"; // an app of messages is driven by its own server
  $("unlock").hidden = !store.control || may;
  if (!run) return;
  const running = run.state === "running", driven = running && !run.standing.startsWith("no process");
  $("pause").hidden = !driven || run.wish !== "";
  $("stop").hidden = !driven || run.wish === "stop";
  $("resume").hidden = !(run.wish || !driven) || run.state === "done";
  say($("resume"), run.wish ? `Do not ${run.wish}` : "Resume");
}

const SAYS = {
  pause: (run) => `Round ${run.round} is finished; no other is opened until the run is resumed.`,
  stop: (run) => `Round ${run.round} is given up now, with what its devices have brought to it. The models of the rounds before stand, and the run can be resumed.`,
  resume: (run) => (run.wish ? `The run goes on as if nothing had been asked.` : `The run goes on with round ${run.round}.`),
  start: (run) => `A new run of the same app with the settings of ${run.name}${{ here: ", on this machine", hub: ", in the hub's queue", cloud: ", on AWS" }[run.where]}. A run of another app, or with other settings, is started in a terminal: fleetfold run APP`,
};

function confirm(what) {
  const run = store.run, title = { pause: "Pause", stop: "Stop", resume: "Resume", start: "Start another run like" }[what];
  const rounds = el("input", { type: "number", min: 1, max: 1000000, value: run.rounds, id: "how-many" });
  const go = el("button", { type: "button", class: what === "stop" ? "danger" : "primary", on: { click: () => { $("dialog").close(); act(what, what === "start" ? Number(rounds.value) : null); } } }, what === "start" ? "Start" : title);
  show(`${title} ${run.name}?`, el("p", {}, SAYS[what](run)), ...(what === "start" ? [el("p", {}, el("label", {}, "rounds ", rounds))] : []),
    el("div", { class: "answers" }, el("button", { type: "button", on: { click: () => $("dialog").close() } }, "Cancel"), go));
  go.focus();
}

async function act(what, rounds) {
  try {
    const answer = await fetch("/api/do", { method: "POST", headers: { "x-fleetfold-token": token(), "content-type": "application/json" }, body: JSON.stringify({ run: store.run.name, what, ...(rounds ? { rounds } : {}) }) });
    const told = await answer.json();
    if (answer.status === 401) keep("");
    toast(told.said || `${told.error}${told.next ? ` — ${told.next}` : ""}`, !answer.ok);
  } catch {
    toast("the dashboard's process does not answer", true);
  }
  update();
  again();
}

export function unlock(why = "") {
  const input = el("input", { type: "password", autocomplete: "off", id: "token", "aria-label": "Token" });
  const use = (event) => { event.preventDefault(); keep(input.value.trim()); $("dialog").close(); update(); again(); };
  show("Token", el("p", {}, why || "It stands in the address that fleetfold dashboard --control has told. It is kept in this tab alone."), el("form", { on: { submit: use } }, el("p", {}, input), el("div", { class: "answers" }, el("button", { class: "primary" }, "Use it"))));
  input.focus();
}

let timer;
export function toast(text, bad = false) {
  const box = $("toast");
  box.className = bad ? "toast bad" : "toast";
  box.hidden = false;
  say(box, text);
  clearTimeout(timer);
  timer = setTimeout(() => { box.hidden = true; }, 9000);
}
