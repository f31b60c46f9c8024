// The page: takes pictures, asks predict.js what they show, and draws the answers.
import { models, predict, told } from "./predict.js";

const SHOWN = 5, UNSURE = 0.5, NAMED = 24;
const at = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });

function bar(name, probability) {
  const item = document.createElement("li"), line = document.createElement("div");
  line.className = "line";
  for (const text of [name, percent.format(probability)]) {
    line.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  const track = Object.assign(document.createElement("div"), { className: "track" });
  const fill = Object.assign(document.createElement("div"), { className: "fill" });
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  item.append(line, track);
  return item;
}

function answer(model, classes, probabilities) {
  const shown = at("answer").content.cloneNode(true), part = (name) => shown.querySelector(name);
  const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]);
  part("h3").textContent = `${model.name} ${model.version}`;
  part(".best").textContent = classes[order[0]];
  if (probabilities[order[0]] < UNSURE) part(".unsure").textContent = "Not sure: it might as well be one of the others.";
  part(".bars").append(...order.slice(0, SHOWN).map((each) => bar(classes[each], probabilities[each])));
  return shown;
}

async function show(file, known) {
  const shown = at("result").content.cloneNode(true), article = shown.querySelector("article");
  const picture = shown.querySelector("img"), address = URL.createObjectURL(file);
  picture.src = address;
  picture.alt = file.name;
  picture.onload = picture.onerror = () => URL.revokeObjectURL(address);
  shown.querySelector("figcaption").textContent = file.name;
  at("results").prepend(shown);
  const answers = article.querySelector(".answers");
  for (const model of known) {
    try {
      const { classes, probabilities } = await predict(file, model);
      answers.append(answer(model, classes, probabilities));
    } catch (error) {
      const text = `${model.name} ${model.version}: ${error.message || error}`;
      answers.append(Object.assign(document.createElement("p"), { className: "problem", textContent: text }));
    }
  }
  article.dataset.done = "yes";
}

async function take(chosen, known) {
  const waiting = [...chosen];
  for (const [number, file] of waiting.entries()) {
    at("state").textContent = waiting.length > 1 ? `Picture ${number + 1} of ${waiting.length}…` : "Looking…";
    await show(file, known);
  }
  at("state").textContent = "";
}

async function start() {
  const known = await models();
  const { classes } = known[0], more = classes.length > NAMED ? ", …" : ".";
  at("about").textContent = `A picture of one of ${classes.length} species: ${classes.slice(0, NAMED).join(", ")}${more}`;
  at("footer").textContent = told;
  let last = Promise.resolve();
  const queue = (chosen) => { last = last.then(() => take(chosen, known)); };
  for (const id of ["choose", "camera"]) {
    at(id).onchange = () => { queue([...at(id).files]); at(id).value = ""; };
  }
  const place = at("take");
  document.ondragover = (event) => { event.preventDefault(); place.classList.add("over"); };
  document.ondragleave = () => place.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    place.classList.remove("over");
    queue([...event.dataTransfer.files]);
  };
  at("state").textContent = "";
  document.body.dataset.ready = "yes";
}

start().catch((error) => { at("state").textContent = `This page cannot start: ${error.message || error}`; });
