// Polls /stats and keeps a series for each process that answers.
//
// An answer bears a mark; the next poll brings the marks of all processes known, and whichever is reached tells what it
// did since its own. So each batch is in one point of the page, however seldom its process is reached.

export const SPAN = 60; // seconds that are kept and shown

const CLOSEST = 0.3; // seconds between two points of a process
const MOST_ASKS = 4; // requests in one poll, where there are several processes to be met
const PATIENCE = 5000; // milliseconds for an answer

export class Watch {
  // Each: { pid, colour, mark, at, latest, points }. A point is what /stats calls `since`, of a time with batches, with
  // the moment `at` of its end; it `follows` the point before if there was none without batches between them.
  processes = [];

  // Rejects if nobody answers.
  async poll() {
    const { several } = await this.#ask();
    const asks = several ? Math.min(MOST_ASKS, Math.max(2, this.processes.length)) : 1;
    for (let asked = 1; asked < asks; asked++) await this.#ask();
    const now = performance.now() / 1000;
    this.processes = this.processes.filter((process) => process.at > now - SPAN);
    for (const process of this.processes) {
      process.points = process.points.filter((point) => point.at > now - SPAN - 5);
    }
  }

  async #ask() {
    const known = new URLSearchParams(this.processes.map((process) => ["since", process.mark]));
    const response = await fetch(`/stats?${known}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const answer = await response.json();
    this.#add(answer, performance.now() / 1000);
    return answer;
  }

  #add({ pid, mark, since }, at) {
    let process = this.processes.find((known) => known.pid === pid);
    if (process === undefined) {
      process = { pid, colour: this.#freeColour(), mark, at, latest: null, points: [] };
      this.processes.push(process);
      this.processes.sort((one, other) => one.colour - other.colour);
    } else if (since !== null && since.seconds < CLOSEST) {
      return; // reached twice in a row; the older mark stays, and with it what is to be told
    }
    process.mark = mark;
    process.at = at;
    if (since !== null) {
      const follows = process.latest !== null && process.latest.size.count > 0;
      process.latest = { ...since, at, follows };
      if (since.size.count > 0) process.points.push(process.latest);
    }
  }

  #freeColour() {
    const taken = new Set(this.processes.map((process) => process.colour));
    let colour = 0;
    while (taken.has(colour)) colour++;
    return colour;
  }
}
