"use strict";
document.body.classList.remove("no-script");
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function made(kind, text, attributes = {}) {
  const element = document.createElement(kind);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// --- The pictures, by true and by predicted species

const cards = [...document.querySelectorAll(".cards > li")];
const filter = byId("filter");
const atFirst = (gallery) => (gallery.closest("#unsure") ? 6 : 18);

// Of each gallery the first ones that fit; its button shows the others.
function show(truth, predicted) {
  let count = 0;
  for (const gallery of document.querySelectorAll(".cards")) {
    const fitting = [...gallery.children].filter((card) =>
      (truth === "" || card.dataset.truth === truth) && (predicted === "" || card.dataset.predicted === predicted));
    const first = atFirst(gallery);
    for (const card of gallery.children) card.hidden = true;
    fitting.slice(0, first).forEach((card) => { card.hidden = false; });
    const more = gallery.nextElementSibling.querySelector(".more");
    more.hidden = fitting.length <= first;
    more.textContent = `Show all ${fitting.length}`;
    more.onclick = () => {
      fitting.forEach((card) => { card.hidden = false; });
      more.hidden = true;
      fitting[first].tabIndex = -1;
      fitting[first].focus();
    };
    count += fitting.length;
  }
  if (!filter) return;
  for (const [name, value] of [["truth", truth], ["predicted", predicted]]) filter.elements[name].value = value;
  filter.querySelector("output").textContent = truth || predicted ? `${count} such pictures` : "";
}

show("", "");

if (filter) {
  for (const name of ["truth", "predicted"]) {
    for (const place of [...new Set(cards.map((card) => +card.dataset[name]))].sort((a, b) => a - b))
      filter.elements[name].append(made("option", data.species[place], { value: place }));
    filter.elements[name].addEventListener("change", () => show(filter.elements.truth.value, filter.elements.predicted.value));
  }
  const maps = filter.elements.maps;
  if (maps) {
    const turn = () => document.body.classList.toggle("maps", maps.checked);
    maps.addEventListener("change", turn);
    document.addEventListener("keydown", (event) => {
      if (event.key.toLowerCase() !== "g" || event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLSelectElement) return;
      maps.checked = !maps.checked;
      turn();
    });
    filter.addEventListener("reset", () => setTimeout(turn));
  }
  filter.addEventListener("reset", () => setTimeout(() => show("", "")));
  filter.addEventListener("submit", (event) => event.preventDefault());
}

// --- The confusion matrix: a cell shows its pictures

function enliven(cell) {
  const { truth, predicted } = cell.dataset;
  if (!cards.some((card) => card.dataset.truth === truth && card.dataset.predicted === predicted)) return;
  const label = truth === predicted ? `${data.species[truth]}, right` : `${data.species[truth]} taken for ${data.species[predicted]}`;
  const button = made("button", cell.textContent, { type: "button", "aria-label": `${label}: ${cell.textContent}`, title: label });
  button.addEventListener("click", () => {
    show(truth, predicted);
    byId(truth === predicted ? "unsure" : "wrong").scrollIntoView();
  });
  cell.replaceChildren(button);
}

document.querySelectorAll(".matrix td[data-truth]").forEach(enliven);

function drawWhole() {
  const num = data.species.length;
  const rows = data.species.map(() => new Map());
  const columns = data.species.map(() => 0);
  for (const [truth, predicted, count] of data.confusion) {
    rows[truth].set(predicted, count);
    columns[predicted] += count;
  }
  const row = (name, cells) => {
    const line = document.createElement("tr");
    line.append(made("th", name, { scope: "row", class: "name" }), ...cells);
    return line;
  };
  const head = document.createElement("tr");
  head.append(made("th", "true species", { scope: "col", class: "name" }));
  for (const name of [...data.species, "all"]) {
    const cell = made("th", "", { scope: "col", class: "up" });
    cell.append(made("span", name));
    head.append(cell);
  }
  const table = document.querySelector(".matrix table");
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map((counts, truth) => {
    const support = [...counts.values()].reduce((sum, count) => sum + count, 0);
    const cells = Array.from({ length: num }, (_, predicted) => {
      const count = counts.get(predicted);
      if (!count) return document.createElement("td");
      const cell = made("td", count, { "data-truth": truth, "data-predicted": predicted, class: truth === predicted ? "hit" : "miss" });
      cell.style.setProperty("--share", Math.round(100 * Math.sqrt(count / support)));
      enliven(cell);
      return cell;
    });
    return row(data.species[truth], [...cells, made("td", support, { class: "sum" })]);
  }));
  const sums = columns.map((count) => made("td", count, { class: "sum" }));
  const all = made("td", columns.reduce((sum, count) => sum + count, 0), { class: "sum" });
  table.tFoot.replaceChildren(row("predicted, all", [...sums, all]));
  document.querySelector(".matrix").focus();
  byId("whole").remove();
}

if (byId("whole")) byId("whole").addEventListener("click", drawWhole);

// --- Tables that can be sorted

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isText = place === 0;
      const descending = head.getAttribute("aria-sort") === (isText ? "ascending" : "descending") ? isText : !isText;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => (isText ? row.cells[0].textContent : Number.parseFloat(row.cells[place].textContent));
      const order = (a, b) => {
        if (isText) return a.localeCompare(b);
        if (Number.isNaN(a) || Number.isNaN(b)) return 0;
        return a - b;
      };
      const rows = [...table.tBodies[0].rows];
      const known = rows.filter((row) => isText || !Number.isNaN(value(row)));
      known.sort((a, b) => (descending ? -1 : 1) * order(value(a), value(b)));
      table.tBodies[0].append(...known, ...rows.filter((row) => !known.includes(row)));
    });
  });
}

// --- Curves

const WIDTH = 360, HEIGHT = 260, LEFT = 46, BOTTOM = 34, TOP = 26, RIGHT = 12;

function drawn(kind, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const number = (value) => String(+value.toPrecision(3));

// A chart: its axes, and a function that says where a point lies.
function chart(svg, { title, x, y, xName, yName = "" }) {
  const [xFrom, xTo] = x, [yFrom, yTo] = y;
  const across = (value) => LEFT + ((value - xFrom) / (xTo - xFrom || 1)) * (WIDTH - LEFT - RIGHT);
  const down = (value) => HEIGHT - BOTTOM - ((value - yFrom) / (yTo - yFrom || 1)) * (HEIGHT - BOTTOM - TOP);
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.replaceChildren(drawn("text", { x: LEFT, y: 14, class: "title" }, title));
  for (let step = 0; step <= 4; step += 1) {
    const value = yFrom + ((yTo - yFrom) * step) / 4;
    svg.append(
      drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: down(value), y2: down(value), class: "grid" }),
      drawn("text", { x: LEFT - 6, y: down(value) + 4, "text-anchor": "end" }, number(value)));
  }
  const steps = Number.isInteger(xFrom) && xTo - xFrom > 1 ? (xTo - xFrom <= 6 ? xTo - xFrom : 4) : 4;
  const ticks = new Set(Array.from({ length: steps + 1 }, (_, step) => xFrom + ((xTo - xFrom) * step) / steps).map((value) => (xTo > 1.5 ? Math.round(value) : value)));
  for (const value of ticks) svg.append(drawn("text", { x: across(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, number(value)));
  svg.append(
    drawn("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, xName),
    drawn("text", { x: WIDTH - RIGHT, y: 14, "text-anchor": "end" }, yName));
  return (points) => points.filter((point) => point.every((value) => value !== null && Number.isFinite(value))).map(([a, b]) => [across(a), down(b)]);
}

function line(svg, points, kind = "") {
  svg.append(drawn("polyline", { points: points.map((point) => point.join(",")).join(" "), class: `line ${kind}` }));
  if (points.length === 1) dot(svg, points[0]);
}

function dot(svg, [x, y]) {
  svg.append(drawn("circle", { cx: x, cy: y, r: 5, class: "dot" }));
}

// --- Thresholds: counts at each one follow from the counts by probability

function atLeast([others, own]) {
  const found = [];
  let tp = 0, fp = 0;
  for (let bin = data.bins - 1; bin >= 0; bin -= 1) {
    tp += own[bin];
    fp += others[bin];
    found[bin] = { tp, fp };
  }
  found[data.bins] = { tp: 0, fp: 0 };
  return found;
}

const share = (part, whole) => (whole ? part / whole : NaN);
const digits = (value) => (Number.isFinite(value) ? value.toFixed(4) : "-");

function drawThreshold() {
  const form = document.querySelector("#thresholds form");
  const place = form.elements.species.value, threshold = Number(form.elements.threshold.value);
  const counts = atLeast(place === "" ? data.chosen : data.counts[place]);
  const own = counts[0].tp, others = counts[0].fp, { tp, fp } = counts[threshold];
  // Of the predicted species every picture has a true one to be found, and none is a negative.
  const all = own + others, positives = place === "" ? all : own;
  const precision = share(tp, tp + fp), recall = share(tp, positives), falsePositives = share(fp, others);
  form.elements.value.textContent = (threshold / data.bins).toFixed(3);
  const said = place === ""
    ? `${(tp + fp).toLocaleString("en")} of ${all.toLocaleString("en")} pictures are answered (${(100 * share(tp + fp, all)).toFixed(1)} %), of these ${tp.toLocaleString("en")} right.`
    : `${(tp + fp).toLocaleString("en")} pictures are called ${data.species[place]}, of these ${tp.toLocaleString("en")} of its ${own.toLocaleString("en")}.`;
  byId("at-threshold").textContent = `${said} Precision ${digits(precision)}, recall ${digits(recall)}${place === "" ? "" : `, false-positive rate ${digits(falsePositives)}`}.`;
  const name = place === "" ? "predicted species" : data.species[place];
  const unit = { x: [0, 1], y: [0, 1] };
  const pr = byId("precision-recall"), roc = byId("roc");
  const onPr = chart(pr, { ...unit, title: "Precision", xName: "recall" });
  line(pr, onPr(counts.map((each) => [share(each.tp, positives), share(each.tp, each.tp + each.fp)])));
  onPr([[recall, precision]]).forEach((point) => dot(pr, point));
  pr.setAttribute("aria-label", `Precision by recall of ${name}`);
  roc.style.display = place === "" ? "none" : "";
  if (place === "") return;
  const onRoc = chart(roc, { ...unit, title: "True-positive rate", xName: "false-positive rate" });
  line(roc, onRoc([[0, 0], [1, 1]]), "faint");
  line(roc, onRoc(counts.map((each) => [share(each.fp, others), share(each.tp, own)])));
  onRoc([[falsePositives, recall]]).forEach((point) => dot(roc, point));
  roc.setAttribute("aria-label", `ROC curve of ${name}`);
}

if (data.counts) {
  const form = document.querySelector("#thresholds form");
  form.elements.species.append(made("option", "the predicted species, whichever it is", { value: "" }));
  for (const place of Object.keys(data.counts)) form.elements.species.append(made("option", data.species[place], { value: place }));
  form.elements.threshold.max = data.bins;
  form.elements.threshold.value = data.bins / 2;
  form.addEventListener("input", drawThreshold);
  form.addEventListener("submit", (event) => event.preventDefault());
  drawThreshold();

  const svg = byId("reliability");
  const on = chart(svg, { title: "Accuracy", x: [0, 1], y: [0, 1], xName: "confidence" });
  for (const [lower, upper, , , accuracy] of data.reliability) {
    const [[left, top], [right, bottom]] = on([[lower, accuracy], [upper, 0]]);
    svg.append(drawn("rect", { x: left + 1, y: top, width: right - left - 2, height: bottom - top, class: "bar" }));
  }
  line(svg, on([[0, 0], [1, 1]]), "faint");
  on(data.reliability.map(([, , , confidence, accuracy]) => [confidence, accuracy])).forEach((point) => dot(svg, point));
}

// --- Learning curves: a metric and its validation's twin

const names = [...new Set(Object.keys(data.history).map((name) => name.replace(/^val_/, "")))];
for (const name of names) {
  const series = [data.history[name], data.history[`val_${name}`]];
  const values = series.flatMap((each) => each || []).filter((value) => value !== null);
  if (!values.length) continue;
  const epochs = Math.max(...series.map((each) => (each ? each.length : 0)));
  const svg = drawn("svg", { role: "img", "aria-label": `${name} by epoch` });
  byId("curves").append(svg);
  const y = [Math.min(...values), Math.max(...values)];
  if (y[0] === y[1]) y[1] += Math.abs(y[1]) || 1;
  const title = name.replaceAll("_", " ") + (series[0] && series[1] ? ": training —, validation - -" : series[1] ? " of validation" : "");
  const on = chart(svg, { title, x: [Math.min(1, epochs - 1), epochs], y, xName: "epoch" });
  series.forEach((each, place) => {
    if (each) line(svg, on(each.map((value, epoch) => [((epoch + 1) * epochs) / each.length, value])), place ? "second" : "");
  });
  if (data.kept) {
    const [[x, top], [, bottom]] = on([[data.kept, y[1]], [data.kept, y[0]]]);
    svg.append(drawn("line", { x1: x, x2: x, y1: top, y2: bottom, class: "faint" }));
    const isLate = x > WIDTH / 2;
    svg.append(drawn("text", { x: x + (isLate ? -4 : 4), y: top + 10, "text-anchor": isLate ? "end" : "start" }, "published"));
  }
}

// --- Accuracy by strength of each corruption

const disturbed = ["robustness", "adversarial"].flatMap((part) => (data[part] || []).map((curve) => [part, ...curve]));
for (const [part, name, accuracies, breaks] of disturbed) {
  const svg = drawn("svg", { role: "img", "aria-label": `Accuracy by strength of ${name}: ${accuracies.map(number).join(", ")}` });
  byId(`${part}-curves`).append(svg);
  const on = chart(svg, { title: name, x: [0, accuracies.length - 1], y: [0, 1], xName: "strength", yName: "accuracy" });
  line(svg, on([[0, accuracies[0]], [accuracies.length - 1, accuracies[0]]]), "faint");
  line(svg, on(accuracies.map((accuracy, strength) => [strength, accuracy])));
  if (breaks) on([[breaks, accuracies[breaks]]]).forEach((point) => dot(svg, point));
}

// --- Pictures as points

function drawMap({ points, sprite, tile, columns, shares }) {
  const svg = document.querySelector("#points svg"), card = document.querySelector("#points figure");
  const [picture, caption] = card.children;
  const select = byId("highlight").elements.species;
  const range = (axis) => points.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]);
  const [x, y] = [range(0), range(1)];
  const across = (value) => 12 + (576 * (value - x[0])) / (x[1] - x[0] || 1);
  const down = (value) => 388 - (376 * (value - y[0])) / (y[1] - y[0] || 1);
  svg.setAttribute("viewBox", "0 0 600 400");
  const circles = points.map(([a, b, truth, predicted]) => {
    const hue = (360 * truth) / data.species.length;
    const circle = drawn("circle", { cx: across(a), cy: down(b), r: 5, class: truth === predicted ? "" : "miss" });
    circle.style.fill = `hsl(${hue} 65% ${truth % 2 ? 42 : 58}%)`;
    svg.append(circle);
    return circle;
  });
  svg.append(drawn("text", { x: 588, y: 398, "text-anchor": "end" }, `first component, ${(100 * shares[0]).toFixed(0)} %`));
  for (const place of [...new Set(points.map((point) => point[2]))].sort((a, b) => a - b))
    select.append(made("option", data.species[place], { value: place }));
  const isShown = (place) => select.value === "" || points[place][2] === +select.value || points[place][3] === +select.value;
  let chosen = -1;

  function choose(place) {
    if (chosen >= 0) circles[chosen].classList.remove("chosen");
    chosen = place;
    circles[place].classList.add("chosen");
    svg.append(circles[place]);
    const [, , truth, predicted, confidence, path] = points[place];
    const size = 168 / tile;
    picture.style.background = `#000 url("${sprite}") ${-size * tile * (place % columns)}px ${-size * tile * Math.floor(place / columns)}px / ${size * tile * columns}px`;
    caption.replaceChildren(made("b", data.species[predicted]));
    if (confidence !== null) caption.append(" ", made("span", confidence.toFixed(3), { class: "number" }));
    if (truth !== predicted) caption.append(made("span", `is ${data.species[truth]}`, { class: "truth" }));
    caption.append(made("small", path, { class: "path" }));
    card.hidden = false;
  }

  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const at = [((event.clientX - box.left) * 600) / box.width, ((event.clientY - box.top) * 400) / box.height];
    let best = -1, least = 40 ** 2;
    points.forEach(([a, b], place) => {
      const distance = (across(a) - at[0]) ** 2 + (down(b) - at[1]) ** 2;
      if (distance < least && isShown(place)) [best, least] = [place, distance];
    });
    if (best >= 0 && best !== chosen) choose(best);
  }

  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  // From left to right, as the arrow keys go.
  const order = points.map((_, place) => place).sort((a, b) => points[a][0] - points[b][0]);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const shown = order.filter(isShown);
    if (!step || !shown.length) return;
    event.preventDefault();
    choose(shown[(shown.indexOf(chosen) + step + shown.length) % shown.length]);
  });
  select.addEventListener("change", () => circles.forEach((circle, place) => circle.classList.toggle("faded", !isShown(place))));
  byId("highlight").addEventListener("submit", (event) => event.preventDefault());
}

if (data.map) drawMap(data.map);
