// The curves of the run: the model's own, how far its devices lie apart, and what each round took.

import { $, bytes, clock, colour, dollars, num, say, span, table, DASH } from "./words.js";
import { R } from "./store.js";

const uPlot = window.uPlot;
const FONT = '12px system-ui, sans-serif';
let charts = {};
let drawnAt = 0, due = null;

const at = (row, name) => row[R[name]];

/** One entry a round: an evaluation adds its scores to the round that it evaluates. */
function merged(rows) {
  const found = new Map();
  for (const row of rows) {
    const old = found.get(row[R.round]);
    if (!old) { found.set(row[R.round], row.slice()); continue; }
    for (const name of ["loss", "accuracy", "spreadLoss", "spreadAccuracy", "toldLoss", "toldAccuracy"]) {
      if (row[R.kind] === 1 && row[R[name]] !== null) old[R[name]] = row[R[name]];
    }
  }
  return [...found.values()];
}

function scores(rows, name, spread) {
  const quartile = (k) => rows.map((row) => at(row, spread)?.[k] ?? null);
  return [rows.map((row) => row[R.round]), quartile(0), quartile(4), quartile(1), quartile(3), quartile(2),
    rows.map((row) => at(row, name))];
}

function axes(format) {
  const line = { stroke: colour("line"), width: 1 };
  const common = { stroke: colour("soft"), font: FONT, ticks: { ...line, size: 4 }, grid: line };
  return [
    { ...common, grid: { show: false }, space: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
      values: (_, found) => found.map((value) => String(value)), size: 26, gap: 3 },
    { ...common, size: (chart, values) => Math.max(40, 12 + 6.6 * Math.max(...(values || [""]).map((v) => v.length))),
      space: 30, gap: 4, values: (_, found) => found.map(format) },
  ];
}

/** Marks where a round has failed: a bar in the ground, and a cross above it. */
function marks(chart) {
  const context = chart.ctx, ratio = devicePixelRatio;
  context.save();
  context.strokeStyle = colour("refused");
  context.lineWidth = 2 * ratio;
  for (const round of chart.failed || []) {
    const x = chart.valToPos(round, "x", true), y = chart.bbox.top + chart.bbox.height - 7 * ratio, r = 3.5 * ratio;
    context.beginPath();
    context.moveTo(x - r, y - r); context.lineTo(x + r, y + r);
    context.moveTo(x + r, y - r); context.lineTo(x - r, y + r);
    context.stroke();
  }
  context.restore();
}

function make(id, series, options) {
  const box = $(id);
  box.replaceChildren();
  const bands = options.bands?.map((band) => ({ ...band, fill: colour(band.fill) }));
  const chart = new uPlot({
    width: Math.max(120, box.clientWidth), height: options.height, legend: { show: false }, bands,
    padding: [8, 10, 0, 0], cursor: { sync: { key: "rounds" }, y: false, points: { size: 7 }, drag: { x: false, y: false } },
    scales: { x: { time: false, range: (_, low, high) => (low === null ? [0, 1] : [low - 0.5, high + 0.5]) },
      y: { distr: options.log ? 3 : 1, range: options.range } },
    axes: axes(options.format),
    series: [{}, ...series.map((each) => ({ points: { show: each.points ?? false, size: 4 }, spanGaps: true, ...each,
      stroke: each.stroke && colour(each.stroke), fill: each.fill && colour(each.fill) }))],
    hooks: { draw: [marks], setCursor: [(self) => options.told(self, self.cursor.idx)] },
  }, [[], ...series.map(() => [])], box);
  charts[id] = { chart, options };
}

const paths = () => uPlot.paths.bars({ size: [0.7, 40], align: 0 });
const hiddenLine = { stroke: undefined, width: 0 };
const SCORE = [hiddenLine, hiddenLine, hiddenLine, hiddenLine, { stroke: "median", width: 1.5, dash: [5, 4] }, { stroke: "model", width: 2 }];
const BANDS = [{ series: [2, 1], fill: "band-all" }, { series: [4, 3], fill: "band-half" }];

/** Makes the charts anew: at the beginning, and when the theme or the scale is another. */
export function build(store) {
  const log = $("log").checked;
  const upTo = (low, high) => [Math.min(0, low ?? 0), (high || 1) * 1.05];
  const free = (_, low, high) => {
    if (low === null) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };
  for (const { chart } of Object.values(charts)) chart.destroy();
  charts = {};
  const last = (id, format) => (chart, index) => tell(store, id, format, index);
  const score = { bands: BANDS, height: 236, format: (v) => String(Number(v.toPrecision(3))), log };
  make("accuracy", SCORE, { ...score, log: false, range: free, told: last("accuracy", (row) => scored(row, "accuracy", "spreadAccuracy")) });
  make("loss", SCORE, { ...score, range: log ? undefined : free, told: last("loss", (row) => scored(row, "loss", "spreadLoss")) });
  const small = { height: 164, range: (_, low, high) => upTo(low, high) };
  make("seconds", [{ width: 0, fill: "model-soft", paths: paths() }, { width: 0, fill: "fold", paths: paths() }],
    { ...small, format: (v) => span(v), told: last("seconds", (row) => `${span(at(row, "seconds"))}, fold ${span(at(row, "fold"))}`) });
  make("bytes", [{ stroke: "model", width: 1.5, points: true }, { stroke: "median", width: 1.5, dash: [5, 4] }],
    { ...small, format: (v) => bytes(v), told: last("bytes", (row) => `up ${bytes(at(row, "up"))}, down ${bytes(at(row, "down"))}`) });
  make("updates", [{ width: 0, fill: "line", paths: paths() }, { width: 0, fill: "model-soft", paths: paths() }, { width: 0, fill: "refused", paths: paths() }],
    { ...small, format: (v) => (Number.isInteger(v) ? num(v) : ""), told: last("updates", (row) => `${at(row, "arrived")} of ${at(row, "cohort")}, ${at(row, "refused")} refused`) });
  if (!$("f-epsilon").hidden) make("epsilon", [{ stroke: "model", width: 2 }], { ...small, format: (v) => num(v, 2), told: last("epsilon", (row) => num(at(row, "epsilon"))) });
  if (!$("f-cost").hidden) make("cost", [{ width: 0, fill: "model-soft", paths: paths() }], { ...small, format: dollars, told: last("cost", (row) => dollars(at(row, "cost"))) });
  draw(store);
}

function scored(row, name, spread) {
  const told = at(row, spread);
  return `${num(at(row, name))}${told ? ` · devices ${num(told[2])} (${num(told[0])} to ${num(told[4])})` : ""}`;
}

let shownRows = [];
function tell(store, id, format, index) {
  const row = index === null || index === undefined ? shownRows[shownRows.length - 1] : shownRows[index];
  say($(`c-${id}`), row ? `${index === null || index === undefined ? "" : `round ${row[R.round]}: `}${format(row)}` : "");
}

/** The curves of what is known now; seldom while much is still coming. */
export function update(store) {
  const wait = 300 - (performance.now() - drawnAt);
  clearTimeout(due);
  if (wait > 0) due = setTimeout(() => update(store), wait);
  else draw(store);
}

export function draw(store) {
  drawnAt = performance.now();
  const rows = merged(store.ended()), none = (name) => rows.every((row) => at(row, name) === null);
  shownRows = rows;
  const again = [["f-epsilon", none("epsilon")], ["f-cost", none("cost")]].filter(([id, hide]) => $(id).hidden !== hide);
  if (again.length) {
    for (const [id, hide] of again) $(id).hidden = hide;
    build(store);
    return;
  }
  const failed = rows.filter((row) => row[R.phase] === "failed").map((row) => row[R.round]);
  const column = (name) => rows.map((row) => at(row, name)), x = rows.map((row) => row[R.round]);
  const data = {
    accuracy: scores(rows, "accuracy", "spreadAccuracy"), loss: scores(rows, "loss", "spreadLoss"),
    seconds: [x, column("seconds"), column("fold")], bytes: [x, column("up"), column("down")],
    updates: [x, column("cohort"), column("arrived"), column("refused")], epsilon: [x, column("epsilon")], cost: [x, column("cost")],
  };
  for (const [id, { chart, options }] of Object.entries(charts)) {
    chart.failed = failed;
    const positive = options.log ? data[id].map((c, k) => (k ? c.map((v) => (v > 0 ? v : null)) : c)) : data[id];
    chart.setData(positive);
    options.told(chart, null);
  }
  if (!$("rounds").hidden) asTable(store);
}

export function resize() {
  for (const [id, { chart, options }] of Object.entries(charts)) {
    const width = $(id).clientWidth;
    if (width > 0 && width !== chart.width) chart.setSize({ width, height: options.height });
  }
}

export function asTable(store) {
  const rows = store.rows().slice().reverse().map((row) => [
    { n: at(row, "title") }, at(row, "phase"), { n: `${at(row, "arrived")} of ${at(row, "cohort")}` },
    { n: num(at(row, "refused")) }, { n: num(at(row, "late")) }, { n: num(at(row, "accuracy")) }, { n: num(at(row, "loss")) },
    { n: span(at(row, "seconds")) }, { n: bytes(at(row, "up")) }, { n: bytes(at(row, "down")) },
    { n: at(row, "epsilon") === null ? DASH : num(at(row, "epsilon")) }, clock(at(row, "opened")), at(row, "reason"),
  ]);
  $("rounds").replaceChildren(table([">Round", "Phase", ">Updates", ">Refused", ">Late", ">Accuracy", ">Loss", ">Time", ">Up", ">Down", ">ε", "Opened", "Why"],
    rows, "Rounds of the run, the newest first"));
}
