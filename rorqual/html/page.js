// Draws the plots of the page from the JSON beside each, at the width of the window; no library, no request.
(() => {
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const charts = [];

function make(name, attributes, parent, text) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const key in attributes || {}) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

// ---------------------------------------------------------------- numbers
function short(v) {
  if (v === null || v === undefined || !isFinite(v)) return "–";
  const a = Math.abs(v);
  if (a === 0) return "0";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (a >= size * 0.9999) return trim(v / (unit === "k" ? 1e3 : size), 3) + unit;
  if (a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, "e").replace(/-/g, "−");
  return trim(v, 4);
}
function trim(v, digits) {
  const text = v.toPrecision(digits);
  return (text.includes("e") ? String(Math.round(v)) : text.includes(".") ? text.replace(/\.?0+$/, "") : text).replace("-", "−");
}
const percent = v => trim(v * 100, 3) + "%";

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const base = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 2.5, 5, 10].map(m => m * base).find(s => s >= raw * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Math.abs(i * step) < step * 1e-9 ? 0 : i * step);
  return out;
}
function logTicks(low, high, count) {
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 1.5, 2, 3, 4, 5, 6, 8]) all.push(m * Math.pow(10, e));
  const inside = all.filter(v => v >= low * 0.9999 && v <= high * 1.0001);
  const sparse = inside.filter(v => { const m = v / Math.pow(10, Math.floor(Math.log10(v) + 1e-9)); return Math.abs(m - 1) < 1e-6; });
  if (sparse.length >= 4) return sparse;
  const gap = Math.log(high / low) / Math.max(2, count);
  const kept = [];
  for (const v of inside) if (!kept.length || Math.log(v / kept[kept.length - 1]) >= gap * 0.8) kept.push(v);
  return kept.length >= 2 ? kept : ticks(low, high, count);
}
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
  return high >= 0 && Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
}
const colour = s => s.ramp === undefined ? `var(--c${s.color})` : `color-mix(in oklab, var(--deep) ${Math.round(s.ramp * 100)}%, var(--shallow))`;

// ---------------------------------------------------------------- line plots
function lines(figure, area, plot) {
  const hidden = new Set();
  const form = plot.percent ? percent : short;
  const all = plot.series.flatMap(s => s.x).concat(plot.xMin === null ? [] : [plot.xMin]);
  const [x0, x1] = extent(all);
  const ramp = plot.series.filter(s => s.ramp !== undefined);
  legend();
  const tip = make("div", { class: "tip", hidden: "" }, figure);
  let state = null;

  function legend() {
    const shown = plot.series.filter(s => s.kind !== "faint" || !plot.series.some(o => o !== s && o.color === s.color && o.kind !== "faint"));
    if (shown.length < 2 && !plot.rules.length) return;
    const list = make("div", { class: "legend" });
    figure.insertBefore(list, area);
    if (ramp.length > 4) {
      make("span", { class: "ramp" }, list);
      make("span", {}, list, `${ramp[0].name} to ${ramp[ramp.length - 1].name.replace(/^layer /, "")}`);
    }
    for (const s of shown) {
      if (s.ramp !== undefined && ramp.length > 4) continue;
      const button = make("button", { type: "button", "aria-pressed": "true" }, list);
      make("i", { style: `background:${colour(s)}` }, button);
      button.append(s.name);
      button.addEventListener("click", () => {
        const off = !hidden.has(s.name);
        off ? hidden.add(s.name) : hidden.delete(s.name);
        button.setAttribute("aria-pressed", String(!off));
        draw();
      });
    }
  }

  function range(visible) {
    let low = Infinity, high = -Infinity;
    const take = v => { if (v !== null && isFinite(v) && (!plot.logY || v > 0)) { low = Math.min(low, v); high = Math.max(high, v); } };
    visible.forEach(s => { s.y.forEach(take); (s.low || []).forEach(take); });
    plot.rules.forEach(r => take(r.y));
    if (!isFinite(low)) return [0, 1];
    if (plot.zero && !plot.logY) { low = Math.min(low, 0); high = Math.max(high, 0); }
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; return plot.logY ? [low / 1.2, high * 1.2] : [plot.zero && low >= 0 ? 0 : low - pad, high + pad]; }
    const pad = (high - low) * 0.05;
    return plot.logY ? [low / Math.pow(high / low, 0.04), high * Math.pow(high / low, 0.04)] : [plot.zero && low === 0 ? 0 : low - pad, high + pad];
  }

  function draw() {
    const width = area.clientWidth, height = plot.height;
    if (!width) return;
    const visible = plot.series.filter(s => !hidden.has(s.name));
    const [low, high] = range(visible);
    const f = plot.logY ? Math.log : v => v;
    const yTicks = (plot.logY ? logTicks : ticks)(low, high, Math.max(2, Math.floor(height / 42)));
    const left = Math.max(...yTicks.map(v => form(v).length), 2) * 6.7 + 12, right = 14, top = 10, bottom = 26;
    const px = v => left + (x1 === x0 ? 0.5 : (v - x0) / (x1 - x0)) * (width - left - right);
    const py = v => height - bottom - (f(v) - f(low)) / (f(high) - f(low)) * (height - top - bottom);
    area.querySelector("svg")?.remove();
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" }, area);
    for (const v of yTicks) {
      make("line", { class: "rule", x1: left, x2: width - right, y1: py(v), y2: py(v) }, svg);
      make("text", { class: "tick", x: left - 8, y: py(v) + 4, "text-anchor": "end" }, svg, form(v));
    }
    const xTicks = x1 === x0 ? [x0] : ticks(x0, x1, Math.max(2, Math.floor((width - left) / 80)));
    for (const v of xTicks) {
      const near = width - px(v) < 40;
      make("text", { class: "tick", x: near ? width - 4 : px(v), y: height - 8, "text-anchor": near ? "end" : "middle" }, svg, short(v));
    }
    for (const r of plot.rules) make("line", { class: "mark", x1: left, x2: width - right, y1: py(r.y), y2: py(r.y) }, svg);
    for (const s of visible) {
      const style = `--s:${colour(s)}`;
      if (s.low) { make("path", { class: "band", style, d: bandPath(s, px, py) }, svg); continue; }
      make("path", { class: `curve ${s.kind}`, style, d: linePath(s, px, py) }, svg);
      const points = s.x.filter((_, i) => s.y[i] !== null).length;
      if (s.kind === "points" && points * 12 < width || points === 1)
        s.x.forEach((x, i) => s.y[i] !== null && make("circle", { class: "dot", style, cx: px(x), cy: py(s.y[i]), r: 3 }, svg));
    }
    const marks = plot.rules.map(r => ({ ...r, at: py(r.y) })).sort((a, b) => a.at - b.at);
    marks.forEach((r, i) => {
      const under = i > 0 && r.at - marks[i - 1].at < 24 && r.at + 20 < height - bottom;
      const end = roomier(visible, r.y) === "right";
      make("text", { class: "marked", x: end ? width - right : left + 6, y: under ? r.at + 15 : r.at - 6, "text-anchor": end ? "end" : "start" }, svg, `${r.name} ${form(r.y)}`);
    });
    const cross = make("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }, svg);
    const dots = make("g", {}, svg);
    state = { svg, px, py, left, right, width, cross, dots, visible };
    area.dataset.drawn = "lines";
    area.dataset.curves = String(visible.length);
  }

  // the side of the plot on which the curves stay further away from height y
  function roomier(visible, y) {
    const distance = (least, pick) => Math.min(...visible.map(s => {
      const known = s.y.filter(v => v !== null);
      return known.length > least ? Math.abs(pick(known) - y) : Infinity;
    }));
    return distance(2, v => v[Math.floor(v.length * 0.08)]) > distance(0, v => v[v.length - 1]) ? "left" : "right";
  }
  function linePath(s, px, py) {
    let d = "", pen = false, last = 0;
    s.x.forEach((x, i) => {
      const v = s.y[i];
      if (v === null || (plot.logY && v <= 0)) { pen = false; return; }
      const a = px(x).toFixed(1), b = py(v).toFixed(1);
      d += !pen ? `M${a} ${b}` : s.kind === "step" && b !== last ? `H${a}V${b}` : `L${a} ${b}`;
      pen = true; last = b;
    });
    return d;
  }
  function bandPath(s, px, py) {
    const keep = s.x.map((_, i) => i).filter(i => s.y[i] !== null && s.low[i] !== null);
    if (!keep.length) return "";
    const up = keep.map(i => `${px(s.x[i]).toFixed(1)} ${py(s.y[i]).toFixed(1)}`);
    const down = keep.reverse().map(i => `${px(s.x[i]).toFixed(1)} ${py(s.low[i]).toFixed(1)}`);
    return `M${up.join("L")}L${down.join("L")}Z`;
  }

  function cross(x) {
    if (!state) return;
    state.dots.replaceChildren();
    state.cross.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x === null) { tip.hidden = true; return; }
    const at = state.px(Math.min(x1, Math.max(x0, x)));
    state.cross.setAttribute("x1", at); state.cross.setAttribute("x2", at);
  }
  function read(x, pointer) {
    const rows = [];
    for (const s of state.visible) {
      if (!s.x.length || (s.kind === "faint" && state.visible.some(o => o !== s && o.color === s.color && o.kind !== "faint"))) continue;
      const i = nearest(s.x, x), v = s.y[i];
      if (v === null) continue;
      rows.push({ s, v, text: s.low ? `${form(s.low[i])} to ${form(v)}` : form(v) });
      if (!s.low) make("circle", { class: "dot", style: `--s:${colour(s)}`, cx: state.px(s.x[i]), cy: state.py(v), r: 3.5 }, state.dots);
    }
    if (rows.length > 10) rows.sort((a, b) => b.v - a.v);
    tip.replaceChildren();
    const first = plot.steps.length ? plot.steps[nearest(plot.steps.map(p => p[0]), x)][1] : null;
    make("b", {}, tip, first === null ? `${plot.xLabel} ${short(x)}` : `step ${first} · ${short(x)} ${plot.xLabel}`);
    for (const row of rows.slice(0, 10)) {
      const line = make("span", {}, tip);
      make("i", { style: `background:${colour(row.s)}` }, line);
      make("span", {}, line, row.s.name);
      make("em", {}, line, row.text);
    }
    if (rows.length > 10) make("small", {}, tip, `highest 10 of ${rows.length}`);
    place(tip, figure, area, pointer);
  }
  area.addEventListener("pointermove", event => {
    if (!state) return;
    const at = event.clientX - area.getBoundingClientRect().left;
    const x = x0 + (at - state.left) / (state.width - state.left - state.right) * (x1 - x0);
    const snapped = plot.series.length && plot.series[0].x.length ? plot.series[0].x[nearest(plot.series[0].x, x)] : x;
    charts.forEach(chart => chart.x1 === x1 && chart.xLabel === plot.xLabel && chart.cross(snapped));
    read(snapped, event);
  });
  area.addEventListener("pointerleave", () => charts.forEach(chart => chart.cross(null)));
  charts.push({ area, draw, cross, x1, xLabel: plot.xLabel });
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  return isFinite(low) ? [low, high] : [0, 1];
}
function place(tip, figure, area, event) {
  tip.hidden = false;
  const box = figure.getBoundingClientRect(), at = event.clientX - box.left;
  const left = at + 16 + tip.offsetWidth > box.width ? at - 16 - tip.offsetWidth : at + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${area.offsetTop + 8}px`;
}

// ---------------------------------------------------------------- heat maps
function hex(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16));
}
function shade(v, plot, low, middle, high) {
  if (v === null) return null;
  const t = plot.centre ? v < plot.centre ? -(plot.centre - v) / plot.centre : Math.min(1, (v - plot.centre) / (plot.limit - plot.centre)) : Math.min(1, v / plot.limit);
  const end = t < 0 ? low : high, a = Math.pow(Math.abs(t), 0.8);
  return middle.map((m, i) => Math.round(m + (end[i] - m) * a));
}
function heat(figure, area, plot) {
  const tip = make("div", { class: "tip", hidden: "" }, figure);
  const canvas = make("canvas", { width: Math.max(1, plot.x.length), height: Math.max(1, plot.rows.length) }, area);
  const axis = make("div", { class: "axis" }, area);
  if (plot.x.length) { make("span", {}, axis, short(plot.x[0])); make("span", {}, axis, `${short(plot.x[plot.x.length - 1])} ${plot.xLabel}`); }
  canvas.style.height = `${plot.height}px`;
  function draw() {
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    const ends = [hex("--heat-low"), hex("--heat-mid"), hex("--heat-high")];
    plot.values.forEach((row, i) => row.forEach((v, j) => {
      const rgb = shade(v, plot, ...ends);
      if (rgb) image.data.set([...rgb, 255], 4 * (i * canvas.width + j));
    }));
    context.putImageData(image, 0, 0);
    area.dataset.drawn = "heat";
    area.dataset.cells = String(plot.rows.length * plot.x.length);
  }
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    const j = Math.min(plot.x.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * plot.x.length)));
    const i = Math.min(plot.rows.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * plot.rows.length)));
    tip.replaceChildren();
    make("b", {}, tip, `${plot.rowName} ${plot.rows[i]}`);
    const v = plot.values[i][j];
    make("span", {}, tip, `${v === null ? "–" : v.toFixed(2)} at ${short(plot.x[j])} ${plot.xLabel}`);
    place(tip, figure, area, event);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  charts.push({ area, draw, cross() {}, still: true });
}

// ---------------------------------------------------------------- content that is compressed until it is opened
async function unpack(box) {
  const packed = box.dataset.packed;
  delete box.dataset.packed;
  try {
    const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    box.innerHTML = await new Response(stream).text();
    box.dataset.unpacked = String(box.childElementCount);
  } catch (error) {
    box.textContent = `This browser cannot unpack what stands here (${error}); a newer one can.`;
  }
}
for (const box of document.querySelectorAll("[data-packed]"))
  box.parentElement.addEventListener("toggle", () => unpack(box), { once: true });

// ---------------------------------------------------------------- start, theme, resize
const root = document.documentElement;
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const button = document.getElementById("theme");
function label() { if (button) button.textContent = dark() ? "Light" : "Dark"; }
if (button) button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); charts.forEach(c => c.still && c.draw()); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { label(); charts.forEach(c => c.still && c.draw()); });
label();

for (const figure of document.querySelectorAll("figure.plot")) {
  const area = figure.querySelector(".area");
  const plot = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  (plot.type === "heat" ? heat : lines)(figure, area, plot);
}
charts.forEach(chart => chart.draw());
let frame = 0;
addEventListener("resize", () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(() => charts.forEach(c => c.still || c.draw())); });
root.dataset.plots = String(document.querySelectorAll("[data-drawn]").length);

if ("IntersectionObserver" in window) {
  const links = new Map([...document.querySelectorAll("nav a")].map(a => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting) links.forEach((a, id) => a.classList.toggle("here", id === entry.target.id));
  }), { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main section").forEach(section => observer.observe(section));
}
})();
