// The first view: score against computation, and in words the best methods of each budget; read from the rows of the tables.
const choose = document.getElementById("choose");
const LINES = 5;  // methods of a budget that are named in the picture

// A row as numbers: the share of visual tokens that a layer sees, and of a benchmark (0: the average) score and interval.
function measured(row, unpruned, benchmark) {
  const cell = row.cells[FIRST + benchmark];
  const text = (name) => cell.querySelector(`.rel ${name}`)?.textContent ?? "";
  const value = Number.parseFloat(cell.querySelector(".rel span:not(.as, .sr, .ci)")?.textContent);
  const [low, high] = text(".ci").split("–").map(Number.parseFloat);
  const per_layer = Number.parseFloat(row.dataset.seen);
  const known = high !== undefined;
  return {
    name: row.dataset.name,
    budget: row.dataset.budget,
    group: row.className,
    inside: per_layer > Number.parseFloat(row.cells[3].dataset.v) + 1e-9,
    best: Boolean(cell.querySelector(".best")),
    same: Boolean(cell.querySelector(".as")),
    ...{ x: (100 * per_layer) / unpruned, y: value, low: known ? low : value, high: known ? high : value, known },
  };
}
const FIRST = 4;  // place of the average among a row's cells

function rowsOf(table, benchmark) {
  const rows = [...table.tBodies[0].rows];
  const base = rows.find((row) => row.dataset.budget === "unpruned");
  const unpruned = Number.parseFloat(base?.dataset.seen);
  const points = rows.filter((row) => row !== base).map((row) => measured(row, unpruned, benchmark));
  return points.filter((it) => Number.isFinite(it.x) && Number.isFinite(it.y));
}

// What the picture names: the best of each budget and those that are not significantly different from it, at most LINES a budget.
function named(points) {
  const budgets = Map.groupBy(points.filter((it) => !it.inside), (it) => it.budget);
  return [...budgets].map(([budget, rows]) => {
    const ranked = rows.toSorted((a, b) => b.y - a.y);
    const [best] = ranked;
    const like = ranked.filter((it) => it !== best && (it.same || !best.known));  // untested: none is said to differ
    return { budget, best, like, shown: [best, ...like].slice(0, LINES) };
  });
}

function words(points, answer) {
  const line = ({ budget, best, like }) => {
    const interval = best.known ? ` (${best.low} to ${best.high})` : "";
    const names = like.slice(0, 6).map((it) => it.name).join(", ");
    const more = like.length > 6 ? ` and ${like.length - 6} more` : "";
    const what = best.known ? "not significantly different" : "untested, so none of the others is known to be worse";
    const rest = like.length ? `; ${what}: ${names}${more}` : "";
    return element("li", {}, element("b", {}, `${budget}: ${best.name}`), ` ${best.y} %${interval}${rest}`);
  };
  answer.replaceChildren(...named(points).map(line));
}

function picture(points, figure, label) {
  const width = Math.max(340, figure.clientWidth || 900);
  const height = width < 600 ? 360 : 440;
  const [left, right, top, bottom] = [52, 24, 18, 46];
  const shares = points.map((it) => it.x);
  const ends = [Math.min(...shares, 20) * 0.8, 100];
  const lowest = Math.min(...points.map((it) => it.low));
  const highest = Math.max(100, ...points.map((it) => it.high));
  const step = highest - lowest > 50 ? 20 : 10;
  const floor = Math.floor(lowest / step) * step;
  const x = (share) => left + ((width - left - right) * Math.log(share / ends[0])) / Math.log(ends[1] / ends[0]);
  const y = (score) => top + ((height - top - bottom) * (highest - score)) / (highest - floor || 1);
  const marks = [];
  const text = (a, b, content, more = {}) => marks.push(element("svg:text", { x: a, y: b, ...more }, content));
  for (let score = floor; score <= highest; score += step) {
    marks.push(element("svg:line", { x1: left, x2: width - right, y1: y(score), y2: y(score), class: score === 100 ? "whole" : "rule" }));
    text(left - 8, y(score) + 4, String(score), { class: "tick", "text-anchor": "end" });
  }
  for (const share of [2, 5, 10, 25, 50, 100].filter((it) => it >= ends[0])) {
    text(x(share), height - bottom + 18, `${share} %`, { class: "tick", "text-anchor": "middle" });
  }
  text((left + width) / 2, height - 8, "visual tokens that a layer sees, on average", { class: "tick", "text-anchor": "middle" });
  const chosen = new Set(named(points).flatMap((it) => it.shown));
  const tooltip = (it) => `${it.name}, ${it.budget}: ${it.y} %${it.known ? ` (${it.low} to ${it.high})` : ""}`;
  const dot = (it, shift) => {
    const [a, b] = [x(it.x) + shift, y(it.y)];
    const loud = chosen.has(it) ? "loud" : "";
    const group = element("svg:g", { class: `${it.group} ${loud}` }, element("svg:title", {}, tooltip(it)));
    if (loud && it.known) group.append(element("svg:line", { x1: a, x2: a, y1: y(it.low), y2: y(it.high), class: "whisker" }));
    group.append(element("svg:circle", { cx: a, cy: b, r: loud ? 5 : 3.5, class: it.inside ? "hollow" : "full" }));
    marks.push(group);
  };
  points.filter((it) => !chosen.has(it)).forEach((it) => dot(it, 0));
  for (const { shown } of named(points)) {
    let above = -Infinity;
    shown.forEach((it, place) => {
      const shift = 9 * (place - (shown.length - 1) / 2);
      dot(it, shift);
      const level = Math.max(y(it.y) + 4, above + 15);
      above = level;
      const edge = x(it.x) + 9 * (shown.length / 2) + 4;
      const fits = edge + 7.2 * it.name.length < width;
      text(fits ? edge : x(it.x) - 9 * (shown.length / 2) - 4, level, it.name, { class: `name ${it.group}`, "text-anchor": fits ? "start" : "end" });
    });
  }
  const form = { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label };
  figure.replaceChildren(element("svg:svg", form, ...marks));
}

function view() {
  const table = scores[Number(byId("c-table").value)];
  const select = byId("c-benchmark");
  const [label, benchmark] = [select.selectedOptions[0].textContent, select.selectedIndex];
  const points = rowsOf(table, benchmark);
  choose.hidden = points.length === 0;
  if (choose.hidden) return;
  words(points, byId("c-answer"));
  picture(points, byId("c-figure"), `Score against computation, ${label}`);
}

function benchmarks() {
  const table = scores[Number(byId("c-table").value)];
  const heads = all("thead th[data-benchmark]", table).map((it) => [it.dataset.benchmark, it.textContent]);
  options("c-benchmark", [["", "average of all"], ...heads], "");
  view();
}

const tables = scores.map((table, place) => [String(place), table.closest("[aria-label]").getAttribute("aria-label").replace("Scores of ", "")]);
const usable = tables.filter(([place]) => rowsOf(scores[Number(place)], 0).length);
if (usable.length) {
  choose.hidden = false;
  options("c-table", usable, usable[0][0]);
  byId("c-table").parentNode.hidden = usable.length === 1;
  byId("c-table").addEventListener("change", benchmarks);
  byId("c-benchmark").addEventListener("change", view);
  benchmarks();
  new ResizeObserver(view).observe(choose);
}
