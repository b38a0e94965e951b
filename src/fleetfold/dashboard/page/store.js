// What the dashboard has told so far: tables of short rows, put together from one page of changes after another.

const names = (...list) => Object.freeze(Object.fromEntries(list.map((name, index) => [name, index])));
export const R = names("round", "kind", "phase", "cohort", "arrived", "refused", "late", "credited", "loss", "accuracy",
  "by", "toldLoss", "toldAccuracy", "spreadLoss", "spreadAccuracy", "epsilon", "seconds", "fold", "up", "down", "cost",
  "opened", "ended", "reason", "title");
export const D = names("id", "name", "state", "why", "battery", "charging", "link", "examples", "turnaround", "chosen",
  "arrived", "failures", "seen");
export const L = names("seat", "device", "state", "download", "compute", "upload", "took", "examples", "bytes", "why");
export const Q = names("id", "device", "name", "round", "kind", "at", "why");
export const KINDS = ["train", "evaluate", "message"];
export const LANES = ["invited", "downloading", "training", "uploading", "arrived", "late", "refused", "silent"];
export const STATES = ["", "free", "waits", "off"];

export class Store {
  constructor() { this.reset(""); }

  reset(run) {
    Object.assign(this, { asked: run, cursor: "", run: null, now: null, runs: [], control: false, jobs: [], trouble: "",
      rounds: new Map(), devices: [], lanes: new Map(), laneOf: new Map(), refused: [], round: "", skew: 0 });
    this.ordered = null;
  }

  /** Takes in one answer. → the names of the tables that have changed. */
  take(told) {
    const changed = new Set(["now"]);
    const life = (cursor) => cursor.split(".")[0];
    if (this.cursor && told.cursor && life(told.cursor) !== life(this.cursor)) {
      this.reset(this.asked);
      for (const each of ["rounds", "devices", "lanes", "refused"]) changed.add(each);
    }
    this.cursor = told.cursor || "";
    for (const key of ["run", "now", "runs", "control", "jobs", "trouble"]) this[key] = told[key] ?? this.constructor.none[key];
    this.skew = told.at ? told.at - Date.now() / 1000 : 0;
    const round = this.now ? `${this.now.round}.${this.now.kind}` : "";
    if (round !== this.round) {
      this.round = round;
      this.lanes.clear();
      this.laneOf.clear();
      changed.add("lanes");
    }
    for (const row of told.rounds || []) { this.rounds.set(row[0] * 4 + row[1], row); this.ordered = null; changed.add("rounds"); }
    for (const row of told.devices || []) { this.devices[row[0]] = row; changed.add("devices"); }
    for (const row of told.lanes || []) {
      this.lanes.set(row[L.seat], row);
      this.laneOf.set(row[L.device], row);
      changed.add("lanes");
    }
    for (const row of told.refused || []) { this.refused[row[0]] = row; changed.add("refused"); }
    return changed;
  }

  /** Seconds since the epoch, by the dashboard's clock. */
  clock() { return Date.now() / 1000 + this.skew; }

  /** Rows of rounds in order, an evaluation after its round. */
  rows() {
    this.ordered ??= [...this.rounds.keys()].sort((a, b) => a - b).map((key) => this.rounds.get(key));
    return this.ordered;
  }

  ended() { return this.rows().filter((row) => row[R.phase] === "done" || row[R.phase] === "failed"); }

  /** What a device is at, in one word. */
  stateOf(device) {
    const lane = this.now && this.run?.state === "running" ? this.laneOf.get(device[D.id]) : undefined;
    if (lane && !(LANES[lane[L.state]] === "invited" && device[D.state] === 3)) return LANES[lane[L.state]];
    return STATES[device[D.state]] || "idle";
  }
}
Store.none = { run: null, now: null, runs: [], control: false, jobs: [], trouble: "" };
