// The latest figures of each process; also the legend of the charts.

import { colourOf } from "./chart.js";

const TIMES = ["p50", "p90", "p99"];
const STALE = 3; // seconds after which a row no longer tells of now

export function showProcesses(body, processes, now) {
  while (body.rows.length > processes.length) body.deleteRow(-1);
  while (body.rows.length < processes.length) body.append(newRow());
  processes.forEach((process, at) => fill(body.rows[at], process, now));
}

function newRow() {
  const row = document.createElement("tr");
  const head = row.appendChild(document.createElement("th"));
  head.scope = "row";
  head.append(document.createElement("span"), "");
  for (let at = 0; at < 12; at++) row.insertCell();
  return row;
}

function fill(row, process, now) {
  const [head, ...cells] = row.cells;
  head.firstChild.className = `swatch ${colourOf(process)}`;
  head.lastChild.data = process.pid;
  row.dataset.pid = process.pid;
  const latest = process.latest;
  row.classList.toggle("idle", latest === null || latest.items === 0 || now - latest.at > STALE);
  const texts = latest === null ? cells.map(() => "–") : figures(latest);
  cells.forEach((cell, at) => {
    cell.textContent = texts[at];
  });
}

function figures(latest) {
  const of = (name, factor, digits) =>
    TIMES.map((q) => (latest[name].count ? (latest[name][q] * factor).toFixed(digits) : "–"));
  return [
    (latest.items / latest.seconds).toFixed(0),
    (latest.batches / latest.seconds).toFixed(0),
    ...of("size", 1, 0),
    ...of("wait", 1000, 1),
    ...of("run", 1000, 1),
    String(latest.queued),
  ];
}
