// A chart of one histogram over the last minute: for each process a line for the median and a shade up to p99.

import { SPAN } from "./watch.js";

const COLOURS = 6; // of page.css
const MARGIN = { top: 8, right: 12, bottom: 32, left: 56 };
const SECONDS = [60, 45, 30, 15, 0];

export const colourOf = (process) => `process-${process.colour % COLOURS}`;

export class Chart {
  #options;
  #svg;
  #frame;
  #lines = new Map(); // by process: its two paths
  #drawn = ""; // what the frame was drawn for

  // options: name (of the histogram), title, unit, factor (from what /stats gives to the unit), least (of the scale)
  constructor(parent, options) {
    this.#options = options;
    const figure = parent.appendChild(document.createElement("figure"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.append(options.title);
    const key = caption.appendChild(document.createElement("span"));
    key.className = "quiet";
    key.textContent = "line: median, shade: up to p99";
    this.#svg = figure.appendChild(make("svg", { role: "img", "data-chart": options.name }));
    this.#svg.setAttribute("aria-label", `${options.title}, ${options.unit}, over the last ${SPAN} seconds`);
    this.#frame = this.#svg.appendChild(make("g"));
  }

  draw(processes, now) {
    const { name, factor, least } = this.#options;
    const width = this.#svg.clientWidth - MARGIN.left - MARGIN.right;
    const height = this.#svg.clientHeight - MARGIN.top - MARGIN.bottom;
    if (width <= 0 || height <= 0) return;
    const shown = (process) => process.points.filter((point) => point.at > now - SPAN);
    const highest = Math.max(least, ...processes.flatMap((each) => shown(each).map((point) => point[name].p99 * factor)));
    const step = niceStep(highest / 4);
    const top = step * Math.ceil(highest / step - 1e-9);
    this.#drawFrame(width, height, top, step);

    const x = (at) => MARGIN.left + width * (1 - (now - at) / SPAN);
    const y = (value) => MARGIN.top + height * (1 - value / top);
    for (const [process, paths] of this.#lines) {
      if (processes.includes(process)) continue;
      for (const path of paths) path.remove();
      this.#lines.delete(process);
    }
    for (const process of processes) {
      if (!this.#lines.has(process)) this.#lines.set(process, this.#pathsOf(process));
      const [spread, median] = this.#lines.get(process);
      const runs = runsOf(shown(process)).map((run) =>
        run.map((point) => [x(point.at), y(point[name].p50 * factor), y(point[name].p99 * factor)]),
      );
      spread.setAttribute("d", runs.map(shade).join(""));
      median.setAttribute("d", runs.map(line).join(""));
    }
    this.#svg.dataset.top = top;
  }

  #pathsOf(process) {
    return ["spread", "median"].map((kind) =>
      this.#svg.appendChild(make("path", { class: `${kind} ${colourOf(process)}`, "data-pid": process.pid })),
    );
  }

  // Grid, numbers and names of the axes; made anew only when they change.
  #drawFrame(width, height, top, step) {
    const wanted = [width, height, top, step].join();
    if (wanted === this.#drawn) return;
    this.#drawn = wanted;
    const [left, bottom, right] = [MARGIN.left, MARGIN.top + height, MARGIN.left + width];
    const parts = [];
    for (let value = 0; value <= top + step / 2; value += step) {
      const y = MARGIN.top + height * (1 - value / top);
      parts.push(make("path", { class: "grid", d: `M${left} ${y}H${right}` }));
      parts.push(label(left - 8, y + 4, "end", String(Number(value.toPrecision(6)))));
    }
    for (const ago of SECONDS) {
      const x = right - (width * ago) / SPAN;
      parts.push(make("path", { class: "grid", d: `M${x} ${bottom}v4` }));
      parts.push(label(x, bottom + 16, "middle", ago ? `−${ago}` : "now"));
    }
    parts.push(label(left + width / 2, bottom + 29, "middle", "seconds"));
    const across = label(0, 0, "middle", this.#options.unit);
    across.setAttribute("transform", `translate(12 ${MARGIN.top + height / 2}) rotate(-90)`);
    this.#frame.replaceChildren(...parts, across);
  }
}

function make(kind, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function label(x, y, anchor, text) {
  const made = make("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// 1, 2 or 5 times a power of ten, at least `wanted`.
function niceStep(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].find((factor) => factor * power >= wanted * (1 - 1e-9)) * power;
}

// The points in runs that no time without batches interrupts.
function runsOf(points) {
  const runs = [];
  for (const point of points) {
    if (runs.length > 0 && point.follows) runs.at(-1).push(point);
    else runs.push([point]);
  }
  return runs;
}

// A run of one point is a dot, since lines have round ends.
const line = (run) => `M${run.map(([x, median]) => `${x} ${median}`).join("L")}${run.length === 1 ? "h0" : ""}`;

function shade(run) {
  const above = run.map(([x, , p99]) => `${x} ${p99}`);
  const below = run.map(([x, median]) => `${x} ${median}`).reverse();
  return `M${[...above, ...below].join("L")}Z`;
}
