// The token gallery: one question at a time, with a picture per run in which dropped tokens are faded.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const bits = (text, n) => {
  const packed = bytes(text);
  return Array.from({ length: n }, (_, i) => (packed[i >> 3] >> (7 - (i & 7))) & 1);
};
const indices = (text) => [...new Uint16Array(bytes(text).buffer)];

function element(name, attributes = {}, ...children) {
  const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// The temporal steps of all grids: [h, w] of each.
const moments = (grids) => grids.flatMap(([t, h, w]) => Array.from({ length: t }, () => [h, w]));

// One cell for each temporal step, side by side, or for that of the moment alone: {i, x, y, h, w, first token}.
function layout(grids, moment = 0) {
  const steps = moments(grids);
  const columns = Math.ceil(Math.sqrt(steps.length));
  const gap = 0.5;
  const cells = [];
  let [x, y, tallest, widest, first] = [0, 0, 0, 0, 0];
  steps.forEach(([h, w], i) => {
    if (i && i % columns === 0) [x, y, tallest] = [0, y + tallest + gap, 0];
    cells.push({ i, x, y, h, w, first });
    x += w + gap;
    first += h * w;
    tallest = Math.max(tallest, h);
    widest = Math.max(widest, x - gap);
  });
  if (moment) {
    const cell = { ...cells[moment - 1], x: 0, y: 0 };
    return { cells: [cell], width: cell.w, height: cell.h };
  }
  return { cells, width: widest, height: y + tallest };
}

// Squares of the tokens for which `included` is true; neighbours in a row are one rectangle.
function squares(cells, included) {
  let d = "";
  for (const { x, y, h, w, first } of cells) {
    for (let row = 0; row < h; row += 1) {
      for (let column = 0; column < w; column += 1) {
        let run = 0;
        while (column + run < w && included(first + row * w + column + run)) run += 1;
        if (run) d += `M${x + column} ${y + row}h${run}v1h${-run}z`;
        column += run;
      }
    }
  }
  return d;
}

// The edge between the tokens for which `included` is true and all others.
function edge(cells, included) {
  let d = "";
  for (const { x, y, h, w, first } of cells) {
    const is = (row, column) => row >= 0 && row < h && column >= 0 && column < w && included(first + row * w + column);
    for (let row = 0; row < h; row += 1) {
      for (let column = 0; column < w; column += 1) {
        if (!is(row, column)) continue;
        if (!is(row - 1, column)) d += `M${x + column} ${y + row}h1`;
        if (!is(row + 1, column)) d += `M${x + column} ${y + row + 1}h1`;
        if (!is(row, column - 1)) d += `M${x + column} ${y + row}v1`;
        if (!is(row, column + 1)) d += `M${x + column + 1} ${y + row}v1`;
      }
    }
  }
  return d;
}

function corner(cells, token) {
  const cell = cells.find((it) => it.first <= token && token < it.first + it.h * it.w);
  if (!cell) return null; // of another moment
  const inside = token - cell.first;
  return [cell.x + (inside % cell.w), cell.y + Math.floor(inside / cell.w)];
}

const STOPS = [[38, 24, 74], [114, 31, 129], [205, 64, 113], [253, 149, 103], [252, 253, 191]];
function ramp(level) {
  const at = Math.min(level, 0.9999) * (STOPS.length - 1);
  const [low, high] = [STOPS[Math.floor(at)], STOPS[Math.floor(at) + 1]];
  return `rgb(${low.map((c, i) => Math.round(c + (high[i] - c) * (at % 1))).join(" ")})`;
}
function legend(from, to, direction = "right") {
  const scale = element("span", { class: "scale" });
  scale.style.background = `linear-gradient(to ${direction},${[0, 0.25, 0.5, 0.75, 1].map(ramp)})`;
  return [from, scale, to];
}

function drawing(question, answer, order, layer, label, box = null) {
  const { cells, width, height } = layout(question.grids, state.moment);
  const svg = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const crisp = { "shape-rendering": "crispEdges" };
  const kept = answer && answer[3] !== null ? bits(answer[3], question.n) : null;
  cells.forEach(({ i, x, y, h, w }) => {
    const place = { x, y, width: w, height: h };
    if (question.pictures) svg.append(element("svg:image", { ...place, href: question.pictures[i], preserveAspectRatio: "none" }));
    else svg.append(element("svg:rect", { ...place, class: "gone" }));
  });
  if (layer === "importance" && question.importance) {
    bytes(question.importance).forEach((level, token) => {
      const at = corner(cells, token);
      if (!at) return;
      const [x, y] = at;
      svg.append(element("svg:rect", { x, y, width: 1, height: 1, fill: ramp(level / 255), "fill-opacity": 0.8, ...crisp }));
    });
    if (kept && answer[2] < question.n) svg.append(element("svg:path", { d: edge(cells, (i) => kept[i]), class: "outline" }));
  } else if (kept) {
    if (question.pictures) svg.append(element("svg:path", { d: squares(cells, (i) => !kept[i]), class: "fade", ...crisp }));
    else svg.append(element("svg:path", { d: squares(cells, (i) => kept[i]), class: "here", ...crisp }));
  }
  if (layer === "order" && order) {
    const picks = indices(order);
    picks.forEach((token, rank) => {
      const at = corner(cells, token);
      if (!at) return;
      const [x, y] = at;
      const level = 1 - rank / picks.length;
      svg.append(element("svg:rect", { x, y, width: 1, height: 1, fill: ramp(level), "fill-opacity": 0.85, ...crisp }));
      if (question.n > 600) return;
      const style = { "font-size": 0.46, "text-anchor": "middle", fill: level > 0.6 ? "#111" : "#fff" };
      svg.append(element("svg:text", { x: x + 0.5, y: y + 0.66, ...style }, String(rank + 1)));
    });
  }
  if (answer && answer[4].length) svg.append(element("svg:path", { d: grid(answer[4], cells), class: "lines" }));
  for (const [where, kind] of [[question.where, "target"], [box, "found"]]) {
    if (where && cells[0].i === 0) svg.append(element("svg:rect", { ...on(cells[0], where), class: kind }));
  }
  return svg;
}

// Where a box lies in a cell; what is outside of the picture is left out.
function on({ x, y, h, w }, box) {
  const [left, top, right, bottom] = box.map((share) => Math.min(Math.max(share, 0), 1));
  return { x: x + left * w, y: y + top * h, width: (right - left) * w, height: (bottom - top) * h };
}

// How much of each moment of a video is kept: a bar each, which shows its moment when it is clicked.
function strip(question, kept) {
  const counts = layout(question.grids).cells.map(({ h, w, first }) => {
    const count = kept.slice(first, first + h * w).reduce((sum, bit) => sum + bit, 0);
    return [count, count / (h * w)];
  });
  const bars = counts.map(([count, share], i) => {
    const bar = element("i", { title: `${count} kept at moment ${i + 1}` }, element("b"));
    bar.firstChild.style.height = `${100 * share}%`;
    bar.classList.toggle("now", state.moment === i + 1);
    bar.addEventListener("click", () => scrub(i + 1));
    return bar;
  });
  const label = `Tokens kept at each moment: ${counts.map(([count]) => count).join(", ")}`;
  return element("span", { class: "strip", role: "img", "aria-label": label }, ...bars);
}

// Where the tokens of a smaller image lie on the picture.
function grid(shown, cells) {
  const steps = moments(shown);
  return cells
    .map(({ i, x, y, h, w }) => {
      const [rows, columns] = steps[i] || [1, 1];
      const across = Array.from({ length: rows - 1 }, (_, r) => `M${x} ${y + (h * (r + 1)) / rows}h${w}`);
      const down = Array.from({ length: columns - 1 }, (_, c) => `M${x + (w * (c + 1)) / columns} ${y}v${h}`);
      return [...across, ...down].join("");
    })
    .join("");
}

const right = (answer) => (answer && answer[1] !== null ? answer[1] >= data.right : null);

function verdict(answer) {
  if (!answer) return element("span", { class: "said" }, "not run");
  const is = right(answer);
  const node = element("span", { class: "said" });
  if (is !== null) node.append(element("span", { class: is ? "ok" : "no" }, is ? "✓ right: " : "✗ wrong: "));
  node.append(answer[0] || "(empty)");
  if (answer[1] !== null && answer[1] > 0 && answer[1] < 1) node.append(` (score ${answer[1].toFixed(2)})`);
  return node;
}

function amount(question, answer) {
  if (!answer) return "";
  const { n } = question;
  if (answer[4].length) return `whole picture as ${answer[2]} of ${n} tokens`;
  return answer[2] === n ? `all ${n} tokens` : `${answer[2]} of ${n} tokens`;
}

// `moment` is a temporal step from 1 on, or 0 for all of them; `of` is the question that it belongs to.
const state = { setting: 0, budget: "", task: "", a: "", b: "", place: 0, list: [], moment: 0, of: "" };
const setting = () => data.settings[state.setting];
const pruned = () => setting().runs.filter((name) => data.runs[name].budget === state.budget);
const runs = () => [...setting().runs.filter((name) => !data.runs[name].budget), ...pruned()];
const title = (name) => data.runs[name].name;

function options(id, values, selected) {
  const select = byId(id);
  select.replaceChildren(...values.map(([value, label]) => element("option", { value }, label)));
  select.value = values.some(([value]) => value === selected) ? selected : values.length ? values[0][0] : "";
  return select.value;
}

function fill() {
  options("g-setting", data.settings.map((it, i) => [String(i), it.label]), String(state.setting));
  const budgets = [...new Set(setting().runs.map((name) => data.runs[name].budget).filter(Boolean))];
  state.budget = options("g-budget", budgets.map((it) => [it, it]), state.budget);
  const tasks = setting().chunks.map((it) => [it.task, it.short]);
  state.task = options("g-task", [...(setting().chunks.some((it) => it.src) ? [] : [["", "all"]]), ...tasks], state.task);
  const names = runs().map((name) => [name, title(name)]);
  const like = (hash, usual) => {
    const name = data.runs[hash] && title(hash);
    const same = names.find(([, it]) => it === name) || names.find(([it]) => data.runs[it].method === usual);
    return same ? same[0] : "";
  };
  state.a = options("g-a", names, like(state.a, "idpruner"));
  state.b = options("g-b", names, like(state.b, "random"));
}

// Questions in the folder next to the page are loaded by a script element: a page from disk may not fetch files.
function load(chunk) {
  if (chunk.questions || !chunk.src) return Promise.resolve();
  return new Promise((done, failed) => {
    window.galleryChunk = (questions) => (chunk.questions = questions);
    const script = element("script", { src: chunk.src });
    script.onload = done;
    script.onerror = () => failed(new Error(`${chunk.src} is missing: keep its folder next to the page`));
    document.head.append(script);
  });
}

async function list(keep = false) {
  const before = state.list[state.place];
  const chunks = setting().chunks.filter((it) => !state.task || it.task === state.task);
  try {
    for (const chunk of chunks) await load(chunk);
  } catch (error) {
    byId("g-asked").replaceChildren(element("p", { class: "warn" }, error.message));
    return;
  }
  const [a, b] = [state.a, state.b].map((name) => setting().runs.indexOf(name));
  const differs = (it) => right(it.answers[a]) === true && right(it.answers[b]) === false;
  const questions = chunks.flatMap((chunk) => chunk.questions.map((it) => ({ ...it, short: chunk.short })));
  state.list = byId("g-differ").checked ? questions.filter(differs) : questions;
  const same = before ? state.list.findIndex((it) => it.task === before.task && it.doc_id === before.doc_id) : -1;
  state.place = keep && same >= 0 ? same : 0;
  show();
}

function show() {
  const question = state.list[state.place];
  const total = state.list.length;
  byId("g-place").value = total ? `${state.place + 1} of ${total}` : "none";
  byId("g-back").disabled = state.place === 0;
  byId("g-next").disabled = state.place >= total - 1;
  if (!question) {
    const none = "The gallery has no question that A answers right and B wrong.";
    byId("g-asked").replaceChildren(element("p", {}, none));
    byId("g-panels").replaceChildren();
    byId("g-legend").textContent = "";
    byId("g-time").hidden = true;
    return;
  }
  time(question);
  const wide = Math.max(...question.grids.map(([t, h, w]) => w * (state.moment ? 1 : Math.ceil(Math.sqrt(t)))));
  byId("g-panels").style.setProperty("--least", wide > 24 ? "15rem" : "");
  byId("g-asked").replaceChildren(
    element(
      "p",
      { class: "small" },
      `${question.short}, question ${question.doc_id}, ${question.n} visual tokens · `,
      element("a", { href: address(question), id: "g-link" }, "link to it"),
    ),
    element("p", { class: "question" }, question.text || "The machine that made this page did not have the data set."),
    ...(question.target === undefined ? [] : [element("p", {}, "Right answer: ", element("b", {}, question.target))]),
  );
  const layer = document.querySelector("input[name=layer]:checked").value;
  explain(question, layer);
  const first = [state.a, state.b];
  const order = [...new Set([...first, ...runs()])];
  byId("g-panels").replaceChildren(...order.map((name) => panel(question, name, layer)));
}

// The fragment that opens a question again: model and tasks, budget, benchmark, number.
const address = (question) => `#q/${[setting().label, state.budget, question.task, question.doc_id].map(encodeURIComponent).join("/")}`;

async function follow() {
  const [mark, ...parts] = location.hash.split("/");
  if (mark !== "#q") return;
  let names = [];
  try {
    names = parts.map(decodeURIComponent);
  } catch {
    return;
  }
  const [label, budget, task, doc] = names;
  const place = data.settings.findIndex((it) => it.label === label);
  if (place < 0 || !data.settings[place].chunks.some((it) => it.task === task)) return;
  byId("g-differ").checked = false;
  Object.assign(state, { setting: place, budget, task, place: 0 });
  fill();
  await list();
  const found = state.list.findIndex((it) => String(it.doc_id) === doc);
  if (found >= 0) state.place = found;
  show();
  byId("gallery").scrollIntoView();
}

// Set the slider of moments to a question, which begins with all of them.
function time(question) {
  const count = moments(question.grids).length;
  const name = `${state.setting} ${question.task} ${question.doc_id}`;
  if (name !== state.of) Object.assign(state, { of: name, moment: 0 });
  byId("g-time").hidden = count < 2;
  byId("g-moment").max = count;
  byId("g-moment").value = state.moment;
  const seconds = question.seconds?.length === 1 && question.grids.length === 1 ? question.seconds[0] : 0;
  const from = seconds ? `, from ${((state.moment - 1) * seconds).toFixed(1)} s` : "";
  byId("g-at").value = state.moment ? `${state.moment} of ${count}${from}` : `all ${count}`;
}

function scrub(moment) {
  const question = state.list[state.place];
  if (!question) return;
  state.moment = Math.min(Math.max(moment, 0), moments(question.grids).length);
  show();
}

function explain(question, layer) {
  const texts = {
    kept: [question.pictures ? "Dropped tokens are faded." : "Kept tokens are dark squares."],
    order: question.orders && question.orders.some(Boolean)
      ? [...legend("first", "last", "left"), " picked. Methods without an order show what they keep."]
      : ["No run recorded a picking order for this question."],
    importance: question.importance
      ? [...legend("least", "most"), " important to the learned scorer in this picture; outlined: kept."]
      : ["No run recorded importance for this question."],
  };
  const boxes = question.where || question.boxes ? [" Solid box: what is asked about; dashed box: the answer."] : [];
  byId("g-legend").replaceChildren(...texts[layer], ...boxes);
}

function panel(question, name, layer) {
  const index = setting().runs.indexOf(name);
  const answer = question.answers[index];
  const order = question.orders ? question.orders[index] : null;
  const stages = question.stages && layer === "kept" ? question.stages[index] : null;
  const about = data.runs[name];
  const mark = name === state.a ? "A: " : name === state.b ? "B: " : "";
  const who = element("span", { class: "who" }, element("span", { class: "dot" }), mark + about.name);
  const label = `${about.name}: ${amount(question, answer) || "not run"}`;
  const item = element("li", { class: `${about.group || "baseline"}${name === state.a ? " is-a" : ""}${name === state.b ? " is-b" : ""}` });
  const box = question.boxes ? question.boxes[index] : null;
  const picture = stages ? pictures(question, stages, about.name) : drawing(question, answer, order, layer, label, box);
  const isVideo = moments(question.grids).length > 1 && answer && answer[3] !== null;
  const kept = isVideo ? [strip(question, bits(answer[3], question.n))] : [];
  item.append(who, picture, ...kept, verdict(answer), element("span", { class: "small" }, amount(question, answer)));
  return item;
}

// A run that cut several times: one picture for what each cut left.
function pictures(question, stages, name) {
  const list = stages.map(([layer, count, left]) => {
    const text = `${count} ${layer < 0 ? "at the input" : `after layer ${layer}`}`;
    const one = drawing(question, ["", null, count, left, []], null, "kept", `${name}: ${text}`);
    return element("span", {}, one, element("span", { class: "small" }, text));
  });
  return element("span", { class: "stages" }, ...list);
}

function step(by) {
  const next = state.place + by;
  if (next < 0 || next >= state.list.length) return;
  state.place = next;
  show();
}

if (data.settings.length) {
  byId("g-without").hidden = true;
  byId("viewer").hidden = false;
  fill();
  byId("g-setting").addEventListener("change", (event) => {
    Object.assign(state, { setting: Number(event.target.value), place: 0 });
    fill();
    list();
  });
  byId("g-budget").addEventListener("change", (event) => {
    state.budget = event.target.value;
    fill();
    list(true);
  });
  for (const key of ["task", "a", "b"]) {
    byId(`g-${key}`).addEventListener("change", (event) => {
      state[key] = event.target.value;
      list(key !== "task");
    });
  }
  byId("g-differ").addEventListener("change", () => list(true));
  all("input[name=layer]").forEach((it) => it.addEventListener("change", show));
  byId("g-back").addEventListener("click", () => step(-1));
  byId("g-next").addEventListener("click", () => step(1));
  byId("g-moment").addEventListener("input", (event) => scrub(Number(event.target.value)));
  let near = false;
  new IntersectionObserver((entries) => (near = entries.at(-1).isIntersecting)).observe(byId("viewer"));
  document.addEventListener("keydown", (event) => {
    const busy = event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll, .drawing");
    if (busy || !near) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
    if (event.key === ",") scrub(state.moment - 1);
    if (event.key === ".") scrub(state.moment + 1);
  });
  window.addEventListener("hashchange", follow);
  list().then(follow);
}
