// What the page does: answers questions in place, polls, draws, fires load. Whatever comes from outside is put on the
// page as text, never as markup.

import { Chart } from "./chart.js";
import { Load } from "./load.js";
import { searchInPlace } from "./search.js";
import { showProcesses } from "./table.js";
import { Watch } from "./watch.js";

const INTERVAL = 1000; // milliseconds between two polls
const WHILE_GONE = 2000; // the same, while nobody answers

const element = (id) => document.getElementById(id);

const charts = [
  new Chart(element("charts"), { name: "size", title: "Batch size", unit: "items per batch", factor: 1, least: 4 }),
  new Chart(element("charts"), { name: "wait", title: "Wait time", unit: "milliseconds", factor: 1000, least: 1 }),
  new Chart(element("charts"), { name: "run", title: "Run time", unit: "milliseconds", factor: 1000, least: 1 }),
];
const watch = new Watch();
let timer = 0;
let polling = false;

function say(state, text) {
  element("state").dataset.state = state;
  element("state").textContent = text;
}

function draw() {
  const now = performance.now() / 1000;
  for (const chart of charts) chart.draw(watch.processes, now);
  showProcesses(element("processes"), watch.processes, now);
}

async function poll() {
  if (polling || document.hidden) return;
  polling = true;
  clearTimeout(timer);
  let pause = INTERVAL;
  try {
    await watch.poll();
    const count = watch.processes.length;
    say("live", `live, ${count} worker process${count === 1 ? "" : "es"}`);
  } catch (error) {
    pause = WHILE_GONE;
    say("gone", `the server does not answer (${error.message}); trying again`);
  }
  draw();
  polling = false;
  if (!document.hidden) timer = setTimeout(poll, pause);
}

const load = new Load(element("load"), element("fired"));

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    load.stop();
    say("paused", "paused while the page is hidden");
  } else {
    poll();
  }
});
new ResizeObserver(draw).observe(element("charts"));

searchInPlace(element("search"), element("told"), element("hits"));
element("live").hidden = false;
poll();
